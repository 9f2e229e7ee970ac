"""The work that an op gives a GPU: the launches of its kernels, and those that PyTorch makes beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels import use_implementation
from ...kernels.launch import Launch, recording, tensors
from ..cases import OPS, Case, inputs
from ..compile import run_backward, run_forward
from ..kernels import bytes_to_move

# The namespace of our registered ops.
_OURS = "firebolt_vl"
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# Operators of PyTorch that return no view and yet start nothing.
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "item")


class Recorded(NamedTuple):
    """The launches of one call."""

    launches: list[Launch]
    others: list[int]
    """Of each kernel that PyTorch itself starts, such as a sum or a copy, the bytes that it reads and writes."""
    changed: tuple[Tensor, ...] = ()
    """Tensors that the op reads and writes."""


class _Others(TorchDispatchMode):
    """Notes the operators of PyTorch that start a kernel on a GPU, inside registered ops too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == _OURS:
            with self:
                return func.redispatch(_CPU, *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__ in _ALLOCATIONS):
            given = _tensors((*args, *(kwargs or {}).values()))
            self.bytes.append(sum(distinct_bytes(tensor) for tensor in [*given, *_tensors((result,))]))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return list(tensors(tuple(tuple(value) if isinstance(value, list) else value for value in values)))


def distinct_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor, those of expanded axes once."""
    return tensor.itemsize * torch.Size([n for n, s in zip(tensor.shape, tensor.stride()) if s]).numel()


@contextmanager
def _noted() -> Iterator[Recorded]:
    with recording() as launches, _Others() as others:
        yield Recorded(launches, others.bytes)


def record_modes(op: str, case: Case, dtype: str) -> tuple[dict[str, Recorded], dict[str, int]]:
    """Record an op by the modes of the benchmarks ("forward", "backward", "both"); also the bytes of its floor."""
    call = inputs(op, case, dtype, fill=False)
    with use_implementation("triton"):
        with torch.no_grad(), _noted() as forward:
            run_forward(op, call)
        call = OPS[op].leaves(call)
        with _noted() as kept:
            outputs = run_forward(op, call)
        with _noted() as backward:
            run_backward(call, outputs)
    if OPS[op].in_place:
        forward = forward._replace(changed=call.args[:1])
    both = Recorded([*kept.launches, *backward.launches], [*kept.others, *backward.others])
    outputs = [output for output in outputs if output.requires_grad] or outputs
    return {"forward": forward, "backward": backward, "both": both}, bytes_to_move(
        call.tensors(), outputs, call.leaves()
    )
