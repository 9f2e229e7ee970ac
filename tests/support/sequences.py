"""Lengths, gradients and comparisons for the sequence ops."""

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from numerics import assert_close, assert_within_budget

# 1, primes, powers of two and their neighbours, up to a few chunks of every op.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 31, 32, 33, 37, 61, 63, 64, 65, 97, 127, 128, 129)
lengths = st.sampled_from(LENGTHS)
few_lengths = st.sampled_from([length for length in LENGTHS if length < 40])


def outputs_and_gradients(op: Callable, arguments: Sequence, cotangent_layout: str = "fresh") -> list[torch.Tensor]:
    """Outputs of op(*arguments) and the gradients of every tensor among the arguments.

    The cotangents are random but the same for every op with outputs of the same shapes: "fresh", "strided" in memory,
    or "expanded" with stride 0 over time, as `.sum(-1)` sends them back.
    """
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    outputs = op(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(1)

    def cotangent(output):
        wide = torch.complex128 if output.is_complex() else torch.float64
        size = list(output.shape)
        if cotangent_layout == "expanded":
            return torch.randn(*size[:-1], 1, generator=generator, dtype=wide).to(output.dtype).expand(size)
        if cotangent_layout == "strided":
            size[-1] *= 2
            return torch.randn(size, generator=generator, dtype=wide).to(output.dtype)[..., ::2]
        return torch.randn(size, generator=generator, dtype=wide).to(output.dtype)

    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(outputs, tensors, [cotangent(output) for output in outputs])
    return [*outputs, *gradients]


cotangent_layouts = st.sampled_from(["fresh", "strided", "expanded"])


def assert_same_op(op: Callable, reference: Callable, arguments: Sequence, cotangent_layout: str = "fresh") -> None:
    """Value and every gradient agree in float64."""
    found = outputs_and_gradients(op, arguments, cotangent_layout)
    wanted = outputs_and_gradients(reference, arguments, cotangent_layout)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, relative=1e-10)


def assert_op_within_budget(op: Callable, reference: Callable, arguments: Sequence, roundings: float = 1.0) -> None:
    """Value and every gradient: the error against float64 is at most twice that of the reference in the same dtype, or
    so many roundings."""
    wide = [
        a.to(torch.complex128 if a.is_complex() else torch.float64) if isinstance(a, torch.Tensor) else a
        for a in arguments
    ]
    found, same_dtype, exact = (
        outputs_and_gradients(op, arguments),
        outputs_and_gradients(reference, arguments),
        outputs_and_gradients(reference, wide),
    )
    for ours, theirs, wanted in zip(found, same_dtype, exact, strict=True):
        assert ours.dtype == theirs.dtype
        if wanted.is_complex():
            ours, theirs, wanted = torch.view_as_real(ours), torch.view_as_real(theirs), torch.view_as_real(wanted)
        assert_within_budget(ours, theirs, wanted.detach(), roundings=roundings)


def random_modes(*shape: int, dtype: torch.dtype = torch.complex128, slowest: float = 1e-3) -> torch.Tensor:
    """log z of stable modes such as S4D's: decay from `slowest` to 1 a step, any angle up to some turns."""
    real = -(slowest ** torch.rand(*shape, dtype=torch.float64))
    return torch.complex(real, 10 * torch.rand(*shape, dtype=torch.float64)).to(dtype)
