"""Vectors computed by the original implementations: those kept in tests/golden, or all of them where they are."""

import functools
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

KEPT = Path(__file__).resolve().parents[1] / "golden"
ALL = Path(os.environ.get("FIREBOLT_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))


def path(filename: str) -> Path:
    """The full set's file where it is there, else the selection's."""
    for folder in (ALL, KEPT):
        if (folder / filename).is_file():
            return folder / filename
    raise FileNotFoundError(f"{filename}: neither in {ALL} nor in {KEPT}")


def names(prefix: str) -> list[str]:
    """Names (without suffix) of the vector files that start with `prefix`, for parametrize."""
    return sorted({p.stem for folder in (ALL, KEPT) if folder.is_dir() for p in folder.glob(f"{prefix}*.safetensors")})


class Vectors:
    """One file of vectors: `vectors["case.in.x"]`, complex tensors already complex, `cases` and `metadata` parsed."""

    def __init__(self, name: str):
        self.metadata = {}
        self._tensors: dict[str, torch.Tensor] = {}
        with safe_open(path(f"{name}.safetensors"), "pt") as file:
            for key, value in (file.metadata() or {}).items():
                try:
                    self.metadata[key] = json.loads(value)
                except json.JSONDecodeError:
                    self.metadata[key] = value
            for key in file.offset_keys():
                tensor = file.get_tensor(key)
                if key.endswith(".real_imag"):
                    key, tensor = key.removesuffix(".real_imag"), torch.view_as_complex(tensor.contiguous())
                self._tensors[key] = tensor

    @property
    def cases(self) -> list:
        return self.metadata["cases"]

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._tensors[key].clone()

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Everything below `prefix.`, keyed by the rest of the name."""
        dot = prefix + "."
        return {key[len(dot) :]: self[key] for key in self._tensors if key.startswith(dot)}


@functools.cache
def load(name: str) -> Vectors:
    return Vectors(name)


def case_names(name: str) -> list[str]:
    return [case["case"] if isinstance(case, dict) else case for case in load(name).cases]
