"""The error budget takes what float32 cannot help and refuses what is a little wrong."""

import math
from functools import partial

import pytest
import torch
from selective_scans import in_order
from selective_scans import inputs as scan_inputs
from triton_kernels import INTERPRETED, MARKS, check_against_definition

from firebolt_vl import kernels
from firebolt_vl.bench.budget import over_budget
from firebolt_vl.bench.cases import Case, inputs
from firebolt_vl.kernels import reference

EPS = torch.finfo(torch.float32).eps


def product(tensors):
    x, w = tensors
    return [x @ w.mT]


def missing_term(x, w):
    return [x[:, 1:] @ w[:, 1:].mT]


def missing_step(x, w):
    return [x[:, :-16] @ w[:, :-16].mT]


def bfloat16_product(x, w):
    return [x.bfloat16().float() @ w.bfloat16().float().mT]


def tf32_product(x, w):
    def rounded(x):
        return ((x.view(torch.int32) + 2**12) >> 13 << 13).view(torch.float32)

    return [rounded(x) @ rounded(w).mT]


def float16_sum(x, w):
    total = torch.zeros(x.shape[0], w.shape[0], dtype=torch.float16)
    for k in range(x.shape[1]):
        total += (x[:, k, None] * w[None, :, k]).half()
    return [total.float()]


def one_after_the_other(x, w):
    total = torch.zeros(x.shape[0], w.shape[0])
    for k in range(x.shape[1]):
        total += x[:, k, None] * w[None, :, k]
    return [total]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("K", [16, 256, 4096])
def test_products_in_other_orders_pass(K, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(20, K, generator=generator), torch.randn(30, K, generator=generator)
    assert over_budget(product([x, w]), product, [x, w]) is None
    assert over_budget(one_after_the_other(x, w), product, [x, w]) is None
    assert over_budget(product([x.flip(1), w.flip(1)]), product, [x, w]) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("K", [32, 256, 4096])
@pytest.mark.parametrize("wrong", [missing_term, missing_step, bfloat16_product, tf32_product, float16_sum])
def test_wrong_products_are_refused(wrong, K, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(20, K, generator=generator), torch.randn(30, K, generator=generator)
    assert "from float64" in over_budget(wrong(x, w), product, [x, w])


@pytest.mark.parametrize("seed", range(20))
def test_a_single_number_near_cancellation_is_judged_by_what_cancels(seed):
    """The sum of terms of size 1 is some 1e-4: in another order it is off by hundreds of roundings of itself."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4096, generator=generator)
    x[0] -= x.double().sum().float() - 1e-4

    def total(tensors):
        return [tensors[0].sum()]

    assert over_budget([x.cumsum(0)[-1]], total, [x]) is None
    assert over_budget([x.flip(0).cumsum(0)[-1]], total, [x]) is None
    assert "from float64" in over_budget([x.half().float().sum()], total, [x])
    assert "from float64" in over_budget([x[:-1].sum()], total, [x])


def test_where_the_definition_is_right_to_the_last_bit_some_roundings_are_allowed():
    x = torch.tensor([1.0, 2.0])
    assert over_budget([x * (1 + 2 * EPS)], lambda tensors: tensors, [x]) is None
    assert "from float64" in over_budget([x * (1 + 20 * EPS)], lambda tensors: tensors, [x])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_even_where_the_definition_is_not(wrong):
    x = torch.tensor([1.0, 1e38])
    assert "from float64" in over_budget([torch.tensor([wrong, math.inf])], lambda tensors: [10 * tensors[0]], [x])
    assert over_budget([torch.tensor([10.0, math.inf])], lambda tensors: [10 * tensors[0]], [x]) is None


def test_shapes_and_dtypes_have_to_be_the_definitions():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match=r"shape is \(2,\); expected \(3,\)"):
        over_budget([x[:2]], lambda tensors: tensors, [x])
    with pytest.raises(AssertionError, match=r"y is torch\.float16; expected torch\.float32"):
        over_budget([x.half()], lambda tensors: tensors, [x], names=["y"])


def without_the_last_term(matmul, x, y, dtype=None):
    x = x.copy()
    x[..., -1] = 0
    return matmul(x, y, dtype)


def of_bfloat16(matmul, x, y, dtype=None):
    x, y = (torch.from_numpy(t.astype("float32")).bfloat16().float().numpy() for t in (x, y))
    return matmul(x, y, dtype)


def summed_in_float16(matmul, x, y, dtype=None):
    return matmul(x, y, "float16").astype(dtype)


OPS = {
    "correlation_context": Case({"B": 2, "T": 20, "G": 20, "K": 4, "D": 40, "H": 2, "D_h": 32}),
    "grounded_film": Case({"B": 2, "T": 20, "G": 5, "K": 4, "D": 40, "H": 2, "D_h": 32}),
    "film_residual": Case({"B": 2, "T": 20, "G": 20, "D": 40}),
    "vandermonde": Case({"D": 2, "N": 16, "L": 200}),
    "fft_conv": Case({"B": 2, "D": 2, "L": 200}),
    "diagonal_scan": Case({"B": 2, "D": 2, "L": 100, "N": 16}, ("state",)),
}


def check_op(op, seed):
    call = inputs(op, OPS[op], "float32", seed=seed)

    def by(module, *tensors):
        given = iter(tensors)
        same = call.map(lambda _: next(given))
        return getattr(module, op)(*same.args, **same.kwargs)

    with torch.no_grad():
        outputs = by(reference, *call.tensors())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.randn_like(output) for output in outputs]
    check_against_definition(partial(by, kernels), call.tensors(), cotangents, definition=partial(by, reference))


@pytest.mark.skipif(not INTERPRETED, reason="breaks the interpreter's products")
class TestKernels:
    """Kernels whose products or sums are broken are refused; as they are they pass."""

    pytestmark = MARKS

    @pytest.mark.parametrize("op", OPS)
    def test_as_they_are(self, op):
        check_op(op, seed=0)

    @pytest.mark.parametrize("wrong", [of_bfloat16, summed_in_float16])
    @pytest.mark.parametrize("op", OPS)
    def test_products_of_less_precision(self, op, wrong, monkeypatch):
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.np, "matmul", partial(wrong, interpreter.np.matmul))
        with pytest.raises(AssertionError, match="from float64"):
            check_op(op, seed=0)

    @pytest.mark.parametrize("op", ["correlation_context", "grounded_film", "fft_conv", "diagonal_scan"])
    def test_products_without_their_last_term(self, op, monkeypatch):
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.np, "matmul", partial(without_the_last_term, interpreter.np.matmul))
        with pytest.raises(AssertionError, match="from float64"):
            check_op(op, seed=0)

    def test_sums_in_float16(self, monkeypatch):
        from triton.runtime import interpreter

        right = interpreter.np.sum

        def total(x, **options):
            return (
                right(x.astype("float16"), **options).astype(x.dtype) if x.dtype == "float32" else right(x, **options)
            )

        named = scan_inputs(dtype=torch.float32, L=20)
        ours, theirs = (in_order(module.selective_scan, named, delta_softplus=True) for module in (kernels, reference))
        check = partial(check_against_definition, ours, list(named.values()), definition=theirs)
        check([torch.randn(2, 4, 20), torch.randn(2, 4, 3)])
        monkeypatch.setattr(interpreter.np, "sum", total)
        with pytest.raises(AssertionError, match="from float64"):
            check([torch.randn(2, 4, 20), torch.randn(2, 4, 3)])
