"""The interpreter in which kernels are tested adds in one order, on every CPU."""

from inspect import getclosurevars
from types import SimpleNamespace

import interpreter
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton_kernels import INTERPRETED, MARKS

pytestmark = [*MARKS, pytest.mark.skipif(not INTERPRETED, reason="of the interpreter")]


@triton.jit
def products_and_sums(a_ptr, b_ptr, product_ptr, sum_ptr, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    a, b = tl.load(a_ptr + m[:, None] * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(product_ptr + m[:, None] * N + n[None, :], tl.dot(a, b, input_precision="ieee"))
    tl.store(sum_ptr + m, tl.sum(a, 1))


def by_halves(terms):
    """Number by number."""
    terms = list(terms)
    while len(terms) > 1:
        terms = [x + y for x, y in zip(terms[: len(terms) // 2], terms[len(terms) // 2 :])]
    return terms[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (16, 16, 16), (2, 64, 4), (64, 128, 128), (4, 1024, 2)])
def test_products_and_sums_are_made_by_halves(M, K, N, dtype):
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    product, total = torch.empty(M, N), torch.empty(M, dtype=dtype)
    products_and_sums[(1,)](a, b, product, total, M, K, N)
    x, y = a.numpy().astype(np.float32), b.numpy().astype(np.float32)
    rows, columns = (0, M // 2, M - 1), (0, N // 2, N - 1)
    for i in rows:
        assert total[i].item() == by_halves(a.numpy()[i])
        for j in columns:
            assert product[i, j].item() == by_halves(x[i] * y[:, j])


@pytest.mark.parametrize("N", [1, 2, 4, 8, 16, 32, 128, 1024])
def test_equal_columns_have_equal_products(N):
    """In BLAS the last columns are often another kernel's, with other sums."""
    a, b = torch.randn(16, 32), torch.randn(32, 1).expand(32, N).contiguous()
    product = torch.empty(16, N)
    products_and_sums[(1,)](a, b, product, torch.empty(16), 16, 32, N)
    assert torch.equal(product, product[:, :1].expand(16, N))


@pytest.mark.parametrize("name", interpreter.FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_functions_are_float64s_rounded(name, dtype):
    from triton.runtime.interpreter import np as of_interpreter

    x = np.linspace(0.01, 10, 1000).astype(dtype)
    found = getattr(of_interpreter, name)(x)
    assert found.dtype == dtype
    assert np.array_equal(found, getattr(np, name)(x.astype(np.float64)).astype(dtype))


@pytest.mark.parametrize(
    "missing",
    [
        *("np", "_patch_lang", "GridExecutor", "ReduceOps", "ScanOps", "interpreter_builder"),
        *("_patch_attr", "_get_np_dtype", "interpreter_semantic"),
    ],
)
def test_an_interpreter_of_another_kind_is_refused_in_words(missing, monkeypatch):
    from triton import runtime

    other = SimpleNamespace(**{name: value for name, value in vars(runtime.interpreter).items() if name != missing})
    if hasattr(other, "np"):
        other.np = np
    monkeypatch.setattr(runtime, "interpreter", other)
    for owner, name in (("ReduceOps", "generic_reduce"), ("ScanOps", "generic_scan"), ("GridExecutor", "__call__")):
        cls = getattr(runtime.interpreter, owner, None)
        if cls is not None:
            monkeypatch.setattr(cls, name, getattr(cls, name))
    for cls in (tl.core.block_type, tl.core.tensor):
        monkeypatch.setattr(cls, "__init__", cls.__init__)
    with pytest.raises(RuntimeError, match=r"its interpreter is not as in 3.7 to 3.9.*Adapt that file"):
        interpreter.install()


def made(by, of, *args):
    """What an object of a class has after a constructor, in words."""
    new = object.__new__(of)
    by(new, *args)
    return {name: str(value) for name, value in vars(new).items()}


@pytest.mark.parametrize("shape", [[1], [8], [2, 64], [4, 1, 16]])
@pytest.mark.parametrize("element", [tl.float32, tl.int1, tl.bfloat16, tl.pointer_type(tl.float16)], ids=str)
def test_types_and_tensors_are_those_of_triton(element, shape):
    block, tensor = tl.core.block_type, tl.core.tensor
    of_type = getclosurevars(block.__init__).nonlocals["make_type"]
    of_tensor = getclosurevars(tensor.__init__).nonlocals["make_tensor"]
    for type_ in (block(element, shape), element):
        for _ in range(2):  # the second time they are remembered
            assert made(block.__init__, block, element, shape) == made(of_type, block, element, shape)
            assert made(tensor.__init__, tensor, None, type_) == made(of_tensor, tensor, None, type_)


def test_dtypes_are_those_of_triton():
    from triton.runtime import interpreter as tritons

    find = getclosurevars(tritons._get_np_dtype).nonlocals["find"]
    integers = (tl.int1, tl.int8, tl.uint8, tl.int16, tl.uint16, tl.int32, tl.uint32, tl.int64, tl.uint64)
    for scalar in (*integers, tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.float8e5):
        for of in (
            scalar,
            tl.pointer_type(scalar),
            tl.block_type(scalar, [4]),
            tl.block_type(tl.pointer_type(scalar), [4]),
        ):
            assert tritons._get_np_dtype(of) == find(of)


def test_an_interpreter_that_adds_otherwise_is_refused(monkeypatch):
    from triton.runtime import interpreter as tritons

    monkeypatch.setattr(tritons, "np", SimpleNamespace(**vars(tritons.np) | {"matmul": np.matmul}))
    with pytest.raises(AssertionError, match=r"tl.dot gives .*; expected 2.5"):
        interpreter.check(tritons)
