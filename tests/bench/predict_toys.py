"""Predict the toy kernel with loops and print what came of it as JSON: run by test_predict.py, not interpreted."""

import json
import sys
import tempfile
from dataclasses import asdict

import torch
import toy_kernels

from firebolt_vl.bench.compile import prepare_process, specialise
from firebolt_vl.bench.predict.chips import H100
from firebolt_vl.bench.predict.compiled import compile_for_prediction
from firebolt_vl.bench.predict.model import predict
from firebolt_vl.kernels.launch import launch, recording


def main() -> None:
    x = torch.empty(1000)
    lengths = torch.tensor([3, 0, 5, 100], dtype=torch.int32)
    with recording() as launches:
        launch(toy_kernels.sums, (4,), x, x, lengths, 10, 128, num_warps=4)
    with tempfile.TemporaryDirectory() as folder:
        prepare_process(folder)
        compiled = compile_for_prediction(specialise(launches[0], "toy", "0", "float32", H100.target))
    assert not isinstance(compiled, str), compiled
    json.dump(asdict(predict(launches[0], compiled, H100)), sys.stdout)


if __name__ == "__main__":
    main()
