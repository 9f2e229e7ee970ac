"""Compile the toy kernels and print the rows as JSON: run by test_compile.py without TRITON_INTERPRET."""

import json
import sys
import tempfile
from dataclasses import asdict

import torch
import toy_kernels

from firebolt_vl.bench.compile import CHIPS, compile_job, is_interpreting, prepare_process, specialise
from firebolt_vl.kernels.launch import launch, recording


def main() -> None:
    assert not is_interpreting()
    half, single = torch.empty(64, 64, dtype=torch.bfloat16), torch.empty(128, 128)
    with recording() as launches:
        for n in (333, 334, 336):
            launch(toy_kernels.scale, (4,), half, single, (64, 1), n, 0.5, None, 128, num_warps=4)
        launch(toy_kernels.product, (1,), half, half, single, 64, "ieee", num_warps=4)
        launch(toy_kernels.product, (1,), single, single, single, 16, "ieee", num_warps=4)
        launch(toy_kernels.product, (1,), single, single, single, 64, "ieee", num_warps=4)
        launch(toy_kernels.broken, (1,), single, num_warps=4)
    jobs = {}
    for number, one in enumerate(launches):
        for target in CHIPS if number != 5 else ("sm_90",):
            job = specialise(one, "toy", str(number), "bfloat16", target)
            jobs.setdefault(job.key(), job)
    with tempfile.TemporaryDirectory() as folder:
        prepare_process(folder)
        json.dump([asdict(compile_job(job)) for job in jobs.values()], sys.stdout)


if __name__ == "__main__":
    main()
