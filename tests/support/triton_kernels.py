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
from numerics import assert_within_budget, largest, relative_error

from firebolt_vl.kernels import reference
from firebolt_vl.kernels.common.device import TRITON_INSTALLED, use_implementation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
VARIATIONS = 100
# The floor of the budget. In float32 a few numbers, each a sum, are now and then up to three roundings off, in whatever
# order, while the definition happens to be within half a one on all draws: with a floor of one rounding an example in
# some hundreds fails.
ROUNDINGS = {torch.float32: 3}
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
    """Outputs and gradients of all leaves; complex ones as real and imaginary parts in a last axis."""
    outputs = op(*leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [c.to(o) for c, o in zip(cotangents, outputs)]
    found = [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]
    return [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor for tensor in found]


def fresh_leaves(tensors):
    """Leaves on the device that keep their strides."""
    return [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]


def widened(tensor):
    """In float64 or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def by_triton(op, tensors, cotangents, **options):
    with use_implementation("triton"), poisoned_memory():
        return results(op, fresh_leaves(tensors), cotangents, **options)


def check_against_definition(op, tensors, cotangents, tied=(), definition=None, roundings=ROUNDINGS, **options):
    """Value and every gradient within the budget; returns what the kernels gave. The definition is that of the same
    name, unless it is given.

    A maximum can be lucky. Where the definition's own error on these inputs does not make room for the kernel's, it is
    measured on more that differ by a thousandth, and the largest counts. The tensors whose numbers are `tied` differ by
    one factor, so that equals stay equal. `roundings` says for which dtypes the floor is more than one.
    """
    definition = definition or getattr(reference, op.__name__)
    options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}

    def defined(tensors):
        return results(definition, fresh_leaves(tensors), cotangents, **options)

    found, exact = by_triton(op, tensors, cotangents, **options), defined(map(widened, tensors))
    wanted = defined(tensors)
    assert [ours.dtype for ours in found] == [theirs.dtype for theirs in wanted]
    try:
        for ours, theirs, truth in zip(found, wanted, exact):
            assert_within_budget(ours, theirs, truth, roundings=roundings.get(ours.dtype, 1))
    except AssertionError:
        own = own_errors(wanted, exact)
        for _ in range(VARIATIONS):
            varied = [varied_a_little(tensor, as_a_whole=number in tied) for number, tensor in enumerate(tensors)]
            own = map(max, own, own_errors(defined(varied), defined(map(widened, varied))))
        for ours, error, truth in zip(found, own, exact):
            assert_within_budget(ours, error * largest(truth), truth, roundings=roundings.get(ours.dtype, 1))
    return found


def own_errors(found, exact):
    """Relative errors; of what is zero, such as the gradient through LayerNorm of one number, none."""
    return [relative_error(theirs, truth) if truth.any() else 0.0 for theirs, truth in zip(found, exact)]


def varied_a_little(tensor, as_a_whole: bool):
    """The tensor with every number changed by a thousandth at most, or all of them by a factor of few bits."""
    if as_a_whole:
        return tensor * (1 + torch.randint(-8, 9, ()).item() / 1024)
    return (widened(tensor) * (1 + 1e-3 * (2 * torch.rand(tensor.shape) - 1))).to(tensor.dtype)


def dtypes():
    return st.sampled_from(DTYPES)
