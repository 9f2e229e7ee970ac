"""Time the three convolution algorithms against each other: `firebolt bench crossover`.

Prints, for each width D and batch B, milliseconds of each algorithm over L, forward and forward + backward, the fastest
of them and the one that `choose_algorithm` takes. The table in kernels/fft_conv/choice.py comes from here.
"""

import time

import torch

from ..kernels.fft_conv.choice import choose_algorithm
from ..kernels.fft_conv.pytorch import ALGORITHMS

WIDTHS = (64, 256, 1024)
BATCHES = (1, 8)
LENGTHS = tuple(2**p for p in range(4, 14))
# An algorithm this many times slower than the fastest is not timed at greater lengths.
HOPELESS = 8.0
MOST_TURNS = 200


def fastest_ms(runs: dict, seconds: float) -> dict[str, float]:
    """Shortest processor time of each function, taken in turns for about `seconds` each.

    Both for the sake of busy machines, where other work only ever adds.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    for _ in range(MOST_TURNS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - start))
        if time.perf_counter() > end:
            break
    return {name: min(values) for name, values in times.items()}


def time_algorithms(names: list[str], B: int, D: int, L: int, dtype: torch.dtype, backward: bool, seconds: float):
    generator = torch.Generator().manual_seed(0)
    u, k, grad = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((B, D, L), (D, L), (B, D, L)))
    u.requires_grad_(backward)
    k.requires_grad_(backward)

    def run(name: str):
        y = ALGORITHMS[name](u, k)
        if backward:
            torch.autograd.grad(y, (u, k), grad)

    return fastest_ms({name: lambda name=name: run(name) for name in names}, seconds)


def print_crossover(dtype_name: str, seconds: float, longest: int) -> None:
    """The table, as it comes: `seconds` for each algorithm and size, lengths up to `longest`."""
    dtype = getattr(torch, dtype_name)
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{dtype_name}, one thread, {capability}; shortest processor time in ms")
    for backward in (False, True):
        print("forward + backward" if backward else "forward")
        print(f"{'D':>5} {'B':>2} {'L':>5} " + " ".join(f"{name:>9}" for name in ALGORITHMS) + "  fastest   chosen")
        for D in WIDTHS:
            for B in BATCHES:
                names = list(ALGORITHMS)
                for L in (length for length in LENGTHS if length <= longest):
                    ms = time_algorithms(names, B, D, L, dtype, backward, seconds)
                    fastest = min(ms, key=ms.get)
                    columns = " ".join(f"{ms[name]:9.3f}" if name in ms else " " * 9 for name in ALGORITHMS)
                    chosen = choose_algorithm(L, D, B, dtype, "cpu")
                    print(f"{D:5} {B:2} {L:5} {columns}  {fastest:9} {chosen}", flush=True)
                    names = [name for name in names if ms[name] < HOPELESS * ms[fastest]]
