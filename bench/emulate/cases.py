"""The sizes at which kernels are emulated: small ones, of every kernel and every way through it."""

from ..cases import OPS, Case, convolution, correlation, gated, modes, residual, sequence

FILM = {"D": 128, "H": 2, "D_h": 32}
ODD = {"D": 96, "H": 3, "D_h": 24}
IN_REGISTERS = correlation(1, 20, 64, 32, "truncate", "masks", **FILM)
CORRELATIONS = (
    correlation(2, 20, 5, 4, **FILM, quick=True),
    correlation(1, 37, 5, 2, "masks", "dropout", **ODD),
    IN_REGISTERS,
    correlation(2, 19, 5, 4, "strided", **FILM),
)
MANY_GRIDS = (
    correlation(1, 18, 70, 3, "masks", "dropout", **FILM),
    correlation(1, 16, 200, 90, "masks", **FILM),
)
LONG = convolution(3, 1, 1100, "spectrum")
PRODUCTS = convolution(2, 2, 70, "channels last", P=2)
PACKED = convolution(1, 2, 200, "gate", texts=5)
# Chunks of long rows, and scales in float32 alone.
SCALED = convolution(1, 1, 1100, "gate", "fast", K=200)
SEVENTEEN = residual(1, 20, 17, "float32 parameters", D=128)
PIECES = gated(1, 200, 70, "state")
STEP = sequence(2, 3, 1, 32)
GRIDS = correlation(1, 16, 200, 90, "masks", "dropout", **FILM)
COPIED = sequence(1, 2, 1030, 16, "channels last")
SCANS = (
    STEP,
    sequence(2, 3, 70, 32, quick=True),
    sequence(3, 2, 300, 24, "state"),
    sequence(2, 2, 100, 64, "state"),
    sequence(1, 2, 150, 32, "state", "packed"),
    sequence(2, 3, 70, 32, "state", "strided"),
    sequence(9, 1, 300, 32, "state"),
    COPIED,
)

CASES: dict[str, tuple[Case, ...]] = {
    "correlation_context": (*CORRELATIONS, GRIDS),
    "grounded_film": (
        *CORRELATIONS,
        correlation(2, 1, 5, 4, **FILM),
        correlation(1, 21, 1, 1, **FILM),
        correlation(1, 33, 5, 5, "float32 parameters", "truncate", "masks", **FILM),
        correlation(1, 33, 17, 4, "masks", **FILM),
        correlation(1, 130, 17, 4, "masks", **FILM),  # the blocks of long texts
        *MANY_GRIDS,
    ),
    "film_residual": (
        residual(2, 20, 5, D=128, quick=True),
        residual(1, 33, 5, "no norm", D=96),
        residual(1, 20, 5, "float32 parameters", D=128),
        SEVENTEEN,
        residual(2, 1, 5, D=128),
        residual(2, 19, 5, "strided", D=96),
        residual(1, 20, 70, D=96),
    ),
    "vandermonde": (
        modes(3, 32, 64, quick=True),
        modes(2, 24, 700),
        modes(2, 70, 300),
        modes(1, 33, 1100),
        modes(3, 32, 65)._replace(options=("strided",)),
    ),
    "cauchy": (
        modes(3, 32, 64, quick=True),
        modes(2, 24, 300),
        Case({"R": 3, "D": 2, "N": 20, "L": 150}),
        Case({"R": 2, "D": 2, "N": 20, "L": 70}, ("strided",)),
    ),
    "fft_conv": (
        convolution(2, 2, 1),
        convolution(3, 2, 100, quick=True),
        convolution(2, 2, 128),
        convolution(2, 2, 70, "channels last"),
        SCALED,
        convolution(3, 2, 150, "gate", "fast"),
        convolution(3, 2, 130, "gate", K=40),
        PACKED,
        convolution(3, 4, 90, "gate", "strided"),
        convolution(3, 2, 200, "gate", "spectrum", quick=True),
        convolution(3, 2, 200, "gate", "spectrum", "strided"),
        convolution(2, 2, 500, "gate", "spectrum", "fast"),
        LONG,
        convolution(2, 1, 2100, "gate", "spectrum", "fast"),
        PRODUCTS,
        convolution(2, 2, 130, "gate", P=4),
        convolution(1, 2, 150, "gate", texts=5, P=3),
        convolution(3, 2, 90, "gate", "strided", P=3),
        convolution(3, 2, 100, "gate", "spectrum", P=3),
        convolution(1, 1, 1100, "spectrum", P=2),
    ),
    "diagonal_scan": SCANS,
    "selective_scan": (
        sequence(2, 20, 70, 16, quick=True),
        sequence(2, 20, 1, 16, "state"),
        sequence(1, 20, 77, 16, "state", "packed", "channels last"),
        sequence(2, 20, 40, 16, "constant", "bare"),
        Case({"B": 2, "D": 16, "L": 40, "N": 16, "G": 4}, ("state",)),
        sequence(1, 20, 40, 5),
        sequence(1, 4, 20, 64),
        sequence(2, 20, 33, 16, "strided"),
    ),
    "selective_state_update": (
        Case({"B": 2, "D": 20, "N": 16}, (), True),
        Case({"B": 2, "D": 12, "N": 5, "G": 3}, ("half state",)),
        Case({"B": 2, "H": 4, "P": 10, "N": 128, "G": 2}, (), True),
        Case({"B": 2, "D": 20, "N": 16}, ("strided",)),
    ),
    "gated_scan": (
        gated(2, 37, 40, quick=True),
        PIECES,
        gated(2, 1, 40, "state"),
        gated(1, 150, 33, "state", "packed", "float32 gates"),
        gated(2, 150, 5, "strided"),
    ),
}

# Few, with every kernel among them: the quick cases, and what these leave out.
OTHERS = (LONG, PRODUCTS, PACKED, SCALED, STEP, GRIDS, COPIED, IN_REGISTERS, MANY_GRIDS[0], SEVENTEEN, PIECES)
EACH_KERNEL: dict[str, tuple[Case, ...]] = {
    op: tuple(case for case in cases if case.quick or case in OTHERS) for op, cases in CASES.items()
}


def usual_dtype(op: str, case: Case) -> str:
    """Return the dtype in which a case shows its kernels: bfloat16, where the op has it and the case no other."""
    return "bfloat16" if "bfloat16" in OPS[op].dtypes and case != SCALED else "float32"
