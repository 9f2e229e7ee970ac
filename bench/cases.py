"""The sizes at which every op is compiled and measured, and inputs for them: adding an op is adding one entry."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALVES_AND_FLOAT32 = ("float32", "float16", "bfloat16")


class Case(NamedTuple):
    """One size of an op."""

    sizes: dict[str, int]
    options: tuple[str, ...] = ()
    """What else varies: "masks", "dropout", "truncate", "no norm", "float32 parameters"; of convolutions "gate",
    "fast", "spectrum", "channels last"; of scans "state", "packed", "channels last", "constant" (B, C), "bare" (no
    skip, no gate), "float32 gates"; of state updates "half state"."""
    quick: bool = False
    """Whether the short selections (`--quick`, CI) have it."""
    timed: bool = True
    """Whether the reference implementation has the same arguments and error budget: else it is not measured."""

    def __str__(self) -> str:
        return " ".join([*(f"{name}={size}" for name, size in self.sizes.items()), *self.options])


class Inputs(NamedTuple):
    """Arguments of an op."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    def leaves(self) -> list[Tensor]:
        """The tensors that gradients are taken of: all with fractions."""
        return [tensor for tensor in self.tensors() if tensor.is_floating_point() or tensor.is_complex()]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        args = tuple(change(value) if isinstance(value, Tensor) else value for value in self.args)
        named = {name: change(value) if isinstance(value, Tensor) else value for name, value in self.kwargs.items()}
        return Inputs(args, named)


class Maker:
    """Makes the tensors of a case: random ones, or, with `fill=False`, memory as it comes, which costs nothing."""

    def __init__(self, dtype: str, device: str = "cpu", fill: bool = True, seed: int = 0):
        self.dtype, self.device, self.fill = getattr(torch, dtype), device, fill
        self.generator = torch.Generator(device).manual_seed(seed)

    def real(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if not self.fill:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype)

    def complex(self, *shape: int) -> Tensor:
        return torch.complex(self.real(*shape, dtype=torch.float32), self.real(*shape, dtype=torch.float32))

    def kept(self, *shape: int) -> Tensor:
        """A mask that keeps four of five."""
        return torch.rand(shape, generator=self.generator, device=self.device) < 0.8

    def log_modes(self, *shape: int) -> Tensor:
        """Logarithms of modes such as S4D's: a decay of 0.001 to 1 a step, any angle."""
        uniform = torch.rand(2, *shape, generator=self.generator, device=self.device)
        return torch.complex(-(0.001 ** uniform[0]), 6.3 * uniform[1])

    def parameter(self, case: Case, *shape: int) -> Tensor:
        """Weights of a layer, which autocast leaves in float32."""
        return self.real(*shape, dtype=torch.float32 if "float32 parameters" in case.options else None)


class Op(NamedTuple):
    """An op's cases, and how its arguments are made."""

    make: Callable[[Maker, Case], Inputs]
    cases: tuple[Case, ...]
    dtypes: tuple[str, ...] = HALVES_AND_FLOAT32
    loops: bool = False
    """Whether the reference implementation is a Python loop over time, which torch.compile would unroll for minutes."""
    in_place: bool = False
    """Whether it changes its first argument, and so has no gradients."""

    def leaves(self, call: Inputs) -> Inputs:
        """The same arguments, of which gradients are wanted if the op has them."""
        if self.in_place:
            return call
        return call.map(lambda tensor: tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex()))

    def modes(self, modes: Sequence[str]) -> list[str]:
        """Those of the benchmarks' modes that the op has."""
        return [mode for mode in modes if mode == "forward" or not self.in_place]


def inputs(op: str, case: Case, dtype: str, device: str = "cpu", *, fill: bool = True, seed: int = 0) -> Inputs:
    """Arguments of the public function `op` at a size; a dtype by its name. Complex arguments are complex64."""
    return OPS[op].make(Maker(dtype, device, fill, seed), case)


def _weights_options(make: Maker, case: Case) -> dict[str, Any]:
    sizes, options = case.sizes, {"renormalize": "truncate" not in case.options}
    if "masks" in case.options:
        options |= {"grid_mask": make.kept(sizes["B"], sizes["G"]), "text_mask": make.kept(sizes["B"], sizes["T"])}
    if "dropout" in case.options:
        options |= {"dropout_p": 0.1, "seed": torch.tensor(7, device=make.device)}
    return options


def _queries_and_keys(make: Maker, case: Case) -> tuple[Tensor, Tensor]:
    B, T, G, H, D_h = (case.sizes[name] for name in ("B", "T", "G", "H", "D_h"))
    return make.real(B, T, H, D_h), make.real(B, G, H, D_h)


def _correlation_context(make: Maker, case: Case) -> Inputs:
    v = make.real(*(case.sizes[name] for name in ("B", "G", "D")))
    return Inputs((*_queries_and_keys(make, case), v, case.sizes["K"]), _weights_options(make, case))


def _film_parameters(make: Maker, case: Case) -> tuple[Tensor, Tensor]:
    return make.parameter(case, 2 * case.sizes["D"]), make.parameter(case, 1)


def _norm(make: Maker, case: Case) -> tuple[Tensor, Tensor]:
    return make.parameter(case, case.sizes["D"]), make.parameter(case, case.sizes["D"])


def _grounded_film(make: Maker, case: Case) -> Inputs:
    B, T, G, D = (case.sizes[name] for name in ("B", "T", "G", "D"))
    x, table = make.real(B, T, D), make.real(B, G, 2 * D)
    args = (x, *_queries_and_keys(make, case), table, *_film_parameters(make, case), *_norm(make, case))
    return Inputs(args, {"top_k": case.sizes["K"], **_weights_options(make, case)})


def _film_residual(make: Maker, case: Case) -> Inputs:
    B, T, G, D = (case.sizes[name] for name in ("B", "T", "G", "D"))
    args = (make.real(B, T, D), make.real(B, T, D), make.real(B, T, G), make.real(B, G, 2 * D))
    norm = () if "no norm" in case.options else _norm(make, case)
    return Inputs((*args, *_film_parameters(make, case), *norm), {})


def _vandermonde(make: Maker, case: Case) -> Inputs:
    D, N, L = (case.sizes[name] for name in ("D", "N", "L"))
    return Inputs((make.complex(D, N), make.log_modes(D, N), L), {})


def _cauchy(make: Maker, case: Case) -> Inputs:
    D, N, L = (case.sizes[name] for name in ("D", "N", "L"))
    nodes = torch.arange(L // 2 + 1, device=make.device) * (6.2831853 / L)
    z = torch.complex(0.1 + 0 * nodes, 2 * torch.tan(nodes / 2.1))  # the bilinear map's nodes, kept off the poles
    rows = [case.sizes["R"]] if "R" in case.sizes else []
    return Inputs((make.complex(*rows, D, N), z, make.log_modes(D, N)), {})


def _fft_conv(make: Maker, case: Case) -> Inputs:
    B, D, L = (case.sizes[name] for name in ("B", "D", "L"))
    # SSM parameters and the kernels made of them are float32 in models of any dtype.
    k, d_skip = (make.real(*shape, dtype=torch.float32) for shape in ((D, case.sizes.get("K", L)), (D,)))
    options = {"gate": make.real(B, D, L)} if "gate" in case.options else {}
    if "fast" in case.options:
        options["precision"] = "fast"
    if "spectrum" in case.options:
        options["k_spectrum"] = torch.fft.rfft(k, max(512, 2 ** (2 * L - 1).bit_length()))
    if "texts" in case.sizes:
        texts = case.sizes["texts"]
        options["cu_seqlens"] = torch.arange(texts + 1, device=make.device) * L // texts
    if "P" in case.sizes:
        options["product_weights"] = make.real(D, case.sizes["P"] - 1, dtype=torch.float32)
    u = make.real(B, L, D).mT if "channels last" in case.options else make.real(B, D, L)
    return Inputs((u, k, d_skip), options)


def _diagonal_scan(make: Maker, case: Case) -> Inputs:
    B, D, L, N = (case.sizes[name] for name in ("B", "D", "L", "N"))
    d_skip = make.real(D, dtype=torch.float32)
    texts, packed = B, {}
    if "packed" in case.options:
        texts, packed = 2, {"cu_seqlens": torch.tensor([0, L // 3, L], device=make.device)}
    h0 = make.complex(texts, D, N) if "state" in case.options else None
    modes = make.log_modes(D, N).exp()
    u = make.real(B, L, D).mT if "channels last" in case.options else make.real(B, D, L)
    return Inputs((u, modes, make.complex(D, N), make.complex(D, N), d_skip, h0), packed)


def _selective_scan(make: Maker, case: Case) -> Inputs:
    B, D, L, N = (case.sizes[name] for name in ("B", "D", "L", "N"))
    groups = [case.sizes["G"]] if "G" in case.sizes else []
    texts = 4 if "packed" in case.options else B

    def over_time() -> Tensor:
        return make.real(B, L, D).mT if "channels last" in case.options else make.real(B, D, L)

    A = -torch.arange(1.0, N + 1, device=make.device).expand(D, N).contiguous()

    def matrix() -> Tensor:
        if "constant" in case.options:
            return make.real(D, N)
        # Modes last where channels are, as the slices of one projection are.
        return make.real(B, *groups, L, N).mT if "channels last" in case.options else make.real(B, *groups, N, L)

    B_and_C = matrix(), matrix()
    # Steps are positive, which softplus sees to where it is asked for: otherwise states would grow.
    delta = over_time().abs() if "bare" in case.options else over_time()
    arguments = (over_time(), delta, A, *B_and_C)
    rest = {}
    if "bare" not in case.options:
        rest |= {"D": make.real(D, dtype=torch.float32), "z": over_time()}
        rest |= {"delta_bias": make.real(D, dtype=torch.float32), "delta_softplus": True}
    if "state" in case.options:
        rest |= {"return_last_state": True, "initial_state": make.real(texts, D, N, dtype=torch.float32)}
    if "packed" in case.options:
        rest["cu_seqlens"] = torch.tensor([0, L // 3, L // 3, L // 2, L], device=make.device)
    return Inputs(arguments, rest)


def _selective_state_update(make: Maker, case: Case) -> Inputs:
    """Make one step size, decay and skip for a head where there are heads [H,P], as Mamba-2 has them."""
    B, N = case.sizes["B"], case.sizes["N"]
    heads = [case.sizes[name] for name in ("H", "P") if name in case.sizes]
    channels = heads or [case.sizes["D"]]
    groups = [case.sizes["G"]] if "G" in case.sizes else []

    def of_channels(*rows: int, dtype: torch.dtype | None = None) -> Tensor:
        if not heads:
            return make.real(*rows, *channels, dtype=dtype)
        return make.real(*rows, heads[0], 1, dtype=dtype).expand(*rows, *heads)

    A = of_channels(dtype=torch.float32).exp().neg().unsqueeze(-1).expand(*channels, N)
    state = make.real(B, *channels, N, dtype=None if "half state" in case.options else torch.float32)
    arguments = (state, make.real(B, *channels), of_channels(B), A, make.real(B, *groups, N), make.real(B, *groups, N))
    rest = {"D": of_channels(dtype=torch.float32), "z": make.real(B, *channels)}
    return Inputs(arguments, rest | {"dt_bias": of_channels(dtype=torch.float32), "dt_softplus": True})


def _gated_scan(make: Maker, case: Case) -> Inputs:
    B, T, D = (case.sizes[name] for name in ("B", "T", "D"))
    gates = make.real(B, T, D, dtype=torch.float32 if "float32 gates" in case.options else None).sigmoid()
    texts, packed = B, {}
    if "packed" in case.options:
        texts, packed = 4, {"cu_seqlens": torch.tensor([0, T // 3, T // 3, T // 2, T], device=make.device)}
    state = make.real(texts, D, dtype=torch.float32) if "state" in case.options else None
    return Inputs((gates, make.real(B, T, D), state), packed)


def correlation(B: int, T: int, G: int, K: int, *options: str, D=1024, H=4, D_h=32, quick=False) -> Case:
    return Case({"B": B, "T": T, "G": G, "K": K, "D": D, "H": H, "D_h": D_h}, options, quick)


CORRELATION_CASES = (
    correlation(8, 512, 5, 4, quick=True),
    correlation(8, 512, 5, 4, "masks", "dropout", quick=True),
    correlation(8, 512, 5, 4, "truncate", "masks", D=768),
    correlation(8, 512, 5, 4, "float32 parameters", D=768),
    correlation(4, 333, 5, 2, "masks", D=768, H=3, D_h=24),
    correlation(32, 1, 5, 4),
    correlation(8, 64, 1, 1),
    correlation(8, 512, 8, 3, "masks", "dropout"),
    correlation(8, 512, 8, 8, D=2048, H=8),
    correlation(8, 512, 16, 8, "dropout"),
    correlation(16, 512, 17, 4, "masks"),
    correlation(8, 512, 64, 32, "truncate", quick=True),
    correlation(2, 2048, 256, 4),
    correlation(2, 2048, 256, 128, "masks", "dropout"),
    correlation(1, 4096, 5, 5),
    correlation(1, 1024, 1024, 4),
    correlation(1, 1024, 1024, 512, "masks", "truncate", quick=True),
)


def residual(B: int, T: int, G: int, *options: str, D=1024, quick=False) -> Case:
    return Case({"B": B, "T": T, "G": G, "D": D}, options, quick)


RESIDUAL_CASES = (
    residual(8, 512, 5, quick=True),
    residual(8, 512, 5, "no norm"),
    residual(8, 512, 5, "float32 parameters", D=768),
    residual(4, 333, 5, D=768),
    residual(32, 1, 5),
    residual(8, 64, 1),
    residual(8, 512, 8, D=2048),
    residual(8, 512, 16),
    residual(16, 512, 17, "no norm"),
    residual(8, 512, 64, quick=True),
    residual(2, 2048, 256),
    residual(1, 4096, 5, "no norm"),
    residual(1, 1024, 1024, quick=True),
)


def modes(D: int, N: int, L: int, quick: bool = False) -> Case:
    return Case({"D": D, "N": N, "L": L}, (), quick)


MODE_CASES = (
    *(modes(1024, 32, L, quick=L == 512) for L in (64, 512, 2048, 8192)),
    modes(768, 24, 777),
    modes(1024, 64, 2048),
    modes(64, 70, 1000),
)


def convolution(B: int, D: int, L: int, *options: str, quick: bool = False, **sizes: int) -> Case:
    # The reference implementation has no gradient for a spectrum, and "fast" is beyond its budget in 16 bits.
    timed = not {"spectrum", "fast"} & set(options)
    return Case({"B": B, "D": D, "L": L, **sizes}, options, quick, timed)


CONVOLUTION_CASES = (
    *(convolution(8, 1024, L, quick=L == 512) for L in (1, 64, 512, 1000, 4096)),
    convolution(8, 1024, 512, "channels last", quick=True),  # what S4 and S4D have
    convolution(8, 1024, 512, "gate", "fast", quick=True),
    *(convolution(8, 1024, L, "gate") for L in (2001, 2048)),
    convolution(8, 1024, 4096, "gate", "fast"),
    convolution(1, 768, 1024, "gate", texts=7),
    *(convolution(8, 1024, L, "gate", "spectrum") for L in (256, 512)),
    convolution(8, 1024, 1024, "gate", "spectrum", "fast", quick=True),
    convolution(1, 768, 8192),
    convolution(4, 256, 32768, "gate", "spectrum"),
    convolution(4, 256, 32768, "spectrum", "fast"),
    # With products of P inputs, as Liquid-S4 has them.
    convolution(8, 1024, 512, "channels last", P=2, quick=True),
    convolution(8, 1024, 2048, "gate", P=4),
    convolution(1, 768, 1024, texts=7, P=3),
    convolution(8, 1024, 1024, "gate", "spectrum", "fast", P=2),
    convolution(8, 1024, 256, "gate", "spectrum", P=3),
    convolution(4, 256, 32768, "spectrum", P=2),
)


def gated(B: int, T: int, D: int, *options: str, quick: bool = False) -> Case:
    return Case({"B": B, "T": T, "D": D}, options, quick)


def sequence(B: int, D: int, L: int, N: int, *options: str, quick: bool = False) -> Case:
    return Case({"B": B, "D": D, "L": L, "N": N}, options, quick)


OPS = {
    "correlation_context": Op(_correlation_context, CORRELATION_CASES),
    "grounded_film": Op(_grounded_film, CORRELATION_CASES),
    "film_residual": Op(_film_residual, RESIDUAL_CASES),
    "vandermonde": Op(_vandermonde, MODE_CASES, ("float32",)),
    "cauchy": Op(_cauchy, (*MODE_CASES, Case({"R": 4, "D": 1024, "N": 32, "L": 512})), ("float32",)),
    "fft_conv": Op(_fft_conv, CONVOLUTION_CASES),
    "diagonal_scan": Op(
        _diagonal_scan,
        (
            *(sequence(8, 1024, L, 32, quick=L == 512) for L in (1, 64, 512, 2048)),
            sequence(2, 768, 777, 24, "state"),
            sequence(32, 1024, 1, 32, "state"),
            sequence(1, 1024, 4096, 64),
            sequence(1, 1024, 1000, 32, "state", "packed"),
            sequence(8, 1024, 512, 32, "channels last", quick=True),
            sequence(1, 1024, 2048, 32, "channels last"),
            sequence(1, 1024, 200, 32, "state", "channels last"),
        ),
        loops=True,
    ),
    "selective_scan": Op(
        _selective_scan,
        (
            *(sequence(8, 1024, L, 16, quick=L == 512) for L in (1, 64, 512, 2048)),
            sequence(8, 2048, 512, 16, "state", "channels last", quick=True),
            sequence(8, 2048, 1, 16, "state"),
            sequence(2, 768, 777, 16, "state"),
            sequence(1, 768, 777, 16, "state", "packed", "channels last", quick=True),
            sequence(2, 768, 512, 16, "constant", "bare"),
            Case({"B": 2, "D": 768, "L": 512, "N": 16, "G": 4}, ("state",)),
            *(sequence(2, 256, 512, N) for N in (1, 5, 32, 64, 256, 1000)),
        ),
        loops=True,
    ),
    "selective_state_update": Op(
        _selective_state_update,
        (
            *(Case({"B": B, "D": 2048, "N": 16}, (), B == 8) for B in (1, 8, 128)),
            Case({"B": 8, "D": 2048, "N": 16, "G": 4}, ("half state",)),
            Case({"B": 8, "H": 32, "P": 64, "N": 128}, (), True),
            Case({"B": 8, "H": 24, "P": 64, "N": 128, "G": 8}),
            Case({"B": 2, "D": 256, "N": 5}),
        ),
        in_place=True,
    ),
    "gated_scan": Op(
        _gated_scan,
        (
            gated(8, 2048, 1024, quick=True),
            gated(8, 2048, 1024, "float32 gates"),
            gated(8, 512, 2048, "state"),
            gated(32, 1, 1024, "state"),
            gated(1, 16384, 512),
            gated(1, 777, 768, "state", "packed", quick=True),
            gated(2, 4096, 24),
        ),
        loops=True,
    ),
}
