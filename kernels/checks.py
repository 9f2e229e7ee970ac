"""Argument errors, raised before any work, in one form: `op: argument is VALUE; expected WHAT`."""

from collections.abc import Collection

import torch
from torch import Tensor

REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)


def check_shapes(
    op: str, known_sizes: dict[str, int] | None = None, /, **arguments: tuple[Tensor | None, str]
) -> dict[str, int]:
    """Check every argument against a pattern such as `"B D L"` and return the sizes that the letters stand for.

    A letter takes its size from the first argument that has it; a number stands for itself; a leading `...` takes any
    leading axes. Arguments that are None are skipped. All tensors must lie on one device. `known_sizes` are those of
    letters that are known before.

    Raises TypeError for something that is not a tensor, ValueError for a wrong shape or device.
    """
    sizes = dict(known_sizes or {})
    first: tuple[str, torch.device] | None = None
    for name, (tensor, pattern) in arguments.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is of type {type(tensor).__name__}; expected a tensor of shape [{pattern}]")
        axes = pattern.split()
        if axes[0] == "...":
            axes = axes[1:]
            fits = tensor.ndim >= len(axes)
            found = tensor.shape[tensor.ndim - len(axes) :] if axes else ()
        else:
            fits, found = tensor.ndim == len(axes), tensor.shape
        known = dict(sizes)
        if fits:
            for axis, size in zip(axes, found):
                fits &= size == (int(axis) if axis.isdigit() else sizes.setdefault(axis, size))
        if not fits:
            given = ", ".join(f"{axis} = {known[axis]}" for axis in dict.fromkeys(axes) if axis in known)
            raise ValueError(
                f"{op}: {name} has shape {list(tensor.shape)}; expected [{pattern}]{' with ' + given if given else ''}"
            )
        if first is None:
            first = name, tensor.device
        elif tensor.device != first[1]:
            raise ValueError(f"{op}: {name} is on {tensor.device}; expected {first[1]}, the device of {first[0]}")
    return sizes


def check_dtypes(op: str, allowed: tuple[torch.dtype, ...], **arguments: Tensor | None) -> None:
    """Check that every argument (None is skipped) has one of the `allowed` dtypes; raises TypeError."""
    for name, tensor in arguments.items():
        if tensor is not None and tensor.dtype not in allowed:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')}; expected one of {known}")


def check_not_empty(op: str, **arguments: Tensor) -> None:
    """Check that no axis has size 0; raises ValueError."""
    for name, tensor in arguments.items():
        if tensor.numel() == 0:
            raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}; expected no axis of size 0")


def check_integer(op: str, name: str, value: int, at_least: int) -> None:
    """Check that a size given as a Python number is an integer, and not too small; raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} is {value!r}; expected an integer")
    if value < at_least:
        raise ValueError(f"{op}: {name} is {value}; expected at least {at_least}")


def check_one_of(op: str, name: str, value: object, known: Collection[str]) -> None:
    """Check that a value is one of the `known` names; raises ValueError."""
    if value not in known:
        raise ValueError(f"{op}: {name} is {value!r}; expected one of {', '.join(known)}")


def check_given(op: str, **arguments: Tensor | None) -> None:
    """Check that no argument is None, for those that `check_shapes` and `check_dtypes` would skip; raises TypeError."""
    for name, tensor in arguments.items():
        if tensor is None:
            raise TypeError(f"{op}: {name} is None; expected a tensor")
