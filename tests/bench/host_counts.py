"""Count compilations and launches by a driver that launches nothing, as JSON: run by test_host.py, not interpreted."""

import json
import sys

import torch

from firebolt_vl import kernels
from firebolt_vl.bench.cases import OPS, Case, inputs
from firebolt_vl.bench.compile import run_backward, run_forward
from firebolt_vl.bench.host import compilations, varied
from firebolt_vl.bench.silent import silent_driver
from firebolt_vl.kernels import use_implementation
from firebolt_vl.kernels.compiled import specialization
from firebolt_vl.kernels.launch import recording

SMALL = Case({"B": 2, "T": 8, "G": 3, "D": 16})


def call(batch: int) -> None:
    given = inputs("film_residual", SMALL._replace(sizes=SMALL.sizes | {"B": batch}), "float16", fill=False)
    with torch.no_grad(), use_implementation("triton"):
        kernels.film_residual(*given.args)


def layouts(op: str) -> int:
    """How many layouts one choice of tiles is compiled for at most: of equal constants, options and parameters."""
    found: dict[tuple, set] = {}
    for case in varied(op):
        with recording() as launches, use_implementation("triton"):
            call = inputs(op, case, OPS[op].dtypes[-1], fill=False)
            leaves = call.map(lambda x: x.requires_grad_(x.is_floating_point() or x.is_complex()))
            run_backward(leaves, run_forward(op, leaves))
        for launch in launches:
            classes = specialization(launch.kernel, tuple(launch.arguments.values()))
            tiles = launch.kernel.fn.__name__, *launch.options.values(), *(tiles_of(*pair) for pair in classes)
            found.setdefault(tiles, set()).add(classes)
    return max(map(len, found.values()))


def tiles_of(kind, known):
    """A parameter's class without what is known of numbers."""
    if isinstance(kind, tuple):
        numbers = all(field in ("i32", "constexpr") for field in kind) and set(known) <= {"", "D", 1}
        return len(kind) if numbers else tuple(map(tiles_of, kind, known))
    return kind, known if kind == "constexpr" else None


def main() -> None:
    found = {"counts": {}, "layouts": {}}
    for op in OPS:
        dtype = OPS[op].dtypes[-1]
        found["counts"][op] = compilations(op, dtype, gradients=True).total()
        found["layouts"][op] = layouts(op)
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
