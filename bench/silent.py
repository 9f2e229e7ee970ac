"""A Triton driver without a GPU, which compiles and launches nothing: what a call costs the host, and when it compiles.

Triton promises none of what is used of it here: the driver's interface, that `JITFunction._do_compile` makes what
is not in `device_caches`, and how a compiled kernel is started. It was tried with the versions in
`kernels.compiled.TESTED`; others are refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from ..kernels.compiled import TESTED, is_tested
from ..kernels.launch import devices_are_not_needed, interpreting

_TARGET = GPUTarget("cuda", 90, 32)
_devices = count()


class Unsupported(RuntimeError):
    """A Triton that this cannot drive, in one line."""


class Seen(NamedTuple):
    """The work that a GPU would have been given since the driver was put in its place."""

    compilations: list[str]
    """The kernel of each."""
    launches: list[str]


class _Kernel:
    """Stands for a compiled kernel."""

    function = 0
    packed_metadata = ()

    def __init__(self, name: str, launches: list[str]):
        self.name, self.launches = name, launches

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        self.launches.append(self.name)


class _Driver:
    """One device, of a number that no other has: what Triton keeps of compiled kernels is by devices."""

    def __init__(self) -> None:
        self.device = next(_devices)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return _TARGET


@contextmanager
def silent_driver() -> Iterator[Seen]:
    """A region in which kernels are looked up, specialised and started as for an H100 that there is not.

    Tensors may be on a CPU. Outputs are as they were allocated. Raises Unsupported for a Triton that was not tried, and
    where kernels are interpreted.
    """
    if not is_tested():
        raise Unsupported(f"Triton is {triton.__version__}; expected one of {', '.join(TESTED)}")
    if interpreting(_probe):
        raise Unsupported("TRITON_INTERPRET is set, so that kernels are interpreted and not started; unset it")
    seen, functions = Seen([], []), []

    def do_compile(self: JITFunction, key: str, signature: Any, device: int, *rest: Any, **named: Any) -> _Kernel:
        seen.compilations.append(self.fn.__name__)
        functions.append(self)
        kernel = _Kernel(self.fn.__name__, seen.launches)
        self.device_caches[device][0][key] = kernel
        return kernel

    ours, before = _Driver(), driver._active
    driver.set_active(ours)
    try:
        with mock.patch.object(JITFunction, "_do_compile", do_compile), devices_are_not_needed():
            yield seen
    finally:
        driver._active = before
        for function in functions:
            function.device_caches.pop(ours.device, None)


@triton.jit
def _probe():
    pass
