"""Run an op of each family in the emulator, and one kernel with mistakes, and print what came of it as JSON: run by
test_emulate.py without TRITON_INTERPRET."""

import json
import sys
import tempfile
from dataclasses import asdict

import torch
import toy_kernels

from firebolt_vl.bench.cases import OPS, convolution, correlation, gated, modes, residual, sequence
from firebolt_vl.bench.compile import prepare_process, record
from firebolt_vl.bench.emulate.cases import CASES as EMULATED
from firebolt_vl.bench.emulate.cases import EACH_KERNEL, usual_dtype
from firebolt_vl.bench.emulate.check import check
from firebolt_vl.bench.emulate.mutate import outcomes
from firebolt_vl.bench.emulate.run import emulating
from firebolt_vl.kernels.launch import launch

CASES = {
    "film_residual": (residual(1, 17, 3, "strided", D=32), "bfloat16", "sm_80"),
    "correlation_context": (correlation(1, 17, 5, 2, "masks", D=32, H=1, D_h=16), "float16", "sm_80"),
    "vandermonde": (modes(1, 5, 20), "float32", "sm_80"),
    "fft_conv": (convolution(1, 1, 40, "gate"), "bfloat16", "sm_90"),
    "diagonal_scan": (sequence(1, 1, 1, 8, "state"), "float32", "sm_80"),
    "selective_scan": (sequence(1, 4, 5, 4, "state"), "bfloat16", "sm_80"),
    "gated_scan": (gated(1, 17, 4, "state", "float32 gates"), "bfloat16", "sm_80"),
}


def toys() -> dict[str, list]:
    """What is found of a kernel that scales 100 numbers: with its mask, and told that there are more than there are."""
    found = {}
    for name, n in (("whole", 100), ("beyond", 101)):
        x, y = torch.arange(100, dtype=torch.float32), torch.empty(100)
        with emulating("sm_80") as emulation:
            launch(toy_kernels.scale, (1,), x, y, (100, 1), n, 0.5, None, 128, num_warps=4)
        found[name] = [sorted({finding.problem for finding in emulation.findings}), torch.equal(y, x / 2)]
    with emulating("sm_80") as emulation:
        launch(toy_kernels.scale, (1,), torch.empty(100), torch.empty(100), (100, 1), 100, 0.5, None, 128, num_warps=4)
        poisoned = torch.empty(100)
        launch(toy_kernels.scale, (1,), poisoned, torch.zeros(100), (100, 1), 100, 0.5, None, 128, num_warps=4)
    found["unwritten"] = [sorted({finding.problem for finding in emulation.findings}), True]
    return found


def kernels_left_out() -> list[str]:
    """The kernels that some case starts, and none of the few with every kernel among them in its usual dtype."""
    started, among = set(), set()
    for op, cases in EMULATED.items():
        started |= {launch.kernel for case in cases for dtype in OPS[op].dtypes for launch in record(op, case, dtype)}
        few = [(case, usual_dtype(op, case)) for case in EACH_KERNEL[op]]
        among |= {launch.kernel for case, dtype in few for launch in record(op, case, dtype)}
    return sorted(kernel.fn.__name__ for kernel in started - among)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare_process(folder)
        rows = [asdict(check(op, *how)) for op, how in CASES.items()]
        mistakes = [outcome._asdict() for outcome in outcomes("vandermonde", modes(1, 5, 20), "float32", "sm_80")]
        found = {"rows": rows, "mistakes": mistakes, "toys": toys(), "left out": kernels_left_out()}
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
