"""The one place that decides whether two tensors agree; below float64 by the error budget of `bench/budget.py`."""

import copy
from collections.abc import Callable, Sequence

import torch

from firebolt_vl.bench.budget import distance, floor, over_budget


def largest(tensor: torch.Tensor) -> float:
    return tensor.detach().abs().max().item() if tensor.numel() else 0.0


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|found - wanted| / max|wanted|, in float64 (or complex128); infinite where only one of them is finite."""
    assert found.shape == wanted.shape, f"shape is {tuple(found.shape)}; expected {tuple(wanted.shape)}"
    wide = torch.complex128 if (found.is_complex() or wanted.is_complex()) else torch.float64
    found, wanted = found.detach().to(wide), wanted.detach().to(wide)
    if not torch.isfinite(found.abs()).all() or not torch.isfinite(wanted.abs()).all():
        return float("inf")
    difference = largest(found - wanted)
    scale = largest(wanted)
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-9, absolute: float = 1e-12) -> None:
    """Agreement to `relative` of the largest entry; `absolute` is for tensors that are mathematically zero."""
    if found.shape == wanted.shape and largest(wanted) <= absolute:
        assert largest(found) <= 1e3 * absolute, f"is {largest(found):.3e}; expected zero"
        return
    error = relative_error(found, wanted)
    assert error <= relative, f"relative error is {error:.3e}; expected at most {relative:.1e}"


def assert_to_rounding(found: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """The error of `found` is at most the floor of the budget for sums of so many terms, whatever a definition's is."""
    ours, least = distance(found, exact), floor(found.dtype, exact, terms)
    assert ours <= least, f"error {ours:.3e}, floor {least:.3e}"


def assert_within_budget(
    found: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, ratio: float = 2.0, movement: float = 0.0
) -> None:
    """The error of `found` is at most `ratio` times that of another result in its dtype, or the floor of the budget.

    For results that cannot be made again, as those of the original implementations; else `over_budget` decides, which
    finds out by itself how far the result moves with its inputs.
    """
    ours, theirs = distance(found, exact), distance(reference, exact)
    least = floor(found.dtype, exact, exact.numel(), movement=movement)
    assert ours <= max(ratio * theirs, least), f"error {ours:.3e}; reference {theirs:.3e} x {ratio}, floor {least:.3e}"


def assert_module_within_budget(
    found: Sequence[torch.Tensor],
    run: Callable[..., Sequence[torch.Tensor]],
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    arithmetic: torch.dtype = torch.float32,
) -> None:
    """`found` against run(module, *inputs) as the definition, whose parameters are among what is changed."""

    def defined(tensors):
        parameters = tensors[len(inputs) :]
        changed = copy.deepcopy(module)
        if all(parameter.dtype in (torch.float64, torch.complex128) for parameter in parameters):
            changed.double()
        for parameter, value in zip(changed.parameters(), parameters, strict=True):
            parameter.data = value
        return run(changed, *tensors[: len(inputs)])

    tensors = [*inputs, *(parameter.detach() for parameter in module.parameters())]
    problem = over_budget(found, defined, tensors, arithmetic=arithmetic)
    assert problem is None, problem
