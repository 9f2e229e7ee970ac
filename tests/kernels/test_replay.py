"""Calls done again: which are, and that they are what was noted; with a kernel that is a list of what it was given."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from firebolt_vl.kernels import replay, use_implementation
from firebolt_vl.kernels.configurations import answering
from firebolt_vl.kernels.replay import Launched, replayed

started, written = [], []


def start(kernel, grid, arguments):
    started.append((kernel, grid, arguments))


def launch(*arguments, grid=(1, 1, 1)):
    replay.note(Launched(start, "kernel", grid, arguments))


@replayed
def double(x, factor=2, *, other=None, copied=False, scratch=0, raises=False):
    """Launch one kernel, on x, a view of x, memory of its own, and the output, which is complex."""
    written.append(factor)
    if raises:
        raise ValueError("double: raises is True; expected False")
    if copied:
        x = x.clone()
    y = torch.empty(*x.shape, 2)
    own = x.new_empty(scratch) if scratch else None
    launch(x, (x[1:], x.stride()), own, factor, y, other, grid=(x.shape[0], 1, 1))
    return torch.view_as_complex(y), x.new_empty(3)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Overriding(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def any_device():
    with replay.on_any_device():
        started.clear()
        written.clear()
        yield


def calls(*variants):
    """How often the function runs as it is written while it is called with each of (arguments, options) twice."""
    written.clear()
    for _ in range(2):
        for arguments, options in variants:
            double(*arguments, **options)
    return len(written)


def test_the_second_call_does_what_the_first_did_with_its_own_tensors():
    for x in (torch.ones(4, 3), torch.zeros(4, 3)):
        y, spare = double(x, 5, scratch=2)
    kernel, grid, (first, (second, strides), own, factor, output, other) = started[-1]
    assert written == [5]
    assert (kernel, grid) == ("kernel", (4, 1, 1))
    assert (first, second, strides) == (x.data_ptr(), x[1:].data_ptr(), (3, 1))
    assert (factor, output, other) == (5, y.data_ptr(), None)
    assert own not in (first, second, output)
    assert (y.shape, y.dtype, y.stride(), spare.shape) == ((4, 3), torch.complex64, (3, 1), (3,))


def test_two_views_of_one_memory_are_two_tensors():
    both = torch.ones(2, 4, 3)
    for x, other in (both, both.flip(0).contiguous()[[1, 0]], (both[1], both[0])):
        double(x, other=other)
    _, _, (first, *_, last) = started[-1]
    assert len(written) == 1
    assert (first, last) == (both[1].data_ptr(), both[0].data_ptr())


X = torch.ones(6, 4)


@pytest.mark.parametrize(
    "other",
    [
        ((torch.ones(5, 4),), {}),
        ((torch.ones(4, 6).mT,), {}),
        ((X.double(),), {}),
        ((torch.ones(25)[1:].view(6, 4),), {}),
        ((X, 3), {}),
        ((X, 1.0), {}),
        ((X, True), {}),
        ((X,), {"other": X}),
    ],
    ids=["shape", "strides", "dtype", "alignment", "number", "float", "bool", "tensor"],
)
def test_another_layout_is_another_call(other):
    assert calls(((X, 1), {}), other) == 2


def test_a_call_that_does_or_holds_more_runs_as_it_is_written(monkeypatch):
    monkeypatch.setattr(replay, "MOST_BESIDE_OUTPUTS", 64)
    assert calls(((X,), {"copied": True})) == 2
    assert calls(((X,), {"scratch": 17})) == 2
    assert calls(((X,), {"scratch": 16})) == 1
    assert calls(((X,), {"other": torch.float32})) == 2


def test_an_error_is_raised_each_time():
    for _ in range(2):
        with pytest.raises(ValueError, match="raises is True"):
            double(X, raises=True)
    assert not replay.is_noting()
    assert calls(((X,), {})) == 1


def test_another_configuration_or_implementation_is_another_call():
    def answer(question):
        return question.default

    assert calls(((X,), {})) == 1
    for region in (answering(answer), use_implementation("triton")):
        with region:
            assert calls(((X,), {})) == 1
        assert calls(((X,), {})) == 0


@pytest.mark.parametrize(
    "watched",
    [
        Watching,
        Overriding,
        lambda: torch.device("cpu"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        replay.off,
    ],
    ids=["dispatch mode", "function mode", "default device", "autocast", "off"],
)
def test_a_call_that_somebody_looks_at_runs_as_it_is_written(watched):
    double(X)
    with watched():
        assert calls(((X,), {})) == 2
    assert calls(((X,), {})) == 0


def test_gradients_and_transforms_want_the_function_as_it_is_written():
    x = torch.ones(6, 4, requires_grad=True)
    double(X)
    assert calls(((x,), {})) == 2
    with torch.no_grad():
        assert calls(((x,), {})) == 0
    assert calls(((torch.nn.Parameter(X, requires_grad=False),), {})) == 0
    torch.func.vmap(lambda x: double(x)[0].real + x.sum())(torch.ones(2, 6, 4))
    assert len(written) == 1


@pytest.mark.parametrize("x", [X.to(torch.complex64).conj(), X.to(torch.complex64).conj().imag, X.to_sparse()])
def test_a_tensor_that_is_not_its_memory_is_read_as_written(x):
    @replayed
    def function(x):
        written.append(x)
        launch(torch.empty(3))
        return torch.empty(3)

    function(x)
    function(x)
    assert len(written) == 2


def test_on_a_cpu_nothing_is_repeated(monkeypatch):
    monkeypatch.setattr(replay, "_any_device", False)
    assert calls(((X,), {})) == 2


def test_so_many_layouts_are_remembered(monkeypatch):
    monkeypatch.setattr(replay, "MOST_CALLS", 2)
    assert calls(((X,), {}), ((X, 1), {})) == 2
    assert calls(((X,), {}), ((X, 1), {}), ((X, 3), {})) > 1
    assert len(replay._known) <= 2


def test_compiled_code_has_the_function_whole():
    compiled = torch.compile(lambda x: double(x)[1] + 1, backend="eager")
    compiled(X)
    assert len(written) == 1
