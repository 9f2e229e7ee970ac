"""Running an op by its Triton kernels and holding it to the error budget of its definition.

On a machine without a GPU, and wherever TRITON_INTERPRET=1, kernels run in Triton's interpreter on the CPU, which knows
float32 and float16; on a GPU (`make test-gpu`) they are compiled, and bfloat16 is tested too, as it is where compiled
kernels are emulated (`make fuzz ENGINE=emulator`).
"""

import os
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.kernels import reference
from firebolt_vl.kernels.implementation import TRITON_INSTALLED, use_implementation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("FUZZ_ENGINE") == "emulator"
DEVICE = "cpu" if INTERPRETED or EMULATED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
# What a test file of kernels carries: `make test-gpu` runs everything marked `triton`.
MARKS = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON_INSTALLED, reason="Triton's wheels are for Linux"),
    pytest.mark.skipif(
        not (INTERPRETED or EMULATED or torch.cuda.is_available()), reason="neither the interpreter nor a GPU"
    ),
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
    """Outputs and gradients of all leaves; complex ones as real and imaginary parts in a last axis."""
    outputs = op(*leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [c.to(o) for c, o in zip(cotangents, outputs)]
    found = [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]
    return [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor for tensor in found]


def fresh_leaves(tensors):
    """Leaves on the device that keep their strides."""
    return [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]


def by_triton(op, tensors, cotangents, **options):
    with use_implementation("triton"), nullcontext() if EMULATED else poisoned_memory():
        return results(op, fresh_leaves(tensors), cotangents, **options)


def check_against_definition(op, tensors, cotangents, tied=(), definition=None, terms=1, **options):
    """Value and every gradient within the budget; returns what the kernels gave. The definition is that of the same
    name, unless it is given. `tied` and `terms` are `over_budget`'s."""
    definition = definition or getattr(reference, op.__name__)
    options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    found = by_triton(op, tensors, cotangents, **options)
    kinds = [y.dtype.to_complex() if c.is_complex() else y.dtype for c, y in zip(cotangents, found)]
    cotangents = [c.to(DEVICE, kind) for c, kind in zip(cotangents, kinds)]  # what the kernels got, for float64 too

    def defined(changed):
        return results(definition, fresh_leaves(changed[: len(tensors)]), changed[len(tensors) :], **options)

    assert (problem := over_budget(found, defined, [*tensors, *cotangents], tied=tied, terms=terms)) is None, problem
    return found


def dtypes():
    return st.sampled_from(DTYPES)
