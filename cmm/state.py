"""State of a stream of tokens, which `prefill` returns and `step` continues."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.checks import check_integer


@dataclass(eq=False)
class DecodeState:
    """Named tensors, one row for each sequence of the batch.

    tensors   name -> [B, ...], everything that the next token depends on
    length    [B] int64, the kept tokens that each row has seen
    history   name -> [B, h, ...], `history[name][:, j]` is `tensors[name]` as it was before the last j + 1 positions;
              "length" is always among the names when there is a history. Tensors that tokens do not change have none.

    Every method returns a new state and leaves this one alone; tensors that did not change are shared.
    """

    tensors: dict[str, Tensor]
    length: Tensor
    history: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        if self.length.dtype != torch.int64 or self.length.dim() != 1:
            found = f"{self.length.dtype} {list(self.length.shape)}"
            raise ValueError(f"DecodeState: length is {found}; expected torch.int64 [B]")
        for name, tensor in [*self.tensors.items(), *self.history.items()]:
            if tensor.dim() == 0 or tensor.shape[0] != self.batch_size:
                raise ValueError(
                    f"DecodeState: {name} has shape {list(tensor.shape)}; expected {self.batch_size} rows, as in length"
                )

    @property
    def batch_size(self) -> int:
        return self.length.shape[0]

    @property
    def device(self) -> torch.device:
        return self.length.device

    @property
    def history_length(self) -> int:
        """Number of positions that `rollback` can still forget."""
        return self.history["length"].shape[1] if self.history else 0

    def map(self, function: Callable[[Tensor], Tensor]) -> "DecodeState":
        """`function` of every tensor, which keeps the rows of all of them alike."""
        return DecodeState(
            {name: function(tensor) for name, tensor in self.tensors.items()},
            function(self.length),
            {name: function(tensor) for name, tensor in self.history.items()},
        )

    def to(self, device) -> "DecodeState":
        return self.map(lambda tensor: tensor.to(device))

    def clone(self) -> "DecodeState":
        return self.map(torch.clone)

    def detach(self) -> "DecodeState":
        return self.map(torch.detach)

    def index_select(self, indices: Tensor) -> "DecodeState":
        """The rows `indices` [B'] (int64), in that order, repeats allowed: what a beam search reorders by."""
        indices = indices.to(self.device)
        return self.map(lambda tensor: tensor.index_select(0, indices))

    def repeat_interleave(self, n: int) -> "DecodeState":
        """Each row n times, copies side by side."""
        return self.map(lambda tensor: tensor.repeat_interleave(n, dim=0))

    def without_history(self) -> "DecodeState":
        return DecodeState(self.tensors, self.length) if self.history else self

    def rollback(self, n: int) -> "DecodeState":
        """Forget the last n positions of every row, masked ones counted.

        The positions must belong to the last `prefill(..., history=h)` and n be at most h; what is left of the history
        stays, so that rollback(1) twice is rollback(2).
        """
        check_integer("rollback", "n", n, at_least=0)
        if n == 0:
            return self
        if n > self.history_length:
            raise ValueError(
                f"rollback: n is {n}; expected at most {self.history_length}, the positions that the state remembers; "
                f"call prefill with history={n} or more, and no step after it"
            )
        earlier = {name: snapshots[:, n - 1] for name, snapshots in self.history.items()}
        length = earlier.pop("length")
        left = {name: snapshots[:, n:] for name, snapshots in self.history.items()} if n < self.history_length else {}
        return DecodeState({**self.tensors, **earlier}, length, left)

    def nest(self, prefix: str) -> "DecodeState":
        """The same state with every name below `prefix.`."""
        return DecodeState(
            {f"{prefix}.{name}": tensor for name, tensor in self.tensors.items()},
            self.length,
            {(name if name == "length" else f"{prefix}.{name}"): tensor for name, tensor in self.history.items()},
        )

    def under(self, prefix: str) -> "DecodeState":
        """The tensors below `prefix.`, names without it: the inverse of `nest`."""
        dot = f"{prefix}."

        def stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name.removeprefix(dot): tensor for name, tensor in tensors.items() if name.startswith(dot)}

        history = {**stripped(self.history), "length": self.history["length"]} if self.history else {}
        return DecodeState(stripped(self.tensors), self.length, history)

    def merge(self, newer: "DecodeState") -> "DecodeState":
        """The tensors of both, `newer`'s where both have one; length and history are `newer`'s."""
        return DecodeState({**self.tensors, **newer.tensors}, newer.length, newer.history)

    def beside(self, other: "DecodeState") -> "DecodeState":
        """The tensors and history of two parts of a layer after the same positions; where both have one, `other`'s."""
        return DecodeState({**self.tensors, **other.tensors}, other.length, {**self.history, **other.history})

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file; the name appears only when the file is whole."""
        from safetensors.torch import save_file

        path = Path(path)
        flat = {f"tensors.{name}": tensor for name, tensor in self.tensors.items()}
        flat |= {f"history.{name}": tensor for name, tensor in self.history.items()}
        flat["length"] = self.length
        # Rows may share memory (expanded, sliced), which the format refuses.
        flat = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in flat.items()
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(flat, temporary, metadata={"format": "firebolt_vl.DecodeState"})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, device="cpu") -> "DecodeState":
        """Read what `save` wrote. Raises ValueError where the file is something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt", device=str(device)) as file:
                if (file.metadata() or {}).get("format") != "firebolt_vl.DecodeState":
                    raise ValueError(f"DecodeState.load: path is {path}; expected a file written by DecodeState.save")
                flat = {name: file.get_tensor(name) for name in file.offset_keys()}
        except SafetensorError as error:
            raise ValueError(
                f"DecodeState.load: path is {path}; expected a file written by DecodeState.save ({error})"
            ) from None

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}

        return cls(below("tensors."), flat["length"], below("history."))
