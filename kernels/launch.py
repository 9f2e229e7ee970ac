"""Starting Triton kernels: the one place that does it, so that a tool can see what would be started."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from . import compiled, replay

# Multiplications and additions may fuse: said outright, since the default changes between Triton's versions.
FP_FUSION = True
# A thread may take what one block leaves it. Left alone, ptxas aims at a number of blocks on a processor, and now and
# then spills a few bytes to reach it.
REGISTERS_OF_A_PROCESSOR = 65536


class Launch(NamedTuple):
    """A kernel as it would have been started."""

    kernel: triton.runtime.KernelInterface
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Every parameter of the kernel by name: tensors, numbers, None, tuples of these, and constexprs."""
    options: dict[str, Any]
    """num_warps, num_stages, enable_fp_fusion and, for NVIDIA, maxnreg."""


_start: Callable[[Launch], None] | None = None
_needs_device = True


@contextmanager
def starting_by(start: Callable[[Launch], None]) -> Iterator[None]:
    """A region in which `start` is given every launch, and no device is."""
    global _start
    before, _start = _start, start
    try:
        with replay.off():
            yield
    finally:
        _start = before


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """A region in which kernels are noted in the list that it yields and not started.

    Outputs are then as they were allocated. With tensors on a CPU and `use_implementation("triton")` this shows what a
    GPU would be given, where there is none.
    """
    launches: list[Launch] = []
    with starting_by(launches.append):
        yield launches


@contextmanager
def devices_are_not_needed() -> Iterator[None]:
    """A region in which Triton is given kernels whose tensors are on a CPU: for a driver that starts none of them."""
    global _needs_device
    before, _needs_device = _needs_device, False
    try:
        with replay.on_any_device():
            yield
    finally:
        _needs_device = before


def interpreting(kernel: triton.runtime.KernelInterface) -> bool:
    """Tell whether the kernel runs in Triton's interpreter: TRITON_INTERPRET=1 was set when it was defined."""
    return isinstance(kernel, InterpretedFunction)


def tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, those in tuples too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from tensors(argument)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, num_stages: int = 2, **named: Any) -> None:
    """Start `kernel` on the device of its first tensor; `named` are further parameters, constexprs among them."""
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": FP_FUSION}
    if torch.version.hip is None:
        options["maxnreg"] = min(255, REGISTERS_OF_A_PROCESSOR // (32 * num_warps))
    if _start is not None:
        _start(Launch(kernel, grid, dict(zip(kernel.arg_names, _in_order(kernel, args, named))), options))
        return
    device = next(tensors((*args, *named.values()))).device
    if device.type == "cpu" and _needs_device and not interpreting(kernel):
        raise RuntimeError(
            f"{kernel.fn.__name__} is a Triton kernel: it runs on a GPU, or on a CPU where TRITON_INTERPRET=1 was set "
            "before the kernels were imported"
        )
    with replay.on_device(device):
        arguments = _in_order(kernel, args, named)
        found = None if interpreting(kernel) else compiled.find(kernel, arguments, options)
        if found is None:
            kernel[grid](*args, **named, **options)
            replay.note(None)
        else:
            launched = replay.Launched(compiled.start, found, (*grid, 1, 1)[:3], arguments)
            compiled.start(*launched[1:])
            replay.note(launched)


def _in_order(kernel: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Every parameter of a kernel in its order. Raises TypeError as Python does for one too many or too few."""
    names = kernel.arg_names
    if len(given) + len(named) == len(names) and named.keys() >= set(names[len(given) :]):
        return *given, *(named[name] for name in names[len(given) :])
    bound = inspect.signature(kernel.fn).bind(*given, **named)
    bound.apply_defaults()
    return tuple(bound.arguments.values())
