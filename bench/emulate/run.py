"""A region in which kernels run without a GPU: each launch is compiled for one, and its PTX is emulated on the tensors.

    with emulating(target="sm_80") as emulation, use_implementation("triton"):
        y = film_residual(...)
        y.sum().backward()
    assert not emulation.findings

New memory is filled with a NaN that no arithmetic gives, all bits set, by which it is known that nothing wrote it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.launch import Launch, starting_by
from ..compile import compiled_kernel, is_interpreting, specialise
from .findings import Findings
from .kinds import Array
from .launches import Work, frozen, run
from .memory import GAP, Global
from .ptx import Program, parse


class Emulated(NamedTuple):
    """A launch that was run."""

    kernel: str
    programs: int
    instructions: int
    """Executed, each counted once for all threads of a program."""
    ptx: str
    work: Work | None
    """That can be run again, with the memory that it began with; where launches are kept."""


class Emulation:
    """Launches that ran, and what was found."""

    def __init__(self, target: str, seed: int, edit: Callable[[str], str], keep: bool):
        self.target, self.edit, self.keep = target, edit, keep
        self.generator = np.random.default_rng(seed)
        self.findings = Findings()
        self.launches: list[Emulated] = []

    def start(self, launch: Launch) -> None:
        """Run a launch and write what it leaves back to the tensors."""
        kernel = kernel_for(launch, self.target)
        ptx = self.edit(kernel.ptx)
        program = kernel.program if ptx == kernel.ptx else parse(ptx)
        arena = Arena(kernel.arguments(launch))
        # The last parameters are scratch memory, which no kernel here asks for.
        numbers = [*arena.numbers, *[0] * (len(program.parameters) - len(arena.numbers))]
        work = Work(program, launch.grid, numbers, arena.size, arena.fill, kernel.shared)
        kept = frozen(work) if self.keep else None
        done = run(work, self.findings, self.generator)
        arena.write_back(done.bytes)
        self.launches.append(Emulated(program.name, int(np.prod(launch.grid)), int(done.executed.sum()), ptx, kept))


@contextmanager
def emulating(
    target: str = "sm_80", seed: int = 0, edit: Callable[[str], str] = lambda ptx: ptx, keep: bool = False
) -> Iterator[Emulation]:
    """A region in which every kernel runs in the emulator, compiled for `target`, a key of `CHIPS`.

    `seed` sets the order of programs. `edit` may change the PTX, to see that a mistake is found; with `keep` launches
    can be run again. Raises RuntimeError where kernels are made for Triton's interpreter, and UnknownPTX at what the
    emulator does not know.
    """
    if is_interpreting():
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled; unset it")
    emulation = Emulation(target, seed, edit, keep)
    with starting_by(emulation.start), poisoned_memory():
        yield emulation


@contextmanager
def poisoned_memory() -> Iterator[None]:
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            storage_of(tensor).fill(0xFF)
        return tensor

    torch.empty = poisoned
    try:
        yield
    finally:
        torch.empty = empty


class Kernel(NamedTuple):
    ptx: str
    program: Program
    shared: int
    """Bytes of shared memory."""
    signature: dict[str, Any]
    """Triton's types of the parameters, in tuples as these are."""

    def arguments(self, launch: Launch) -> list[Any]:
        """Those that the compiled kernel takes."""
        given = (flattened(kind, launch.arguments[name]) for name, kind in self.signature.items())
        return [value for values in given for value in values]


_kernels: dict[str, Kernel] = {}


def kernel_for(launch: Launch, target: str) -> Kernel:
    job = specialise(launch, "", "", "", target)
    if job.key() not in _kernels:
        found, _ = compiled_kernel(job)
        _kernels[job.key()] = Kernel(found.asm["ptx"], parse(found.asm["ptx"]), found.metadata.shared, job.signature)
    return _kernels[job.key()]


def flattened(kind: Any, value: Any) -> Iterator[Any]:
    """The values of a parameter that the compiler did not take as constants."""
    if isinstance(kind, tuple | list):
        for inner, of_it in zip(kind, value, strict=True):
            yield from flattened(inner, of_it)
    elif kind != "constexpr":
        yield value


class Arena:
    """The storages of a launch's tensors side by side, each at an address with its own alignment."""

    def __init__(self, arguments: Sequence[Any]):
        self.tensors = [value for value in arguments if isinstance(value, Tensor)]
        self.places: dict[int, int] = {}
        self.size = GAP
        for tensor in self.tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.places:
                self.places[storage.data_ptr()] = self.size + storage.data_ptr() % 16
                self.size += (storage.nbytes() + 2 * GAP) // GAP * GAP + GAP
        self.numbers = [self._address(value) if isinstance(value, Tensor) else value for value in arguments]

    def _place(self, tensor: Tensor) -> int:
        return self.places[tensor.untyped_storage().data_ptr()]

    def _address(self, tensor: Tensor) -> int:
        return Global.base + self._place(tensor) + tensor.data_ptr() - tensor.untyped_storage().data_ptr()

    def fill(self, memory: Global) -> None:
        """Copy the tensors' bytes, of which those of their elements may be touched."""
        for tensor in self.tensors:
            raw, start = storage_of(tensor), self._place(tensor)
            memory.bytes[start : start + len(raw)] = raw
            touched = elements_of(tensor, len(raw))
            memory.valid[start : start + len(raw)] |= touched
            memory.written[start : start + len(raw)] |= touched & ~never_written(tensor, raw)

    def write_back(self, after: Array) -> None:
        for tensor in self.tensors:
            raw, start = storage_of(tensor), self._place(tensor)
            raw[:] = after[start : start + len(raw)]


def storage_of(tensor: Tensor) -> Array:
    """A tensor's whole storage as bytes, the same memory."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def elements_of(tensor: Tensor, size: int) -> Array:
    """The bytes of its storage that a tensor's elements take, as a mask."""
    width = tensor.element_size()
    found = np.zeros((size // width, width), bool)
    strides = [stride * width for stride in tensor.stride()]
    np.lib.stride_tricks.as_strided(found[tensor.storage_offset() :], (*tensor.shape, width), (*strides, 1))[...] = True
    return np.pad(found.reshape(-1), (0, size % width))


def never_written(tensor: Tensor, raw: Array) -> Array:
    """The bytes of numbers with all bits set, as a mask."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return np.zeros(len(raw), bool)
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    numbers = raw[: len(raw) // width * width].reshape(-1, width)
    found = np.repeat((numbers == 0xFF).all(axis=1), width)
    return np.pad(found, (0, len(raw) - len(found)))
