"""The one place that decides whether two tensors agree."""

import torch


def largest(tensor: torch.Tensor) -> float:
    return tensor.detach().abs().max().item() if tensor.numel() else 0.0


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|found - wanted| / max|wanted|, in float64 (or complex128); infinite where only one of them is finite."""
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)} found, {tuple(wanted.shape)} wanted"
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
        assert largest(found) <= 1e3 * absolute, f"{largest(found):.3e} found where zero is wanted"
        return
    error = relative_error(found, wanted)
    assert error <= relative, f"relative error {error:.3e}, at most {relative:.1e} wanted"


def assert_within_budget(
    found: torch.Tensor,
    reference: torch.Tensor | float,
    exact: torch.Tensor,
    ratio: float = 2.0,
    roundings: float = 1.0,
) -> None:
    """The error of `found` against float64 is at most `ratio` times the reference's own in the same dtype.

    Both as the maximum over the tensor; `reference` is what it gave, or its error. `roundings` units of max|exact| in
    the dtype of `found` are the floor, since the reference's own error can be 0.
    """
    exact = exact.detach().double()
    assert found.shape == exact.shape, f"shape {tuple(found.shape)} found, {tuple(exact.shape)} wanted"
    ours = largest(found.detach().double() - exact)
    theirs = reference if isinstance(reference, float) else largest(reference.detach().double() - exact)
    floor = roundings * torch.finfo(found.dtype).eps * largest(exact)
    assert torch.isfinite(found).all(), "not finite"
    assert ours <= max(ratio * theirs, floor), f"error {ours:.3e}; reference {theirs:.3e} x {ratio}, floor {floor:.3e}"
