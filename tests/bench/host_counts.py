"""Count compilations and launches by a driver that launches nothing, as JSON: run by test_host.py, not interpreted."""

import json
import sys

import torch

from firebolt_vl import kernels
from firebolt_vl.bench.cases import OPS, Case, inputs
from firebolt_vl.bench.host import compilations
from firebolt_vl.bench.silent import silent_driver
from firebolt_vl.kernels import use_implementation
from firebolt_vl.kernels.launch import recording

SMALL = Case({"B": 2, "T": 8, "G": 3, "D": 16})


def call(batch: int) -> None:
    given = inputs("film_residual", SMALL._replace(sizes=SMALL.sizes | {"B": batch}), "float16", fill=False)
    with torch.no_grad(), use_implementation("triton"):
        kernels.film_residual(*given.args)


def main() -> None:
    found = {"counts": {}}
    for op in OPS:
        dtype = OPS[op].dtypes[-1]
        found["counts"][op] = compilations(op, dtype, gradients=True).total()
    with silent_driver() as seen:
        call(2)
        call(2)
        found["same"] = [len(seen.compilations), seen.launches]
        with recording():
            call(2)
        found["recorded"] = len(seen.launches)
    with silent_driver() as seen:
        call(2)
        found["anew"] = [len(seen.compilations), len(seen.launches)]
    try:
        call(2)
    except RuntimeError as error:
        found["afterwards"] = str(error)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
