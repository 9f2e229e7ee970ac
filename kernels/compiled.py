"""Compiled kernels by what they may rely on, and their start: the one module that knows Triton's inside.

Triton compiles a kernel anew for an integer that is 1, or a multiple of 16 where it was none, and for a stride of an
axis that has one element. Here a kernel relies on less, so that sizes may vary:

    an integer      that it is a multiple of 16, but nothing else, and not even that where the kernel's
                    `do_not_specialize` has its name
    strides         which of them is 1 (one at most), and whether all others and the address are multiples of 16
    an address      that it is a multiple of 16, unless `do_not_specialize_on_alignment` has its name

A tuple that is a parameter names those of its fields by class attributes like the decorator's arguments.

Triton promises none of this: what `JITFunction.device_caches` holds, `_pack_args` and `_do_compile`, how a compiled
kernel is run. It was tried with the versions in `TESTED`; with another, and where a tool has hooked itself into
Triton's compilation, `find` returns None, and Triton starts the kernel itself.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from .common.strided import Strided

TESTED = ("3.7", "3.8", "3.9")

# Triton's words: a parameter that is compiled in, and a number known to be a multiple of 16.
CONSTANT, MULTIPLE = "constexpr", "D"
_NOTHING = (CONSTANT, None)
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*u1",
}


def is_tested() -> bool:
    """Tell whether Triton is of a version that this was tried with."""
    return ".".join(triton.__version__.split(".")[:2]) in TESTED


def specialization(kernel: JITFunction, arguments: Sequence[Any]) -> tuple[tuple[Any, Any], ...]:
    """Return Triton's type of each parameter, and what of it the kernel may rely on: equal for one compiled kernel."""
    return tuple(
        (CONSTANT, argument)
        if parameter.is_constexpr
        else _class(argument, parameter.do_not_specialize, parameter.do_not_specialize_on_alignment)
        for parameter, argument in zip(kernel.params, arguments)
    )


def _class(argument: Any, any_value: bool, any_address: bool) -> tuple[Any, Any]:
    if argument is None:
        return _NOTHING
    if isinstance(argument, Tensor):
        return _POINTERS[argument.dtype], "" if any_address or argument.data_ptr() % 16 else MULTIPLE
    if isinstance(argument, tuple):
        return _fields(argument, any_value, any_address)
    if isinstance(argument, tl.constexpr):
        return CONSTANT, argument
    if isinstance(argument, bool):
        return "u1", None
    if isinstance(argument, int):
        return _integer(argument), "" if any_value or argument % 16 else MULTIPLE
    if isinstance(argument, float):
        return "fp32", None
    raise TypeError(f"a kernel's argument is of type {type(argument).__name__}; expected a tensor, a number or a tuple")


def _integer(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _fields(argument: tuple, any_value: bool, any_address: bool) -> tuple[Any, Any]:
    """The class of a tuple, of its own type if its fields have names."""
    if isinstance(argument, Strided):
        ptr, strides = argument
        types, multiples, aligned = _strides(strides, any_address or ptr.data_ptr() % 16 != 0)
        return Strided._make((_POINTERS[ptr.dtype], types)), Strided._make((aligned, multiples))
    if type(argument) is tuple and all(isinstance(field, int) for field in argument):
        return _strides(argument, any_address)[:2]
    values = getattr(argument, "do_not_specialize", ())
    addresses = getattr(argument, "do_not_specialize_on_alignment", ())
    types, known = [], []
    for name, field in zip(getattr(argument, "_fields", range(len(argument))), argument):
        kind, what = _class(field, any_value or name in values, any_address or name in addresses)
        types.append(kind)
        known.append(what)
    named = getattr(argument, "_make", tuple)
    return named(types), named(known)


@lru_cache(4096)
def _strides(strides: tuple[int, ...], any_address: bool) -> tuple[tuple[str, ...], tuple[Any, ...], str]:
    """Types of strides, what of each is known, and whether they keep an address a multiple of 16."""
    unit = max((axis for axis, stride in enumerate(strides) if stride == 1), default=-1)
    general = any_address or any(stride % 16 for axis, stride in enumerate(strides) if axis != unit)
    known = "" if general else MULTIPLE
    types = tuple(CONSTANT if axis == unit else _integer(stride) for axis, stride in enumerate(strides))
    return types, tuple(1 if axis == unit else known for axis in range(len(strides))), known


def compilation(kernel: JITFunction, backend: Any, arguments: Sequence[Any], options: dict[str, Any]) -> tuple:
    """Return what Triton compiles for a launch: parsed options, signature, constants and attributes."""
    bound = dict(zip(kernel.arg_names, arguments))
    return kernel._pack_args(backend, options, bound, specialization(kernel, arguments), options)


def find(kernel: JITFunction, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    """Return the compiled kernel of a launch on the current device, compiled now if need be; None: Triton starts it."""
    if not is_tested() or kernel.pre_run_hooks:
        return None
    device = _driver().get_current_device()
    kernels, _, _, backend, _ = kernel.device_caches[device]
    classes = specialization(kernel, arguments)
    key = classes, *options.values()
    found = kernels.get(key)
    if found is None and not _is_watched(kernel):
        parsed, signature, constants, attributes = compilation(kernel, backend, arguments, options)
        found = kernel._do_compile(key, signature, device, constants, parsed, attributes, False)
    return found


def _is_watched(kernel: JITFunction) -> bool:
    """Tell whether a compilation has to be Triton's own: a tool wants to see or change it, or it is instrumented."""
    runtime, compilation = triton.knobs.runtime, triton.knobs.compilation
    hooks = runtime.jit_cache_hook, runtime.jit_post_compile_hook, runtime.add_stages_inspection_hook
    return any(hooks) or bool(kernel.debug or runtime.debug or compilation.instrumentation_mode)


def start(kernel: Any, grid: Sequence[int], arguments: tuple[Any, ...]) -> None:
    """Start what `find` found on the current device and its current stream.

    `grid` has three numbers; arguments are all parameters of the kernel, in which addresses may stand for tensors.
    """
    device = _driver().get_current_device()
    stream = _driver().get_current_stream(device)
    runtime = triton.knobs.runtime
    metadata, hooks = None, (None, None)
    if _is_hooked(runtime.launch_enter_hook) or _is_hooked(runtime.launch_exit_hook):
        metadata = kernel.launch_metadata(grid, stream, *arguments)
        hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    kernel.run(*grid, stream, kernel.function, kernel.packed_metadata, metadata, *hooks, *arguments)


def _driver() -> Any:
    return driver.active


def _is_hooked(hooks: Any) -> bool:
    return bool(getattr(hooks, "calls", hooks is not None))
