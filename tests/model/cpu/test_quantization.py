"""Weights in 8 bits: near the model they are made of, and as exact against themselves as any other."""

import copy

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from torch import nn

from firebolt_vl.kernels.linear import can_prepack
from firebolt_vl.model import (
    FireboltForConditionalGeneration,
    logits_drift,
    prepack_weights,
    quantize_int4,
    quantize_int8,
)
from firebolt_vl.model.cpu import prepacking, quantization
from firebolt_vl.model.cpu.joined import PartOfJoined
from firebolt_vl.model.cpu.quantization import VNNI, Int8Linear, has_kernels, quantize_linear
from firebolt_vl.model.cpu.quantized_models import quantized_linears

KERNELS = [
    pytest.param(True, marks=pytest.mark.skipif(not has_kernels(), reason="this CPU has no int8 kernels")),
    False,
]
kernels = pytest.mark.parametrize("kernels", KERNELS, ids=["kernels", "weights alone"])


def make_quantized(monkeypatch, kernels: bool, **model):
    monkeypatch.setattr(quantization, "has_kernels", lambda: kernels)
    return quantize_int8(tiny_models.make_model(**model))


@kernels
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_layer_is_its_equation(kernels, rows, width, out, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        linear.weight[0] = 0
        x = torch.randn(rows, width) * torch.logspace(-3, 3, rows)[:, None]
        x[0] = 0
        weight = linear.weight.double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantization, "has_kernels", lambda: kernels)
            quantize_linear(linear)
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
        rounded = (weight / scale).round() * scale
        taken = x.double()
        if kernels:
            token = (taken.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
            taken = (taken / token).round() * token
        wanted = taken @ rounded.T + (linear.bias.double() if bias else 0)
        found = linear(x).double()
        # A value that lies between two of the 255 may be rounded to either.
        step = (x.double().abs().amax(1, keepdim=True) / 127) * weight.abs().amax() * (1.01 if kernels else 0)
        assert ((found - wanted).abs() <= step + 1e-5 * wanted.abs().amax(1, keepdim=True) + 1e-12).all()
        assert_close(linear.weight.double(), rounded, relative=2e-2)


@pytest.mark.skipif(not has_kernels(), reason="this CPU has no int8 kernels")
@pytest.mark.parametrize("vnni", [False, pytest.param(True, marks=pytest.mark.skipif(not VNNI, reason="no VNNI"))])
@pytest.mark.parametrize("shape", [(1, 256), (2, 3, 96)], ids=["one row", "a batch"])
def test_the_largest_integers_add_up_exactly(vnni, shape, monkeypatch):
    monkeypatch.setattr(quantization, "VNNI", vnni)
    linear = nn.Linear(shape[-1], 33, bias=False)
    with torch.no_grad():
        linear.weight.random_(-127, 128)
        linear.weight[:11] = 127
        linear.weight[11:22] = -127
        linear.weight[:, 0] = 127
        integers = linear.weight.clone()
        quantize_linear(linear)
        x = torch.randint(-127, 128, shape).float()
        x[0] = x[..., 0] = 127
        assert torch.equal(linear.integers()[0].float(), integers)
        assert_close(linear(x), x @ integers.T, relative=1e-6)
        assert_close(linear(-x), -x @ integers.T, relative=1e-6)


@kernels
def test_a_token_gets_the_same_whatever_stands_beside_it(kernels, monkeypatch):
    monkeypatch.setattr(quantization, "has_kernels", lambda: kernels)
    linear = nn.Linear(64, 48)
    quantize_linear(linear)
    x = torch.randn(40, 64) * torch.logspace(-2, 2, 40)[:, None]
    with torch.no_grad():
        together = linear(x)
        for row in range(40):
            assert_close(linear(x[row : row + 1])[0], together[row], relative=1e-6)


@kernels
@pytest.mark.parametrize("ssm", ["s4", "s4d", "mamba"])
def test_what_a_token_passes_is_in_8_bits_and_the_rest_as_it_was(kernels, ssm, monkeypatch):
    plain = tiny_models.make_model(ssm=ssm)
    model = make_quantized(monkeypatch, kernels, ssm=ssm)
    names = {name for name, module in model.named_modules() if isinstance(module, Int8Linear | PartOfJoined)}
    assert names == set(quantized_linears(plain))
    assert {"lm_head", "model.connector.q_proj", "model.connector.ffn.up"} <= names
    assert ("model.connector.ssm.output" in names) == (ssm != "mamba")
    assert not any("vision" in name or "kernel" in name or "film" in name for name in names)
    left = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(left[name], parameter), name
    assert all(p.dtype == torch.float32 for name, p in left.items() if "ssm.kernel" in name)
    assert sum(p.numel() for p in model.model.language_model.layers.parameters() if p.dim() == 2) == 0


@kernels
def test_logits_drift_a_little(kernels, monkeypatch):
    plain, model = tiny_models.make_model(), make_quantized(monkeypatch, kernels)
    inputs = {**tiny_models.make_text([12, 7]), **tiny_models.make_pixels(2)}
    drift = logits_drift(plain, model, **inputs)
    assert 0 < drift["relative"] < 0.06
    assert drift["same_token"] > 0.7
    assert logits_drift(plain, plain, **inputs) == {"relative": 0, "same_token": 1}


@kernels
def test_a_model_in_bfloat16_is_quantised_and_answers(kernels, monkeypatch):
    monkeypatch.setattr(quantization, "has_kernels", lambda: kernels)
    plain = tiny_models.make_model().bfloat16()
    model = quantize_int8(copy.deepcopy(plain))
    inputs = {**tiny_models.make_text([12]), **tiny_models.make_pixels(1)}
    assert logits_drift(plain, model, **inputs)["relative"] < 0.1
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape == (1, 15)


@kernels
def test_casts_and_copies_keep_the_scales(kernels, monkeypatch):
    model = make_quantized(monkeypatch, kernels)
    wanted = {name: module.weight for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    copied = copy.deepcopy(model).to(torch.bfloat16)
    for name, module in copied.named_modules():
        if isinstance(module, Int8Linear):
            assert torch.equal(module.weight, wanted[name])


def test_moved_off_the_cpu_the_integers_go_along(monkeypatch):
    if not has_kernels():
        pytest.skip("this CPU has no int8 kernels")
    model = make_quantized(monkeypatch, True)
    integers, scale = model.lm_head.integers()
    moved = copy.deepcopy(model).to("meta")
    assert moved.lm_head.packed is None
    assert (moved.lm_head.int8_weight.device.type, moved.lm_head.int8_weight.shape) == ("meta", integers.shape)
    assert moved.lm_head.int8_scale.shape == scale.shape


@pytest.mark.skipif(not can_prepack(), reason="this CPU has no bfloat16 products of prepacked weights")
@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_prepacked_weights_are_not_rounded(quantize, monkeypatch):
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 0)
    model = prepack_weights(tiny_models.make_model().bfloat16())
    with pytest.raises(ValueError, match="model has its weights prepacked; expected one that is not"):
        quantize(model)


def test_what_cannot_be_done_is_refused(monkeypatch):
    model = make_quantized(monkeypatch, False)
    with pytest.raises(ValueError, match="quantize_int8: model has its weights in 8 bits"):
        quantize_int8(model)
    assert isinstance(model, FireboltForConditionalGeneration)


MODES = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 1.5},
    {"num_beams": 3, "do_sample": False},
    {"do_sample": False, "cache_implementation": "static"},
]
# Between two orders of the same sums an activation may be rounded to the next of 255 values.
TOLERANCE = {True: 1e-2, False: 2e-5}


def generated(model, inputs, **mode):
    torch.manual_seed(0)
    return model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True, output_logits=True, **mode
    )


@kernels
@pytest.mark.parametrize("mode", MODES, ids=["greedy", "sample", "beams", "static"])
def test_cached_generation_equals_its_own_full_forward(kernels, mode, monkeypatch):
    model = make_quantized(monkeypatch, kernels)
    inputs = {**tiny_models.make_text([7, 4, 9]), **tiny_models.make_pixels(3)}
    uncached = {name: value for name, value in mode.items() if name != "cache_implementation"}
    found, wanted = generated(model, inputs, **mode), generated(model, inputs, use_cache=False, **uncached)
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits):
        assert_close(ours, theirs, relative=TOLERANCE[kernels])


@kernels
def test_a_padded_batch_gives_each_row_what_it_gets_alone(kernels, monkeypatch):
    model, lengths = make_quantized(monkeypatch, kernels), [7, 4, 9]
    text, pixels = tiny_models.make_text(lengths), tiny_models.make_pixels(3)
    with torch.no_grad():
        together = model(**text, **pixels).logits
        for row, length in enumerate(lengths):
            alone = {name: tensor[row : row + 1] for name, tensor in pixels.items()}
            logits = model(input_ids=text["input_ids"][row : row + 1, -length:], **alone).logits
            assert_close(together[row : row + 1, -length:], logits, relative=TOLERANCE[kernels])
