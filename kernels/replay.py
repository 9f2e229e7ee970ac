"""Calls of an op again: what a call without gradients allocates and launches is noted once, and then done again.

On the host a function of tensors does the same in each call with the same layouts: it allocates memory and starts
kernels, with other addresses. So a second call needs none of the checks, choices and views of the first. What is done
again is exactly that. A call that did more on its device (a copy, a sum), that wants gradients, or that somebody looks
at (`transforms.unobserved`) runs as it is written.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from . import configurations, implementation
from .transforms import unobserved

P = ParamSpec("P")
R = TypeVar("R")

# Layouts that are remembered, before all are forgotten.
MOST_CALLS = 1024
# Bytes of memory that a call repeated holds beside its outputs: all that it allocates, to its end. With more it takes
# the device longer than the host.
MOST_BESIDE_OUTPUTS = 2**27
_PLAIN = frozenset((bool, int, float, str, type(None)))
_ALLOCATIONS = frozenset(
    (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    )
)


class Launched(NamedTuple):
    """A launch as it is noted."""

    start: Callable[[Any, Sequence[int], tuple[Any, ...]], None]
    """Starts a kernel by itself, its grid and its arguments, addresses in the place of tensors."""
    kernel: Any
    grid: Sequence[int]
    arguments: tuple[Any, ...]
    """Every parameter of the kernel."""


class Place(NamedTuple):
    """Begin of a tensor: in which tensor, of those given and then those allocated, and how many bytes behind it."""

    tensor: int
    offset: int


class Call(NamedTuple):
    """Work of a call on its device."""

    allocations: tuple[Callable[[], Tensor], ...]
    places: tuple[Place, ...]
    launches: tuple[tuple[Callable, Any, Sequence[int], Callable[[list[int]], tuple[Any, ...]]], ...]
    """Of each `start`, kernel, grid, and what makes its arguments from the addresses of `places`."""
    outputs: tuple[int, ...]
    """Their numbers among what is allocated."""
    is_tuple: bool


_AS_WRITTEN = Call((), (), (), (), False)
_known: dict[tuple[Any, ...], Call] = {}
_is_on, _any_device = True, False
_of_thread = threading.local()


@contextmanager
def off() -> Iterator[None]:
    """A region in which every call runs as it is written."""
    global _is_on
    before, _is_on = _is_on, False
    try:
        yield
    finally:
        _is_on = before


@contextmanager
def on_any_device() -> Iterator[None]:
    """A region in which calls with tensors on a CPU are repeated too, none of them known before or afterwards."""
    global _any_device
    before, _any_device = _any_device, True
    _known.clear()
    try:
        yield
    finally:
        _any_device = before
        _known.clear()


def on_device(device: torch.device) -> AbstractContextManager:
    """A region in which a GPU is the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def is_noting() -> bool:
    """Tell whether this thread is in a call that is noted."""
    return getattr(_of_thread, "noting", None) is not None


def note(launched: Launched | None) -> None:
    """Note a launch, if this call is noted; None stands for one that cannot be repeated."""
    noting = getattr(_of_thread, "noting", None)
    if noting is not None:
        noting.note(launched)


def replayed(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of tensors and numbers that repeats what an earlier call with the same layouts did.

    The function must depend on nothing but these, `use_implementation` and `answering`; what it returns is new memory.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not _is_on or not unobserved():
            return function(*args, **kwargs)
        values = (*args, *kwargs.values())
        layout, addresses = _layout(function, values, tuple(kwargs))
        if not addresses:
            return function(*args, **kwargs)
        known = _known.get(layout)
        if known is None:
            return _noted(layout, values, partial(function, *args, **kwargs))
        if known is _AS_WRITTEN:
            return function(*args, **kwargs)
        return _again(known, layout[1], addresses)

    return call


def _layout(function: Callable, values: tuple[Any, ...], names: tuple[str, ...]) -> tuple[tuple[Any, ...], list[int]]:
    """Return all that the host's work depends on, and the addresses of tensors: none if a call cannot be repeated."""
    wants_gradients = torch.is_grad_enabled()
    device = None
    parts, addresses = [], []
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if not (value.is_cuda or _any_device) or (wants_gradients and value.requires_grad):
                return (), []
            if value.layout is not torch.strided or value.is_conj() or value.is_neg():
                return (), []
            address = value.data_ptr()
            addresses.append(address)
            device = device or value.device
            parts += value.dtype, value.device, value.shape, value.stride(), address % 16
        elif kind in _PLAIN:
            parts += kind, value
        else:
            return (), []
    if device is None or torch.is_autocast_enabled(device.type):
        return (), []
    regions = implementation._chosen, configurations._answer
    return (function, device, *regions, names, *parts), addresses


def _noted(layout: tuple[Any, ...], values: tuple[Any, ...], function: Callable[[], Any]) -> Any:
    """Call a function, and keep what it did."""
    noting = _Noting([value for value in values if isinstance(value, Tensor)])
    _of_thread.noting = noting
    try:
        with noting:
            result = function()
    finally:
        _of_thread.noting = None
    if len(_known) >= MOST_CALLS:
        _known.clear()
    _known[layout] = noting.call(result)
    return result


def _again(call: Call, device: torch.device, addresses: list[int]) -> Any:
    """Do what a call did, with tensors at other addresses."""
    tensors = [allocate() for allocate in call.allocations]
    addresses += [tensor.data_ptr() for tensor in tensors]
    begins = [addresses[number] + offset for number, offset in call.places]
    with on_device(device):
        for start, kernel, grid, arguments in call.launches:
            start(kernel, grid, arguments(begins))
    outputs = tuple([tensors[number] for number in call.outputs])
    return outputs if call.is_tuple else outputs[0]


class _Noting(TorchDispatchMode):
    """A region in which allocations, views and launches are noted."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self.given = len(given)
        self.tensors = list(given)
        """Those given, and those allocated."""
        self.places = {id(tensor): Place(number, 0) for number, tensor in enumerate(given)}
        self.views: list[Tensor] = []
        """Held, so that no other tensor gets the id of one."""
        self.launches: list[Launched] = []
        self.is_whole = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS and self.is_whole:
            self.places[id(result)] = Place(len(self.tensors), 0)
            self.tensors.append(result)
        elif func.is_view and args and id(args[0]) in self.places:
            number = self.places[id(args[0])].tensor
            for view in [result] if isinstance(result, Tensor) else result:
                self.places[id(view)] = Place(number, view.data_ptr() - self.tensors[number].data_ptr())
                self.views.append(view)
        else:
            self.give_up()
        return result

    def note(self, launched: Launched | None) -> None:
        if launched is None:
            self.give_up()
        elif self.is_whole:
            self.launches.append(launched)

    def give_up(self) -> None:
        """Hold nothing of a call that cannot be done again."""
        self.is_whole = False
        self.tensors, self.places, self.views, self.launches = [], {}, [], []

    def call(self, result: Any) -> Call:
        """Return what was noted of a call that returned `result`."""
        is_tuple = isinstance(result, tuple)
        given = result if is_tuple else (result,)
        outputs = {self.places[id(output)].tensor - self.given: output for output in given if self._is_whole(output)}
        if not self.launches or len(outputs) < len(given):
            return _AS_WRITTEN
        allocated = list(enumerate(self.tensors[self.given :]))
        if sum(tensor.nbytes for number, tensor in allocated if number not in outputs) > MOST_BESIDE_OUTPUTS:
            return _AS_WRITTEN
        places: dict[Place, int] = {}
        launches = [self._arguments(launched, places) for launched in self.launches]
        if None in launches:
            return _AS_WRITTEN
        allocations = [_allocation(outputs.get(number, tensor)) for number, tensor in allocated]
        return Call(tuple(allocations), tuple(places), tuple(launches), tuple(outputs), is_tuple)

    def _is_whole(self, output: Any) -> bool:
        """Tell whether an output is all of a tensor that was allocated."""
        place = self.places.get(id(output))
        if place is None or place.tensor < self.given or place.offset:
            return False
        return self.tensors[place.tensor].untyped_storage().nbytes() == output.nbytes

    def _arguments(self, launched: Launched, places: dict[Place, int]) -> Any:
        """A launch of a `Call`; None if it has a tensor that is not known."""
        constants: list[Any] = []
        source = self._source(launched.arguments, places, constants)
        if source is None:
            return None
        return launched.start, launched.kernel, launched.grid, eval(f"lambda p: {source}", {"c": constants})

    def _source(self, argument: Any, places: dict[Place, int], constants: list[Any]) -> str | None:
        """An argument as Python makes it from the addresses p and the constants c; None for a tensor not known."""
        if isinstance(argument, Tensor):
            place = self.places.get(id(argument))
            return None if place is None else f"p[{places.setdefault(place, len(places))}]"
        if isinstance(argument, tuple):
            fields = [self._source(field, places, constants) for field in argument]
            return None if None in fields else f"({''.join(f'{field}, ' for field in fields)})"
        constants.append(argument)
        return f"c[{len(constants) - 1}]"


def _allocation(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a function that allocates another tensor like this."""
    options = {"dtype": tensor.dtype, "device": tensor.device}
    if tensor.is_contiguous():
        return partial(torch.empty, tensor.shape, **options)
    return partial(torch.empty_strided, tensor.shape, tensor.stride(), **options)
