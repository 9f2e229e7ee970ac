"""Prepacked weights: the same layer, faster, and an ordinary one again wherever that layout does not exist."""

import copy
import pickle

import foveated
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_within_budget
from torch import nn

from firebolt_vl.kernels.linear import can_prepack, prepacked
from firebolt_vl.kernels.linear import prepacking as kernel
from firebolt_vl.model import prepack_weights, quantize_int8
from firebolt_vl.model.cpu import prepacking
from firebolt_vl.model.cpu.joined import PartOfJoined
from firebolt_vl.model.cpu.prepacking import PrepackedLinear, is_prepacked, prepack_linear
from firebolt_vl.model.cpu.quantization import Int8Linear

needs_layout = pytest.mark.skipif(not can_prepack(), reason="this CPU has no bfloat16 products of prepacked weights")


@pytest.fixture(autouse=True)
def layers_of_any_size(monkeypatch):
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 0)


def both(**model):
    """A small model in bfloat16, as it is and prepacked."""
    plain = tiny_models.make_model(**model).bfloat16()
    return plain, prepack_weights(copy.deepcopy(plain))


def some_inputs():
    return {**tiny_models.make_text([7, 4, 9]), **tiny_models.make_pixels(3)}


@needs_layout
@given(
    rows=st.sampled_from([(1,), (7,), (2, 3), (1, 1), (3, 1, 5), (0, 4)]),
    K=st.sampled_from([1, 3, 64, 100]),
    N=st.sampled_from([1, 2, 48, 130]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
    filled=st.booleans(),
)
def test_the_layer_is_its_equation(rows, K, N, bias, seed, filled):
    torch.manual_seed(seed)
    linear = nn.Linear(K, N, bias=bias).bfloat16()
    x, weight = torch.randn(*rows, K).bfloat16(), linear.weight.detach().clone()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "FULL_ROWS_FROM", 0 if filled else 2**60)
        plain = linear(x)
        assert prepack_linear(linear)
        found = linear(x)
    assert torch.equal(linear.weight, weight)
    assert found.shape == (*rows, N)
    wanted = F.linear(x.double(), weight.double(), linear.bias.double() if bias else None)
    assert_within_budget(found, plain, wanted)


@needs_layout
def test_copies_pickles_and_casts_keep_the_weight():
    layer = nn.Linear(24, 48).bfloat16()
    weight, x = layer.weight.detach().clone(), torch.randn(2, 3, 24).bfloat16()
    with torch.no_grad():
        wanted = layer(x)
        prepack_linear(layer)
        for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to(torch.bfloat16)):
            assert isinstance(same, PrepackedLinear)
            assert not any(name == "weight" for name, _ in same.named_parameters())
            assert torch.equal(same.weight, weight)
            assert_close(same(x).double(), wanted.double(), relative=2**-7)
        wide = copy.deepcopy(layer).float()
        assert not isinstance(wide, PrepackedLinear)
        assert torch.equal(wide.weight, weight.float())
        assert isinstance(wide.bfloat16(), type(wide))
        away = copy.deepcopy(layer).to("meta")
        assert (away.weight.device.type, away.weight.shape) == ("meta", weight.shape)


@needs_layout
def test_a_pickle_read_where_there_is_no_such_layout_is_an_ordinary_layer(monkeypatch):
    layer = nn.Linear(24, 48).bfloat16()
    weight = layer.weight.detach().clone()
    prepack_linear(layer)
    kept = pickle.dumps(layer)
    monkeypatch.setattr(prepacking, "can_prepack", lambda: False)
    found = pickle.loads(kept)
    assert type(found) is nn.Linear
    assert torch.equal(found.weight, weight)


@needs_layout
def test_inputs_have_gradients_and_autocast_chooses():
    linear, x = nn.Linear(32, 16).bfloat16().requires_grad_(False), torch.randn(5, 32).bfloat16().requires_grad_()
    (wanted,) = torch.autograd.grad(linear(x).sum(), x)
    prepack_linear(linear)
    (found,) = torch.autograd.grad(linear(x).sum(), x)
    assert torch.equal(found, wanted)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert linear(x.float()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.detach().float())


@needs_layout
@pytest.mark.parametrize("ssm", ["s4", "s4d", "mamba"])
def test_all_linear_layers_are_prepacked_and_the_rest_as_it_was(ssm):
    plain, model = both(ssm=ssm)
    linears = {name for name, module in plain.named_modules() if type(module) is nn.Linear}
    kinds = (PrepackedLinear, PartOfJoined)
    assert linears == {name for name, module in model.named_modules() if isinstance(module, kinds)}
    assert {"lm_head", "model.connector.ffn.up", "model.language_model.layers.0.feed_forward.w1"} <= linears
    left = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(left[name], parameter), name
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


@needs_layout
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_it_answers_as_before(mode):
    plain, model = both()
    asked = {**some_inputs(), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **mode}
    told = {"return_dict_in_generate": True, "output_logits": True}
    found, wanted = (each.generate(**asked, **told) for each in (model, plain))
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits):
        assert_close(ours.double(), theirs.double(), relative=2**-6)


@needs_layout
def test_a_compiled_step_of_prepacked_weights_answers_alike():
    _, model = both()
    fast = copy.deepcopy(model).compile_step(backend="aot_eager", fullgraph=True)
    inputs = {**tiny_models.make_text([9]), **tiny_models.make_pixels(1)}
    wanted = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(fast.generate(**inputs, max_new_tokens=6, do_sample=False), wanted)


@needs_layout
def test_beside_8_bits_the_rest_is_prepacked():
    model = prepack_weights(quantize_int8(tiny_models.make_model().bfloat16()))
    assert isinstance(model.lm_head, Int8Linear)
    assert isinstance(model.model.connector.k_proj, PrepackedLinear)
    assert model.generate(**some_inputs(), max_new_tokens=2, min_new_tokens=2).shape == (3, 11)


@needs_layout
@pytest.mark.parametrize("kind", ["firebolt", "foveated"])
def test_it_is_saved_as_the_model_that_it_was_made_of(kind, tmp_path):
    plain = (tiny_models.make_model() if kind == "firebolt" else foveated.make_foveated()).bfloat16()
    model = prepack_weights(copy.deepcopy(plain))
    assert is_prepacked(model)
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "prepacked")
    wanted, found = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("plain", "prepacked"))
    assert found == wanted


@needs_layout
def test_layers_too_small_to_gain_and_other_dtypes_stay(monkeypatch):
    model = prepack_weights(tiny_models.make_model())
    assert not is_prepacked(model)
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 24 * 48 + 1)
    assert not is_prepacked(prepack_weights(nn.Sequential(nn.Linear(24, 48)).bfloat16()))
    assert is_prepacked(prepack_weights(nn.Sequential(nn.Linear(25, 48)).bfloat16()))


def test_where_there_is_no_such_layout_nothing_happens(monkeypatch):
    monkeypatch.setattr(prepacking, "can_prepack", lambda: False)
    plain, model = both()
    assert not is_prepacked(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@needs_layout
def test_bytes_stay_what_they_were():
    from firebolt_vl.bench.answer import weight_bytes

    linear = nn.Linear(64, 32).bfloat16()
    assert prepacked(linear.weight.detach()).dtype == torch.bfloat16
    before = weight_bytes([linear])
    prepack_linear(linear)
    assert weight_bytes([linear]) == before == 2 * (64 * 32 + 32)
