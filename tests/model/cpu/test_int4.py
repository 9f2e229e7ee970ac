"""Weights in 4 bits: groups of 32 with a scale, by hand, by equation, and through a kernel that none may rely on."""

import copy
import pickle

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from torch import nn

from firebolt_vl.model import logits_drift, quantize_int4, quantize_int8
from firebolt_vl.model.cpu import int4
from firebolt_vl.model.cpu.int4 import GROUP, Int4Linear, has_kernels, quantize_linear_int4, rounded_to_4_bits
from firebolt_vl.model.cpu.quantization import Int8Linear

KERNELS = [
    pytest.param(True, marks=pytest.mark.skipif(not has_kernels(), reason="this CPU has no 4-bit kernels")),
    False,
]
kernels = pytest.mark.parametrize("kernels", KERNELS, ids=["kernels", "plain"])


def quantized(linear: nn.Linear, kernels: bool) -> Int4Linear:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int4, "has_kernels", lambda: kernels)
        quantize_linear_int4(linear)
    assert isinstance(linear, Int4Linear)
    assert (linear.packed is not None) == kernels
    return linear


def codes_of(*values: float) -> list[int]:
    """The codes of a row that begins with these values, the rest of the group zeros."""
    row = torch.zeros(1, GROUP)
    row[0, : len(values)] = torch.tensor(values)
    codes, _ = rounded_to_4_bits(row)
    both = torch.stack([codes & 15, codes >> 4], -1).flatten()
    assert (both[len(values) :] == 8).all()
    return both[: len(values)].tolist()


def test_the_rounding_by_hand():
    # The farthest weight is -8, so that s = 1 and the code of w is w + 8.
    assert codes_of(-8, 3, 7, -1, 0) == [0, 11, 15, 7, 8]
    # The farthest weight is 4, so that s = -1/2: its own code is 0, that of -4, which would be 16, is 15.
    assert codes_of(4, -3.5, -4, 1) == [0, 15, 15, 6]
    # Halves go to the even neighbour, as torch.round has them.
    assert codes_of(-8, 0.5, 1.5, -0.5, -1.5) == [0, 8, 10, 8, 6]
    # Of two that are equally far the first counts.
    assert codes_of(-8, 8) == codes_of(8, -8) == [0, 15]
    assert codes_of(0.0, -0.0) == [8, 8]


def test_scales_are_of_groups_and_rounded_before_the_codes():
    weight = torch.zeros(2, 2 * GROUP)
    weight[0, 5], weight[0, GROUP] = -16, 1
    weight[1, 0] = -8.02  # s = 1.0025 is 1 in bfloat16
    weight[1, 1] = 2.503  # 2.4968 of the exact scale, 2.503 of the rounded
    codes, scale = rounded_to_4_bits(weight)
    assert (codes.dtype, codes.shape, scale.dtype) == (torch.uint8, (2, GROUP), torch.bfloat16)
    assert scale.tolist() == [[2, -0.125], [1, 0]]
    assert codes[1, 0].item() == 0 + (11 << 4)
    assert (codes[1, GROUP // 2 :] == 0x88).all()


@pytest.mark.parametrize("value", [1e-30, 1e-45, 3e38])
def test_weights_of_any_size_stay_finite(value):
    linear = nn.Linear(GROUP, 16, bias=False)
    with torch.no_grad():
        linear.weight.fill_(value)
    assert_close(quantized(linear, False).weight, torch.full((16, GROUP), value), relative=2**-8, absolute=1e-39)


@kernels
@given(
    rows=st.sampled_from([(1,), (7,), (2, 3), (3, 1, 5), (0, 4)]),
    width=st.integers(1, 100),
    out=st.integers(1, 40),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_layer_is_its_equation(kernels, rows, width, out, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(out, width, generator=generator))
        linear.weight[0] = 0
        weight = linear.weight.clone()
        quantized(linear, kernels)
        step = weight.abs().max() / 8
        # Half a step, a whole one at the end opposite to the farthest weight, and the scale's own rounding.
        assert ((linear.weight - weight).abs() <= step * (1 + 2**-4)).all()
        x = torch.randn(*rows, width, generator=generator)
        found = linear(x).double()
        wanted = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
        assert found.shape == wanted.shape
        size = x.double().abs() @ linear.weight.double().abs().T
        # Kernels round x and y to bfloat16, 2^-9 each, and add in float32.
        assert ((found - wanted).abs() <= size * (2**-7.9 if kernels else 2**-20) + 1e-6).all()


@pytest.mark.skipif(not has_kernels(), reason="this CPU has no 4-bit kernels")
@given(width=st.integers(1, 100), out=st.integers(1, 70), seed=st.integers(0, 99))
def test_what_the_kernel_holds_is_read_back_to_the_bit(width, out, seed):
    linear = nn.Linear(width, out)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(out, width, generator=torch.Generator().manual_seed(seed)))
    codes, scale = rounded_to_4_bits(linear.weight.detach())
    found, found_scale = quantized(linear, True).codes()
    assert torch.equal(found, codes)
    assert torch.equal(found_scale, scale)


@kernels
def test_copies_casts_and_moves_keep_the_codes(kernels):
    linear = quantized(nn.Linear(40, 24), kernels)
    weight = linear.weight
    for same in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), copy.deepcopy(linear).half().float()):
        assert torch.equal(same.weight, weight)
    away = copy.deepcopy(linear).to("meta")
    assert away.packed is None
    assert (away.int4_weight.device.type, away.int4_weight.shape) == ("meta", (24, 32))
    with pytest.raises(RuntimeError, match=r"weight.data is set"):
        linear.weight.data = weight


@kernels
def test_inputs_have_gradients(kernels):
    linear = quantized(nn.Linear(40, 24).requires_grad_(False), kernels)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(linear(x).sum(), x)
    assert_close(found, linear.weight.sum(0).expand(3, -1), relative=1e-5)


def test_a_kernel_that_means_something_else_is_not_used(monkeypatch):
    has_kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(int4, "_packed_product", lambda x, packed, pairs: x.new_ones(len(x), 16))
        patch.setattr(int4, "_packed", lambda codes: codes)
        assert not has_kernels()
        has_kernels.cache_clear()
        patch.setattr(int4, "PRODUCT", "_no_such_operator")
        assert not has_kernels()
    has_kernels.cache_clear()


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_answers_and_drifts_more_than_in_8_bits(kernels, dtype, monkeypatch):
    monkeypatch.setattr(int4, "has_kernels", lambda: kernels)
    plain = tiny_models.make_model().to(dtype)
    model, eight = quantize_int4(copy.deepcopy(plain)), quantize_int8(copy.deepcopy(plain))
    assert isinstance(model.lm_head, Int8Linear)
    assert isinstance(model.model.connector.q_proj, Int4Linear)
    inputs = {**tiny_models.make_text([12, 7]), **tiny_models.make_pixels(2)}
    drift = logits_drift(plain, model, **inputs)["relative"]
    assert logits_drift(plain, eight, **inputs)["relative"] < drift < 0.5
    asked = {**inputs, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**asked), model.generate(**asked, use_cache=False)) or dtype != torch.float32


def test_what_cannot_be_done_is_refused():
    model = tiny_models.make_model()
    with torch.no_grad():
        model.model.connector.q_proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"quantize_int4: model has inf or nan in model.connector.q_proj.weight"):
        quantize_int4(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model = quantize_int4(tiny_models.make_model())
    for again in (quantize_int4, quantize_int8):
        with pytest.raises(ValueError, match="model has its weights in 4 bits; expected one that is not"):
            again(model)
