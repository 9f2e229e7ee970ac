"""The error budget: how far a float32 or half-precision result may be from float64. One rule for tests and benchmarks.

    max|ours - exact|  <=  max(2 max|definition - exact|, floor)

Here the definition is run in the same dtype, and exact is the definition in float64. A definition may be right by luck,
to the last bit where an output is a few numbers. So its error is the largest of those on the numbers themselves and on
a few draws of neighbours, each number changed by a rounding; and there is a floor:

    floor = eps max|exact|  +  log2(2 n) max(eps32 max|exact|, movement)

- eps max|exact| is the rounding of the result to its own dtype.
- The rest is what float32 arithmetic inside loses. A sum of n terms that is made by halves rounds each of its partial
  sums; a term passes log2 n of them, each off by half a unit at most. The sums made here are such, or rows of blocks
  that are (a GPU's tiles, vector registers, BLAS), whose random errors grow more slowly than log2 n wherever n is less
  than some thousands of blocks. n is the numbers of the largest tensor, which no sum is longer than, or `terms` where
  an algorithm sums more than it is given (a padded Fourier transform). The 2 is for the products and functions before.
- movement measures conditioning: the most that float64's own result moves when every number it is given is changed by
  one rounding, x (1 +- eps32), signs at random. Where terms cancel, |exact| says nothing of the errors of the terms;
  their movement does. It is the largest over the tensor and over a few draws.

What a wrong kernel does (a term left out, a sum in float16, a product of bfloat16 or TF32) is hundreds of times more.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RATIO = 2
DRAWS = 8
EPS32 = torch.finfo(torch.float32).eps


class Error(NamedTuple):
    """The distance of a tensor from float64, and how much of it is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.error <= self.allowed and not math.isinf(self.error)

    def __str__(self) -> str:
        return f"{self.name} is {self.error:.2e} from float64, {self.allowed:.2e} is allowed"


def over_budget(
    found: Sequence[Tensor],
    definition: Callable[[list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    *,
    names: Sequence[str] = (),
    tied: Sequence[int] = (),
    terms: int = 1,
    arithmetic: torch.dtype = torch.float32,
) -> str | None:
    """Describe what of `found` is over the budget; None where nothing is. The arguments are those of `errors`."""
    judged = errors(found, definition, tensors, names=names, tied=tied, terms=terms, arithmetic=arithmetic)
    return next((str(error) for error in judged if not error.within), None)


def errors(
    found: Sequence[Tensor],
    definition: Callable[[list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    *,
    names: Sequence[str] = (),
    tied: Sequence[int] = (),
    terms: int = 1,
    arithmetic: torch.dtype = torch.float32,
) -> Iterator[Error]:
    """Yield the error of each tensor of `found`. What is allowed whatever the movement is said where that is enough.

    Arguments:
        found: what is judged: outputs and gradients.
        definition: gives the same of a list of tensors such as `tensors`, in the dtype of these.
        tensors: all that the outputs depend on, cotangents too, in the dtypes in which ours were run.
        names: of what is judged.
        tied: numbers of the tensors whose equal products decide something, such as which grids are the top k: they are
            changed by one factor each, which keeps equals equal.
        terms: the longest sum, if it is longer than the largest tensor.
        arithmetic: what is computed in; half precision where intermediate tensors are in it.
    """
    own, exact = definition(list(tensors)), definition([widened(tensor) for tensor in tensors])
    terms = max(terms, *(tensor.numel() for tensor in (*tensors, *exact)))
    eps, neighbours = torch.finfo(arithmetic).eps, None
    for number, (ours, theirs, truth) in enumerate(zip(found, own, exact, strict=True)):
        name = names[number] if names else f"number {number}"
        assert ours.dtype == theirs.dtype, f"{name} is {ours.dtype}; expected {theirs.dtype}"
        error, twice = distance(ours, truth), RATIO * distance(theirs, truth)
        allowed = max(twice, floor(ours.dtype, truth, terms, eps))
        if not error <= allowed < math.inf:
            neighbours = neighbours or look_around(definition, tensors, exact, tied, eps)
            movement, unlucky = neighbours[number]
            allowed = max(twice, RATIO * unlucky, floor(ours.dtype, truth, terms, eps, movement))
        yield Error(name, error, allowed)


def floor(dtype: torch.dtype, exact: Tensor, terms: int, eps: float = EPS32, movement: float = 0.0) -> float:
    """The error that is allowed whatever the definition's own is."""
    size = min(largest(exact), torch.finfo(dtype).max)
    return torch.finfo(dtype).eps * size + math.log2(2 * max(1, terms)) * max(eps * size, movement)


def look_around(
    definition: Callable, tensors: Sequence[Tensor], exact: Sequence[Tensor], tied: Sequence[int], eps: float
) -> list[tuple[float, float]]:
    """Measure for each output, over DRAWS changes of all inputs by a rounding, the most that it moves, and the most
    that the definition errs in the dtypes of `tensors`."""
    generator = torch.Generator().manual_seed(0)
    movements, errors = [0.0] * len(exact), [0.0] * len(exact)
    for _ in range(DRAWS):
        near = [changed(x, eps, generator, number in tied) for number, x in enumerate(tensors)]
        movements = [max(most, distance(y, truth)) for most, y, truth in zip(movements, definition(near), exact)]
        narrow = [x.to(tensor.dtype) for x, tensor in zip(near, tensors)]
        own, truths = definition(narrow), definition([widened(x) for x in narrow])
        errors = [max(most, distance(y, truth)) for most, y, truth in zip(errors, own, truths)]
    return list(zip(movements, errors))


def changed(tensor: Tensor, eps: float, generator: torch.Generator, as_a_whole: bool) -> Tensor:
    """Widen to float64, and multiply every number (or part of one) by 1 + eps or 1 - eps; or all by the same one."""
    tensor = widened(tensor)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    numbers = parts(tensor)
    signs = 2 * torch.randint(2, () if as_a_whole else numbers.shape, generator=generator) - 1
    numbers = numbers * (1 + eps * signs.to(numbers))
    return torch.complex(*numbers.unbind(-1)) if tensor.is_complex() else numbers


def widened(tensor: Tensor) -> Tensor:
    """Widen to 64-bit numbers; masks, indices and seeds stay."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def distance(found: Tensor, exact: Tensor) -> float:
    """max|found - exact| over real and imaginary parts; infinite where `found` is NaN. What is beyond the range of
    `found`'s dtype is taken to its end, in both: there infinity is right."""
    assert found.shape == exact.shape, f"shape is {tuple(found.shape)}; expected {tuple(exact.shape)}"
    most = torch.finfo(found.dtype).max
    found, exact = (widened(parts(tensor)).clamp(-most, most) for tensor in (found, exact))
    return math.inf if found.isnan().any() else largest(found - exact)


def largest(tensor: Tensor) -> float:
    return parts(tensor).abs().max().item() if tensor.numel() else 0.0


def parts(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
