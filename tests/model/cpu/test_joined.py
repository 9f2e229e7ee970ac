"""Layers that read the same input, joined into one product: the same layers in everything but time."""

import copy
import pickle

import pytest
import tiny_models
import torch
from torch import nn

from firebolt_vl.kernels.linear import can_prepack
from firebolt_vl.model import prepack_weights
from firebolt_vl.model.adapters import check_adaptable
from firebolt_vl.model.cpu import int4, prepacking, quantization, quantized_models
from firebolt_vl.model.cpu.joined import PartOfJoined
from firebolt_vl.model.cpu.quantized_models import QUANTIZE

HAS = {"int8": quantization.has_kernels, "int4": int4.has_kernels, "prepacked": can_prepack}
MAKE = {**QUANTIZE, "prepacked": prepack_weights}
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.skipif(not has(), reason="no kernels")) for kind, has in HAS.items()]
)


@pytest.fixture(autouse=True)
def layers_of_any_size(monkeypatch):
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 0)


def joined(kind: str):
    return MAKE[kind](tiny_models.make_model().bfloat16())


def apart(kind: str):
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepacking, quantized_models):
            patch.setattr(module, "joinable", lambda model, kind: iter(()))
        return joined(kind)


def parts_of(model: nn.Module) -> dict[str, PartOfJoined]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PartOfJoined)}


def some_inputs():
    return {**tiny_models.make_text([7, 4, 9]), **tiny_models.make_pixels(3)}


@kinds
def test_queries_keys_and_values_are_one_product_and_gate_and_up_another(kind, monkeypatch):
    model, calls = joined(kind), []
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "feed_forward.w1", "feed_forward.w3")
    assert set(parts_of(model)) == {
        name
        for name, _ in model.named_modules()
        if name.endswith(names) and name.startswith("model.language_model.layers")
    }
    wholes = {id(part.whole): type(part.whole) for part in parts_of(model).values()}
    layers = model.model.language_model.layers
    assert len(wholes) == sum(1 + hasattr(layer, "self_attn") for layer in layers)
    for kind_of_whole in set(wholes.values()):
        forward = kind_of_whole.forward
        monkeypatch.setattr(
            kind_of_whole, "forward", lambda self, x, forward=forward: calls.append(id(self)) or forward(self, x)
        )
    with torch.no_grad():
        model(**some_inputs())
    assert sorted(number for number in calls if number in wholes) == sorted(wholes)


@kinds
def test_it_answers_as_layers_apart(kind):
    one, several = joined(kind), apart(kind)
    assert not parts_of(several)
    with torch.no_grad():
        assert torch.equal(one(**some_inputs()).logits, several(**some_inputs()).logits)
    asked = {**some_inputs(), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(one.generate(**asked), several.generate(**asked))


@kinds
def test_it_is_saved_as_layers_apart_and_takes_as_many_bytes(kind):
    from firebolt_vl.bench.answer import weight_bytes

    one, several = joined(kind), apart(kind)
    found, wanted = one.state_dict(), several.state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
    # The kernel of 4 bits fills up the rows of each layer to a multiple of 16, and the whole's once.
    assert abs(weight_bytes([one]) - weight_bytes([several])) <= (0.05 if kind == "int4" else 0) * weight_bytes([one])


@kinds
def test_copies_and_pickles_share_a_whole_of_their_own(kind):
    model = joined(kind)
    weights = {name: part.weight for name, part in parts_of(model).items()}
    theirs = {id(part.whole) for part in parts_of(model).values()}
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert parts_of(same).keys() == weights.keys()
        for name, part in parts_of(same).items():
            assert torch.equal(part.weight, weights[name])
        ours = {id(part.whole) for part in parts_of(same).values()}
        assert len(ours) == len(theirs)
        assert not ours & theirs


@kinds
def test_moved_and_cast_each_is_a_layer_by_itself(kind):
    model = joined(kind)
    weights = {name: part.weight for name, part in parts_of(model).items()}
    assert parts_of(model.to("cpu")).keys() == weights.keys()  # nothing has moved
    wide, away = copy.deepcopy(model).float(), copy.deepcopy(model).to("meta")
    assert bool(parts_of(wide)) == (kind != "prepacked")  # codes are never cast
    assert not parts_of(away)
    for name, weight in weights.items():
        assert torch.equal(wide.get_submodule(name).weight, weight.float()), name
        assert away.get_submodule(name).weight.device.type == "meta"
        assert away.get_submodule(name).weight.shape == weight.shape
    with torch.no_grad():
        assert wide(**some_inputs()).logits.isfinite().all()


@kinds
def test_what_stands_around_a_part_is_called(kind):
    model, seen = joined(kind), []
    wanted = model.eval()(**some_inputs()).logits
    model.model.language_model.layers[0].feed_forward.w3.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with torch.no_grad():
        assert torch.equal(model(**some_inputs()).logits, wanted)
    assert len(seen) == 1


@kinds
def test_layers_with_biases_stay_apart_and_parts_take_no_adapters(kind):
    model = tiny_models.make_model().bfloat16()
    attention = next(layer.self_attn for layer in model.model.language_model.layers if hasattr(layer, "self_attn"))
    attention.k_proj.bias = nn.Parameter(torch.zeros(attention.k_proj.out_features).bfloat16())
    MAKE[kind](model)
    assert not parts_of(attention)
    with pytest.raises(ValueError, match="model has its weights"):
        check_adaptable("forward", nn.ModuleList(parts_of(model).values()))
