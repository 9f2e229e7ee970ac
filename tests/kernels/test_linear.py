"""The dense product: what torch.nn.functional.linear gives, whoever computes it."""

import importlib
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.cmm.linear import Linear
from firebolt_vl.kernels import reference
from firebolt_vl.kernels.linear import PRODUCT, linear, onednn

# By its name: as an attribute of the package, `linear` is the function.
module = importlib.import_module("firebolt_vl.kernels.linear.pytorch")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, PRODUCT)
ONEDNN = pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN"))
BOTH = pytest.mark.parametrize("onednn", [False, ONEDNN])


@pytest.fixture
def by_onednn(monkeypatch):
    """Take oneDNN, or not, for products of any size."""

    def choose(onednn):
        monkeypatch.setattr(module, "ONEDNN", onednn)
        monkeypatch.setattr(module, "LEAST_WEIGHTS", 0)

    return choose


@pytest.fixture
def products(by_onednn, monkeypatch):
    """The shapes of what oneDNN is asked to multiply."""
    calls, product = [], module.product

    def counted(x, weight, bias):
        calls.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias)

    by_onednn(True)
    monkeypatch.setattr(module, "product", counted)
    return calls


def gradients(function, g, *tensors):
    """y and the gradients of x, weight and, where it is given, bias, for g as y's."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, g)]


@pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
@given(
    rows=st.sampled_from([(1,), (7,), (2, 3), (1, 1), (3, 1, 5)]),
    K=st.sampled_from([1, 3, 64, 100]),
    N=st.sampled_from([1, 2, 48, 130]),
    biased=st.booleans(),
    transposed=st.booleans(),
    every_other=st.booleans(),
)
def test_value_and_gradients_are_as_exact_as_pytorchs(rows, K, N, biased, transposed, every_other):
    weight = torch.randn(K, N).mT if transposed else torch.randn(N, K)
    x = torch.randn(*rows, 2 * K)[..., ::2] if every_other else torch.randn(*rows, K)
    tensors = [torch.randn(*rows, N), x, weight, *[torch.randn(N)] * biased]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ONEDNN", True)
        patch.setattr(module, "LEAST_WEIGHTS", 0)
        found = gradients(partial(linear, bias=None) if not biased else linear, *tensors)
    problem = over_budget(found, lambda changed: gradients(F.linear, *changed), tensors)
    assert problem is None, problem


def test_it_is_the_definition():
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4)
    torch.testing.assert_close(linear(x, weight, bias), reference.linear(x, weight, bias))
    torch.testing.assert_close(linear(x[0, 0], weight), reference.linear(x[0, 0], weight))


@BOTH
def test_second_gradients_are_there(by_onednn, onednn):
    by_onednn(onednn)
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    seconds = []
    for function in (linear, F.linear):
        (first,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for ours, theirs in zip(*seconds):
        assert_close(ours, theirs, relative=1e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_onednn_makes_float32_products_forward_and_backward_and_no_others(products):
    layer = Linear(8, 6)
    layer(torch.randn(2, 5, 8, requires_grad=True)).sum().backward()
    assert products == [((10, 8), (6, 8)), ((10, 6), (8, 6)), ((6, 10), (8, 10))]
    products.clear()
    layer(torch.randn(1, 8))
    assert len(products) == 1
    products.clear()
    x = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert linear(x.double(), layer.weight.double()).dtype == torch.float64
    torch.func.vmap(lambda row: linear(row[None], layer.weight))(x)
    _, tangent = torch.func.jvp(lambda value: linear(value, layer.weight), (x,), (torch.ones_like(x),))
    assert_close(tangent, layer.weight.sum(1).expand(3, 6), relative=1e-5)
    assert linear(torch.empty(0, 8), layer.weight).shape == (0, 6)
    assert linear(torch.randn(8), layer.weight).shape == (6,)
    assert products == []


def test_a_slice_does_not_copy_the_weights():
    """PyTorch's own product of such a column copies them all: half of a prompt's time, for the head of a decoder."""
    weight = torch.randn(256, 64)
    column = torch.randn(1, 7, 64)[:, -1:]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear(column, weight)
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < weight.nbytes / 4


def test_wrong_sizes_are_told_as_pytorch_tells_them():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(2, 3), torch.randn(4, 5))


@BOTH
def test_it_compiles_into_one_graph(by_onednn, onednn):
    by_onednn(onednn)
    layer, x = Linear(8, 6), torch.randn(2, 3, 8, requires_grad=True)
    compiled = torch.compile(lambda x: torch.relu(layer(x)), fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(torch.relu(layer(x)).sum(), (x, layer.weight, layer.bias))
    for ours, theirs in zip(torch.autograd.grad(compiled(x).sum(), (x, layer.weight, layer.bias)), wanted):
        assert_close(ours, theirs, relative=1e-5)
    with torch.no_grad():
        assert_close(compiled(x), torch.relu(layer(x)), relative=1e-5)


@pytest.fixture
def slow_halves(monkeypatch):
    monkeypatch.setattr(module, "SLOW_HALVES", frozenset([torch.bfloat16, torch.float16]))
    monkeypatch.setattr(module, "WIDENED_WEIGHTS", 0)
    monkeypatch.setattr(module, "PIECE", 100)  # so that weights come in pieces, the last one smaller


@pytest.fixture
def dtypes_multiplied(monkeypatch):
    """The dtype of the weights of every product that is left to F.linear or oneDNN."""
    found, stock, product = [], F.linear, module.product
    monkeypatch.setattr(
        F, "linear", lambda x, weight, bias=None: (found.append(weight.dtype), stock(x, weight, bias))[1]
    )
    monkeypatch.setattr(module, "product", lambda *given: (found.append(given[1].dtype), product(*given))[1])
    return found


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_in_slow_half_precision_are_multiplied_in_float32_and_rounded_once(
    by_onednn, slow_halves, dtypes_multiplied, onednn, dtype, biased
):
    by_onednn(onednn)
    x, weight = torch.randn(3, 5, 24).to(dtype), torch.randn(50, 24).to(dtype)
    bias = torch.randn(50).to(dtype) if biased else None
    with torch.no_grad():
        found = linear(x, weight, bias)
    assert set(dtypes_multiplied) == {torch.float32}
    assert len(dtypes_multiplied) == 13
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() <= 0.51 * torch.finfo(dtype).eps * wanted.abs() + 1e-5).all()


def test_a_token_and_what_needs_gradients_stay_in_half_precision(slow_halves, dtypes_multiplied):
    x, weight = torch.randn(15, 24).bfloat16(), torch.randn(50, 24).bfloat16()
    with torch.no_grad():
        linear(x[:1], weight)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), x)
    assert gradient.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert linear(x, weight).dtype == torch.float16
    assert torch.float32 not in dtypes_multiplied


@pytest.mark.parametrize(
    ("capability", "bfloat16", "float16", "slow"),
    [
        ("AVX2", False, False, {torch.bfloat16, torch.float16}),
        ("AVX512", True, False, {torch.float16}),
        ("AVX512", True, True, set()),
        ("DEFAULT", False, False, set()),
    ],
)
def test_which_half_precision_is_slow_is_what_onednn_has_not(monkeypatch, capability, bfloat16, float16, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn, "onednn_has", lambda *names: True)
    for name, there in (("_is_mkldnn_bf16_supported", bfloat16), ("_is_mkldnn_fp16_supported", float16)):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda there=there: there)
    assert module._slow_halves() == slow


@pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_the_compilers_view_of_it_passes_opcheck():
    torch.library.opcheck(torch.ops.firebolt_vl.onednn_linear, (torch.randn(3, 8), torch.randn(6, 8), torch.randn(6)))


def test_the_choice_is_the_same_in_every_process():
    show = "from firebolt_vl.kernels.linear import ONEDNN; print(ONEDNN)"
    told = {subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout for _ in range(2)}
    assert told == {f"{module.ONEDNN}\n"}
