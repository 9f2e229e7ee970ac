"""Print which compilations would be cached beforehand and which are looked up at a launch, by op: run by
test_gpu_day.py without TRITON_INTERPRET. Nothing is compiled."""

import contextlib
import json
import sys
from unittest import mock

import torch
import triton
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction

from firebolt_vl.bench import silent
from firebolt_vl.bench.cases import OPS, Case, inputs
from firebolt_vl.bench.compile import compiled_kernel, record, run_backward, run_forward, specialise
from firebolt_vl.kernels import use_implementation

TARGET = "sm_90"


class Seen(Exception):
    """Stands for a compilation."""


def beforehand(op: str, case: Case, dtype: str) -> set[tuple[str, ...]]:
    found = set()
    with mock.patch.object(triton, "compile", noting(found)):
        for launch in record(op, case, dtype):
            try:
                compiled_kernel(specialise(launch, op, str(case), dtype, TARGET))
            except Seen:
                continue
    return found


def noting(found: set):
    """triton.compile that only notes by what the result would be found again."""

    def compile(source, target, options):
        backend = make_backend(target)
        parsed = backend.parse_options(dict(options) | source.parse_options())
        found.add((source.fn.__name__, source.hash(), parsed.hash()))
        raise Seen

    return compile


def at_launch(op: str, case: Case, dtype: str) -> set[tuple[str, ...]]:
    found, original = set(), JITFunction._do_compile

    def do_compile(self, key, signature, device, *rest):
        self.compile = noting(found)
        with contextlib.suppress(Seen):
            original(self, key, signature, device, *rest)
        kernel = silent._Kernel(self.fn.__name__, [])
        self.device_caches[device][0][key] = kernel
        return kernel

    patched = mock.patch.object(JITFunction, "_do_compile", do_compile)
    with silent.silent_driver(), patched, use_implementation("triton"):
        call = inputs(op, case, dtype, fill=False)
        with torch.no_grad():
            run_forward(op, call)
        call = OPS[op].leaves(call)
        run_backward(call, run_forward(op, call))
    return found


def main() -> None:
    rows = {}
    for op in OPS:
        case, dtype = next(case for case in OPS[op].cases if case.quick), OPS[op].dtypes[-1]
        before, later = beforehand(op, case, dtype), at_launch(op, case, dtype)
        rows[op] = [len(before), sorted(name for name, *_ in before ^ later)]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
