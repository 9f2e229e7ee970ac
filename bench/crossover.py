"""Time the convolution algorithms of a device against each other: `firebolt bench crossover`.

Prints, for each width D and batch B, milliseconds of each algorithm over L, forward and forward + backward, the fastest
of them, the one that `choose_algorithm` takes, and that one's time over the fastest's. The table in
kernels/fft_conv/choice.py comes from here.
"""

import math
from functools import partial

import torch

from ..kernels.fft_conv.choice import choose_algorithm
from ..kernels.fft_conv.op import convolve_by
from ..kernels.fft_conv.pytorch import ALGORITHMS
from .timing import Run, clock_name, time_in_turns

WIDTHS = (64, 256, 1024)
BATCHES = (1, 8)
LENGTHS = (16, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 32768)
# An algorithm this many times slower than the fastest is not timed at greater lengths.
HOPELESS = 8.0


def algorithms(device: str) -> dict:
    """Return the algorithms by name, as functions of u and k."""
    if device == "cpu":
        return ALGORITHMS
    return {form: partial(convolve_by, form) for form in ("toeplitz", "monarch", "vendor")}


def time_algorithms(
    names: list[str], B: int, D: int, L: int, dtype: torch.dtype, backward: bool, seconds: float, device: str = "cpu"
) -> dict[str, float]:
    """Shortest time of each, in ms: other work on the machine only ever adds."""
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(shape, generator=generator) for shape in ((B, D, L), (D, L), (B, D, L)))
    u, k, grad = (tensor.to(device, dtype) for tensor in tensors)
    u.requires_grad_(backward)
    k.requires_grad_(backward)
    known = algorithms(device)

    def run(name: str):
        y = known[name](u, k)
        if backward:
            torch.autograd.grad(y, (u, k), grad)

    times = time_in_turns({name: Run(lambda _, name=name: run(name)) for name in names}, device, seconds)
    return {name: min(ms) for name, ms in times.items()}


def print_crossover(dtype_name: str, seconds: float, longest: int, device: str = "cpu") -> None:
    """The table, as it comes: `seconds` for each algorithm and size, lengths up to `longest`."""
    dtype, known = getattr(torch, dtype_name), list(algorithms(device))
    torch.set_num_threads(1)
    name = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name()
    print(f"{dtype_name}, {name}, {clock_name(device)}; shortest time in ms")
    for backward in (False, True):
        print("forward + backward" if backward else "forward")
        print(f"{'D':>5} {'B':>2} {'L':>5} " + " ".join(f"{name:>9}" for name in known) + "  fastest   chosen    ratio")
        for D in WIDTHS:
            for B in BATCHES:
                names = known
                for L in (length for length in LENGTHS if length <= longest):
                    ms = time_algorithms(names, B, D, L, dtype, backward, seconds, device)
                    fastest = min(ms, key=ms.get)
                    columns = " ".join(f"{ms[name]:9.3f}" if name in ms else " " * 9 for name in known)
                    chosen = choose_algorithm(L, D, B, dtype, device, kernels=device != "cpu")
                    ratio = ms[chosen] / ms[fastest] if chosen in ms else math.nan
                    print(f"{D:5} {B:2} {L:5} {columns}  {fastest:9} {chosen:9} {ratio:5.2f}", flush=True)
                    names = [name for name in names if ms[name] < HOPELESS * ms[fastest]]
