"""What a driver that launches nothing is given, as JSON: run by test_host.py, not interpreted.

Counted are compilations, launches, and the functions that a call enters; compared is what a call done again launches
with what it launches as it is written.
"""

import json
import sys
from collections import Counter
from unittest import mock

import torch
from torch import Tensor

from firebolt_vl import kernels
from firebolt_vl.bench import silent
from firebolt_vl.bench.cases import OPS, Case, Inputs, inputs
from firebolt_vl.bench.compile import run_backward, run_forward
from firebolt_vl.bench.host import base, compilations, resized, varied
from firebolt_vl.bench.silent import silent_driver
from firebolt_vl.kernels import replay, use_implementation
from firebolt_vl.kernels.compiled import specialization
from firebolt_vl.kernels.launch import recording

SMALL = Case({"B": 2, "T": 8, "G": 3, "D": 16})
# In whole vectors, and not.
MANY_GRIDS = 80, 100


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
            leaves = OPS[op].leaves(call)
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


def launched(op: str, given: Inputs) -> list:
    """What a call without gradients launches, and last its outputs: grids and arguments one after the other."""
    seen = []

    def run(self, *arguments) -> None:
        (*grid, _, _, _, _, _, _), parameters = arguments[:9], arguments[9:]
        seen.extend((self.name, *grid, *flattened(parameters)))

    with mock.patch.object(silent._Kernel, "run", run), torch.no_grad():
        outputs = run_forward(op, given)
    return [*seen, *outputs]


def flattened(arguments: tuple) -> list:
    """Fields of tuples one after the other; constants as they are compared."""
    flat = []
    for argument in arguments:
        flat += flattened(argument) if isinstance(argument, tuple) else [getattr(argument, "value", argument)]
    return flat


def is_same_again(written: list, again: list, given: Inputs) -> bool:
    """Tell whether all numbers are equal, and addresses those of the tensors given, or one for one those of others."""
    own = {tensor.data_ptr(): tensor.data_ptr() for tensor in given.tensors()}
    if len(written) != len(again):
        return False
    for one, other in zip(written, again):
        if isinstance(one, Tensor):
            at, other = one.data_ptr(), other.data_ptr() if isinstance(other, Tensor) else other
            if own.setdefault(at, other) != other:
                return False
        elif one != other:
            return False
    return len({*own.values()}) == len(own)


def entered(call) -> int:
    """Count the functions that a call enters, of Python and of C."""
    events: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: events.update([event]))
    try:
        call()
    finally:
        sys.setprofile(None)
    return events["call"] + events["c_call"]


def repeated(op: str, **sizes: int) -> tuple[bool, int, int]:
    """Whether a call done again is the same, and how many functions it enters, and one as it is written."""
    given = inputs(op, resized(base(op), B=2, T=8, L=8, **sizes), OPS[op].dtypes[-1])
    with silent_driver(), use_implementation("triton"):
        with replay.off():
            written = launched(op, given)
            as_written = entered(lambda: run_forward(op, given))
        launched(op, given)
        again = launched(op, given)
        with torch.no_grad():
            return is_same_again(written, again, given), entered(lambda: run_forward(op, given)), as_written


def main() -> None:
    found = {"counts": {}, "layouts": {}, "repeated": {}, "many grids": {}}
    for op in OPS:
        dtype = OPS[op].dtypes[-1]
        found["counts"][op] = compilations(op, dtype, gradients=True).total()
        found["layouts"][op] = layouts(op)
        found["repeated"][op] = repeated(op)
        if "G" in base(op).sizes:
            found["many grids"][op] = [repeated(op, G=grids) for grids in MANY_GRIDS]
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
