"""A fast start of a command: an answer imports what it needs, and nothing is taken apart at the end.

Most of the time until a small model answers goes into imports, and half of these are for others: transformers marks
functions for PyTorch's compiler, and has classes of distributed tensors and a loss that needs SciPy. In the process of
a command that compiles and trains nothing the compiler is a package that is not run before something of it is used,
PyTorch has no distributed part, and there is no SciPy; the last two are states that transformers knows. In every other
process all is as it was (`begin_command`).
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any

# The minor versions of transformers that this was tested with; others are imported as they are.
TESTED = ("5.23", "5.24")
COMPILER = "torch._dynamo"
# The one module of it that transformers imports, for masks made by a function of the user's; it needs no other.
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"
# What marks functions and tensors for it, which means nothing where nothing is compiled.
MARKS = ("allow_in_graph", "assume_constant_result", "disable", "mark_static_address")

_is_command = False


def begin_command() -> None:
    """Say that this process is a command's own: nobody else's code runs in it."""
    global _is_command
    _is_command = True


def end_command() -> None:
    """Let Python end without a last search for unreachable objects, which takes a second after imports of this size.

    Triton's library would tell all that it has not taken apart; with it, the search is made.
    """
    if "triton" not in sys.modules:
        gc.freeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """A region in which Python does not look for unreachable objects: imports make a million, and all of them stay."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def import_for_answers() -> None:
    """Import transformers' models without what only compiled models and trainings use, in a command's own process.

    Nothing is done in any other process, or with a version of transformers that was not tested.
    """
    if not _is_command or not {"transformers.modeling_utils", COMPILER}.isdisjoint(sys.modules):
        return
    import torch.distributed
    import transformers.utils

    if ".".join(transformers.__version__.split(".")[:2]) not in TESTED:
        return
    torch.distributed.is_available = lambda: False
    _put_off_the_compiler()
    there = transformers.utils.is_scipy_available
    transformers.utils.is_scipy_available = lambda: False
    try:
        importlib.import_module("transformers.modeling_utils")
    finally:
        transformers.utils.is_scipy_available = there


class _PutOff(ModuleType):
    """A package that is run when anything of it but its marks is used."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _unmarked
        if name.startswith("__"):
            raise AttributeError(name)
        _run(self)
        return getattr(self, name)


class _Submodules(Loader):
    """A finder that runs a package before its first submodule, which finds there what the package imported itself."""

    def __init__(self, package: ModuleType):
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(f"{self.package.__name__}."):
            return None
        sys.meta_path.remove(self)
        _run(self.package)
        return spec_from_loader(name, self) if name in sys.modules else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It was run by the package."""


def _run(package: ModuleType) -> None:
    if type(package) is _PutOff:
        package.__class__ = ModuleType
        package.__spec__.loader.exec_module(package)


def _put_off_the_compiler() -> None:
    import torch

    spec = find_spec(COMPILER)
    if spec is None:
        return
    package = module_from_spec(spec)
    package.__class__ = _PutOff
    sys.modules[COMPILER] = torch._dynamo = package
    with suppress(ImportError):
        importlib.import_module(INDEXING)
    sys.meta_path.insert(0, _Submodules(package))


def _unmarked(marked: Any = None, *_: Any, **__: Any) -> Any:
    """Return what is to be marked as it is; a decorator that does so, where there are only options."""
    return _unmarked if marked is None else marked
