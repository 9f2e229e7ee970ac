"""The sizes for which there is a goal on an H100, and the times that are aimed at."""

from collections.abc import Callable
from typing import NamedTuple

from ..cases import Case, gated
from .chips import H100, LAUNCH_US
from .model import memory_us


class Goal(NamedTuple):
    """A size of an op, and what its time is to be at most."""

    op: str
    case: Case
    dtype: str
    mode: str
    us: Callable[[int], float]
    """Microseconds, given the bytes of the op's floor."""
    words: str


def copy_us(count: int, launches: int = 1) -> float:
    """A copy that reads and writes so many bytes together."""
    return launches * LAUNCH_US + memory_us(count, H100)


def vendor_fft_us(case: Case) -> float:
    """The bytes and launches of a convolution by a library's FFTs of float32, each of which passes over memory once.

    Of L numbers a row: L in and L + 1 complex ones out, those in and out of the product, in again, 2L out, and with
    the skip 2L in and L out; four launches. A library needs more, such as for padding.
    """
    rows, L = case.sizes["B"] * case.sizes["D"], case.sizes["L"]
    spectrum = 2 * (L + 1)
    return copy_us(4 * rows * (L + spectrum + 2 * spectrum + spectrum + 2 * L + 3 * L), launches=4)


def product_us(case: Case) -> float:
    """The matrix product of weights and table alone, [T,G] [G,2D] for each row, of 16-bit operands."""
    B, T, G, D = (case.sizes[name] for name in "BTGD")
    moved = 2 * (B * T * G + B * G * 2 * D + B * T * 2 * D)
    operations = 2 * B * T * G * 2 * D
    return LAUNCH_US + max(
        memory_us(moved, H100), operations / H100.warpgroup_tensor / H100.processors / H100.clock_ghz / 1000
    )


def _convolution(L: int, dtype: str, us: float | None, words: str) -> Goal:
    options = ("gate", "fast") if us else ("gate",)
    case = Case({"B": 64, "D": 768, "L": L}, options)
    return Goal("fft_conv", case, dtype, "forward", lambda _: us or vendor_fft_us(case) / 2, words)


def _film(B: int, T: int, G: int, mode: str, us: Callable[[int], float], words: str) -> Goal:
    case = Case({"B": B, "T": T, "G": G, "K": 4, "D": 1024, "H": 4, "D_h": 32})
    return Goal("grounded_film", case, "bfloat16", mode, us, words)


def _many_grids(B: int, T: int, G: int) -> Goal:
    goal = _film(B, T, G, "forward", lambda _: 0.0, "1.5 times the product alone")
    return goal._replace(us=lambda _: 1.5 * product_us(goal.case))


def _diagonal_scan(L: int) -> Goal:
    case = Case({"B": 8, "D": 1024, "L": L, "N": 32})
    return Goal("diagonal_scan", case, "bfloat16", "forward", lambda _: vendor_fft_us(case), "bytes of a vendor's FFT")


def _selective_scan(mode: str, us: float) -> Goal:
    case = Case({"B": 8, "D": 2048, "L": 2048, "N": 16})
    return Goal("selective_scan", case, "bfloat16", mode, lambda _: us, "")


def _near_a_copy(op: str, case: Case, mode: str) -> Goal:
    return Goal(op, case, "bfloat16", mode, lambda floor: copy_us(floor) / 0.8, "80 % of a copy")


GOALS = (
    *(_convolution(L, "bfloat16", us, "FlashFFTConv, published") for L, us in ((256, 110), (1024, 290), (4096, 1430))),
    *(_convolution(L, "float32", None, "half of a vendor's FFT") for L in (256, 512, 1024, 2048)),
    *(_diagonal_scan(L) for L in (512, 1024, 2048, 4096)),
    _film(8, 512, 5, "forward", lambda _: 14.0, ""),
    _film(8, 512, 5, "backward", lambda floor: 3 * copy_us(floor), "3 floors"),
    _film(128, 512, 5, "forward", lambda floor: copy_us(floor) / 0.8, "80 % of a copy"),
    _film(1, 32, 5, "forward", lambda _: 6.0, ""),
    _many_grids(2, 2048, 256),
    _many_grids(1, 1024, 1024),
    _selective_scan("forward", 400.0),
    _selective_scan("backward", 1600.0),
    _near_a_copy("selective_state_update", Case({"B": 128, "D": 2048, "N": 16}), "forward"),
    _near_a_copy("selective_state_update", Case({"B": 8, "H": 32, "P": 64, "N": 128}), "forward"),
    *(_near_a_copy("gated_scan", gated(8, 2048, 2048), mode) for mode in ("forward", "backward")),
    *(_near_a_copy("gated_scan", gated(1, 16384, 512), mode) for mode in ("forward", "backward")),
)
