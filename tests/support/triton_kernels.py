"""Running an op by its Triton kernels and holding it to the error budget of its definition.

On a machine without a GPU, and wherever TRITON_INTERPRET=1, kernels run in Triton's interpreter on the CPU, which knows
float32 and float16; on a GPU (`make test-gpu`) they are compiled, and bfloat16 is tested too.
"""

import os
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from numerics import assert_within_budget, largest

from firebolt_vl.kernels import reference
from firebolt_vl.kernels.common.device import TRITON_INSTALLED, use_implementation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
# What a test file of kernels carries: `make test-gpu` runs everything marked `triton`.
MARKS = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON_INSTALLED, reason="Triton's wheels are for Linux"),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="neither the interpreter nor a GPU"),
]


@contextmanager
def poisoned_memory():
    """New memory is NaN, so that an element which no kernel writes shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    with mock.patch("torch.empty", poisoned):
        yield


def results(op, leaves, cotangents, **options):
    """Outputs and gradients of all leaves."""
    outputs = op(*leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [c.to(o) for c, o in zip(cotangents, outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]


def fresh_leaves(tensors, dtype=None):
    """Leaves on the device that keep their strides, in their own dtypes or another."""
    return [tensor.detach().to(DEVICE, dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def by_triton(op, tensors, cotangents, **options):
    with use_implementation("triton"), poisoned_memory():
        return results(op, fresh_leaves(tensors), cotangents, **options)


def check_against_definition(op, tensors, cotangents, alike=(), **options):
    """Value and every gradient within the budget; returns what the kernels gave.

    A maximum can be lucky, so the reference's own error is the largest of several runs: on the inputs as they are, and
    in other orders and roundings that are as good (`alike`: pairs of functions, there and back, see `reorderings`).
    """
    definition = getattr(reference, op.__name__)
    options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    found = by_triton(op, tensors, cotangents, **options)
    exact = results(definition, fresh_leaves(tensors, torch.float64), cotangents, **options)
    runs = [results(definition, fresh_leaves(tensors), cotangents, **options)]
    for change, restore in alike if tensors[0].dtype == torch.float32 else ():
        changed, changed_cotangents, changed_options = change(tensors, cotangents, options)
        runs.append(restore(results(definition, fresh_leaves(changed), changed_cotangents, **changed_options)))
    for number, ours in enumerate(found):
        assert ours.dtype == runs[0][number].dtype
        worst = max((run[number] for run in runs), key=lambda theirs: largest(theirs.detach().double() - exact[number]))
        assert_within_budget(ours, worst, exact[number])
    return found


def dtypes():
    return st.sampled_from(DTYPES)
