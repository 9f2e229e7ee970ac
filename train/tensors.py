"""Tensors in safetensors files, with texts beside them: nothing in them can run, and all is checked before use."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# A dtype and a shape; a letter in it is a size that is the same wherever it stands.
Wanted = tuple[torch.dtype, tuple[int | str, ...]]


def write_tensors(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with texts beside the tensors. Raises OSError where it cannot be written."""
    try:
        # Without any text beside it a file of no tensors could not be read again.
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, file, {"format": "pt", **(about or {})})
    except SafetensorError as error:
        raise OSError(f"{file} could not be written ({error})") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ValueError where the file is no such file, or damaged."""
    return _read(file)[0]


def read_about(file: Path) -> dict[str, str]:
    """The texts beside the tensors. Raises ValueError where the file is no safetensors file, or damaged."""
    return _read(file, tensors=False)[1]


def _read(file: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        with safe_open(file, "pt") as content:
            names = content.keys() if tensors else ()
            # Of its own memory: a file that is replaced or cut off while it is in use changes nothing.
            return {name: content.get_tensor(name).clone() for name in names}, content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a safetensors file, or is damaged ({error})") from None


def check_tensors(file: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Wanted]) -> dict[str, int]:
    """The sizes that the letters of `wanted` stand for.

    Raises ValueError, which names the file and the tensor, where one is missing, one too many, or of another dtype or
    shape.
    """
    for what, names in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if names:
            raise ValueError(f"{file} {what} {min(names)} ({len(names)} such tensors)")
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in wanted.items():
        tensor = tensors[name]
        fits = tensor.dtype == dtype and tensor.ndim == len(shape)
        fits = fits and all(
            found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
            for found, size in zip(tensor.shape, shape)
        )
        if not fits:
            expected = ", ".join(str(sizes.get(size, size)) for size in shape)
            given = f"{_name(tensor.dtype)} {list(tensor.shape)}"
            raise ValueError(f"{file}: {name} is {given}; expected {_name(dtype)} [{expected}]")
    return sizes


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with an infinite value or a NaN in it; of one in shards this process's shard counts."""
    for name, tensor in tensors.items():
        here = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if here.is_floating_point() and not here.isfinite().all():
            return name
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
