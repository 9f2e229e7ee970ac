"""What a compiled kernel relies on, by Triton's own types; and how it is started, with one that only counts."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import BaseBackend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, native_specialize_impl

from firebolt_vl.kernels import compiled
from firebolt_vl.kernels.common.strided import Strided, strided


class Sizes(NamedTuple):
    x: Strided
    mask: Strided | None
    T: int
    L: int
    H: Any

    do_not_specialize = ("T",)
    do_not_specialize_on_alignment = ("mask",)


def function(x, sizes, n, slots, BLOCK: tl.constexpr):
    pass


KERNEL = JITFunction(function, do_not_specialize=["slots"])
X, MASK = torch.ones(4, 8, 32), torch.ones(4, 32, dtype=torch.bool)


def classes(x=X, n=7, slots=3, block=32, **sizes):
    given = {"x": strided(x), "mask": strided(MASK), "T": 5, "L": 7, "H": tl.constexpr(2)} | sizes
    return compiled.specialization(KERNEL, (x, Sizes(**given), n, slots, block))


@pytest.mark.parametrize(
    "other",
    [
        {"n": 1},
        {"slots": 1},
        {"slots": 16},
        {"T": 1},
        {"T": 16},
        {"L": 1},
        {"x": torch.ones(2, 3, 48)},
        {"x": torch.ones(1, 3, 48)},
        {"mask": strided(torch.ones(3, 5, dtype=torch.bool))},
        {"mask": strided(torch.ones(16 + 15, dtype=torch.bool)[1:].view(3, 10))},
    ],
    ids=str,
)
def test_sizes_that_vary_are_one_kernel(other):
    assert classes(**other) == classes()


@pytest.mark.parametrize(
    "other",
    [
        {"n": 32},
        {"n": 2**31},
        {"L": 16},
        {"block": 16},
        {"H": tl.constexpr(3)},
        {"mask": None},
        {"x": X.half()},
        {"x": X.mT},
        {"x": torch.ones(4, 8, 33)},
        {"x": torch.ones(4, 8, 33)[:, :, :32]},
        {"x": torch.ones(4 * 8 * 32 + 1)[1:].view(4, 8, 32)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_a_kernel_may_rely_on_makes_another(other):
    assert classes(**other) != classes()


def test_rows_at_multiples_of_16_are_known_to_be():
    kinds, known = zip(*classes())
    assert kinds[1].x == Strided("*fp32", ("i32", "i32", "constexpr"))
    assert known[1].x == Strided("D", ("D", "D", 1))
    assert known[1].mask == Strided("", ("", 1))
    _, known = zip(*classes(x=torch.ones(4, 8, 33)))
    assert known[1].x == Strided("", ("", "", 1))


NAMES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPES = [getattr(torch, name) for name in NAMES]


@pytest.mark.parametrize(
    "argument", [*(torch.ones(2, 16, dtype=dtype) for dtype in DTYPES), None, True, 2.5, -5, 2**40], ids=str
)
def test_types_are_those_that_triton_finds(argument):
    ours, _ = compiled.specialization(KERNEL, (argument, None, 7, 3, 32))[0]
    assert ours == native_specialize_impl(BaseBackend, argument, False, True, True)[0]


def test_constants_and_multiples_reach_the_compiler():
    backend = SimpleNamespace(
        parse_options=lambda options: SimpleNamespace(num_warps=options["num_warps"]), parse_attr=BaseBackend.parse_attr
    )
    arguments = (X, Sizes(strided(X), None, 5, 48, tl.constexpr(2)), 7, 3, 32)
    _, signature, constants, attributes = compiled.compilation(KERNEL, backend, arguments, {"num_warps": 4})
    assert list(signature) == ["x", "sizes", "n", "slots", "BLOCK"]
    assert constants == {(1, 0, 1, 2): 1, (1, 1): None, (1, 4): tl.constexpr(2), (4,): 32}
    multiples = [path for path, attribute in attributes.items() if attribute == [["tt.divisibility", 16]]]
    assert multiples == [(0,), (1, 0, 0), (1, 0, 1, 0), (1, 0, 1, 1), (1, 3)]


def test_an_argument_that_no_kernel_takes():
    with pytest.raises(TypeError, match="is of type dict"):
        compiled.specialization(KERNEL, (X, {}, 7, 3, 32))


class Kernel:
    function, packed_metadata = 5, (4, 1, 0)

    def __init__(self):
        self.runs, self.asked = [], []

    def launch_metadata(self, *arguments):
        self.asked.append(arguments)
        return "metadata"

    def run(self, *arguments):
        self.runs.append(arguments)


@pytest.fixture
def device(monkeypatch):
    found = SimpleNamespace(get_current_device=lambda: 3, get_current_stream=lambda device: 100 + device)
    monkeypatch.setattr(driver, "_active", found)
    return found


def test_a_kernel_starts_on_the_current_stream(device):
    kernel = Kernel()
    compiled.start(kernel, (6, 2, 1), (64, (1, 2)))
    (run,) = kernel.runs
    assert run == (6, 2, 1, 103, 5, (4, 1, 0), None, None, None, 64, (1, 2))
    assert kernel.asked == []


def test_a_profiler_is_told_of_each_launch(device, monkeypatch):
    hooks = triton.knobs.runtime.launch_enter_hook
    monkeypatch.setattr(hooks, "calls", [print])
    kernel = Kernel()
    compiled.start(kernel, (6, 2, 1), (64,))
    assert kernel.asked == [((6, 2, 1), 103, 64)]
    assert kernel.runs[0][6:8] == ("metadata", hooks)


@pytest.fixture
def compilations(device, monkeypatch):
    """The compilations that Triton was asked for; each gives a kernel."""
    seen = []
    caches = {}

    def do_compile(key, *rest):
        seen.append(key)
        caches[key] = Kernel()
        return caches[key]

    backend = SimpleNamespace(parse_options=lambda options: SimpleNamespace(), parse_attr=BaseBackend.parse_attr)
    monkeypatch.setattr(KERNEL, "device_caches", {3: (caches, {}, None, backend, None)})
    monkeypatch.setattr(KERNEL, "_do_compile", do_compile, raising=False)
    return seen


def arguments(n):
    return X, Sizes(strided(X), None, 5, 48, tl.constexpr(2)), n, 3, 32


def test_a_kernel_is_compiled_once_for_a_class_and_its_options(compilations):
    found = [compiled.find(KERNEL, arguments(n), {}) for n in (7, 9, 1)]
    assert len({*found}) == len(compilations) == 1
    assert compiled.find(KERNEL, arguments(48), {}) is not found[0]
    assert len(compilations) == 2


@pytest.mark.parametrize("hook", ["jit_cache_hook", "jit_post_compile_hook", "add_stages_inspection_hook", "debug"])
def test_a_tool_that_watches_compilations_has_triton_do_it(compilations, monkeypatch, hook):
    with triton.knobs.runtime.scope():
        setattr(triton.knobs.runtime, hook, lambda *arguments, **named: None)
        assert compiled.find(KERNEL, arguments(7), {}) is None
    assert compilations == []
    assert compiled.find(KERNEL, arguments(7), {}) is not None


def test_a_triton_that_was_not_tried_starts_kernels_itself(compilations, monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert compiled.find(KERNEL, arguments(7), {}) is None
    assert compilations == []
