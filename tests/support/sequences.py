"""Lengths, gradients and comparisons for the sequence ops."""

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from numerics import assert_close

from firebolt_vl.bench.budget import over_budget

# 1, primes, powers of two and their neighbours, up to a few chunks of every op.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 31, 32, 33, 37, 61, 63, 64, 65, 97, 127, 128, 129)
lengths = st.sampled_from(LENGTHS)
few_lengths = st.sampled_from([length for length in LENGTHS if length < 40])


def outputs_and_gradients(
    op: Callable, arguments: Sequence, cotangent_layout: str = "fresh", cotangents: Sequence | None = None
) -> list[torch.Tensor]:
    """Outputs of op(*arguments) and the gradients of every tensor among the arguments.

    The cotangents are given, or `cotangents_of` the outputs.
    """
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    outputs = op(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    cotangents = cotangents_of(outputs, cotangent_layout) if cotangents is None else cotangents
    return [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]


def cotangents_of(outputs: Sequence[torch.Tensor], layout: str = "fresh") -> list[torch.Tensor]:
    """Random, but the same for every op with outputs of the same shapes: "fresh", "strided" in memory, or "expanded"
    with stride 0 over time, as `.sum(-1)` sends them back."""
    generator = torch.Generator().manual_seed(1)

    def cotangent(output):
        wide = torch.complex128 if output.is_complex() else torch.float64
        size = list(output.shape)
        if layout == "expanded":
            return torch.randn(*size[:-1], 1, generator=generator, dtype=wide).to(output.dtype).expand(size)
        if layout == "strided":
            size[-1] *= 2
            return torch.randn(size, generator=generator, dtype=wide).to(output.dtype)[..., ::2]
        return torch.randn(size, generator=generator, dtype=wide).to(output.dtype)

    return [cotangent(output) for output in outputs]


cotangent_layouts = st.sampled_from(["fresh", "strided", "expanded"])


def assert_same_op(op: Callable, reference: Callable, arguments: Sequence, cotangent_layout: str = "fresh") -> None:
    """Value and every gradient agree in float64."""
    found = outputs_and_gradients(op, arguments, cotangent_layout)
    wanted = outputs_and_gradients(reference, arguments, cotangent_layout)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, relative=1e-10)


def assert_op_within_budget(op: Callable, definition: Callable, arguments: Sequence, terms: int = 1) -> None:
    """Value and every gradient of the tensors `arguments`."""
    found = outputs_and_gradients(op, arguments)
    cotangents = cotangents_of(found[: len(found) - len(arguments)])

    def defined(tensors):
        return outputs_and_gradients(definition, tensors[: len(arguments)], cotangents=tensors[len(arguments) :])

    problem = over_budget(found, defined, [*arguments, *cotangents], terms=terms)
    assert problem is None, problem


def random_modes(*shape: int, dtype: torch.dtype = torch.complex128, slowest: float = 1e-3) -> torch.Tensor:
    """log z of stable modes such as S4D's: decay from `slowest` to 1 a step, any angle up to some turns."""
    real = -(slowest ** torch.rand(*shape, dtype=torch.float64))
    return torch.complex(real, 10 * torch.rand(*shape, dtype=torch.float64)).to(dtype)
