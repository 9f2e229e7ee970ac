"""Adapters of peft on parts of both models: saved, loaded, merged, exchanged; refused where they cannot be right."""

import copy

import pytest
import torch
from foveated import make_foveated, make_frames
from numerics import assert_close, largest
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import make_model, make_pixels, make_text
from torch import nn

from firebolt_vl.model import lora_targets, prepack_weights, quantize_int8
from firebolt_vl.model.cpu import prepacking

ALL = ("decoder", "connector", "vision")


def firebolt(**keys):
    return make_model(**keys).double(), {**make_text([9, 5]), **make_pixels(2)}


def foveated(**keys):
    return make_foveated(**keys).double(), {**make_text([6, 4]), **make_frames([3, 1])}


def in_double(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


CASES = [
    (firebolt, {"ssm": "s4"}),
    (firebolt, {"ssm": "s4d", "fusion": "concat"}),
    (firebolt, {"ssm": "mamba", "fusion": "pool"}),
    (firebolt, {"ssm": "liquid"}),
    (firebolt, {"connector": "prepend"}),
    (firebolt, {"connector": "cross_attend"}),
    (foveated, {"mode": "coarse_fine"}),
    (foveated, {"mode": "autoregressive"}),
]
IDS = {"ids": lambda value: getattr(value, "__name__", str(value))}


def adapted(model, parts=ALL, **options):
    options = {"r": 2, "init_lora_weights": False, **options}
    config = LoraConfig(target_modules=lora_targets(model, parts), **options)
    return get_peft_model(copy.deepcopy(model), config).double().eval()


def answers(model, use_cache, **inputs):
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**inputs, **settings, use_cache=use_cache).logits)


@pytest.mark.parametrize(("make", "keys"), CASES, **IDS)
@torch.no_grad()
def test_adapters_are_cached_saved_loaded_merged_and_exchanged(make, keys, tmp_path):
    model, inputs = make(**keys)
    inputs = in_double(inputs)
    plain = model(**inputs).logits
    tuned = adapted(model)
    wanted = tuned(**inputs).logits
    assert largest(wanted - plain) > 1e-2
    cached = answers(tuned, True, **inputs)
    assert_close(cached, answers(tuned, False, **inputs), relative=1e-4)  # norms of the decoder are float32

    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).double().eval()
    assert_close(loaded(**inputs).logits, wanted, relative=1e-6)
    loaded.add_adapter("other", LoraConfig(r=3, target_modules=lora_targets(model), init_lora_weights=False))
    loaded.double().set_adapter("other")
    other = loaded(**inputs).logits
    assert largest(other - wanted) > 1e-2
    loaded.set_adapter("default")
    assert_close(loaded(**inputs).logits, wanted, relative=1e-6)
    with loaded.disable_adapter():
        assert_close(loaded(**inputs).logits, plain, relative=1e-6)

    merged = tuned.merge_and_unload()
    assert_close(merged(**inputs).logits, wanted, relative=1e-5)
    assert_close(answers(merged, True, **inputs), cached, relative=1e-4)
    assert merged.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("make", "keys"), CASES, **IDS)
@pytest.mark.parametrize("part", ALL)
def test_adapters_of_a_part_learn_and_leave_the_rest_alone(make, keys, part):
    model, inputs = make(**keys)
    tuned = adapted(model, (part,)).train()
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    tuned(**in_double(inputs), labels=labels).loss.backward()
    for name, parameter in tuned.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        idle = parameter.grad is None or not parameter.grad.abs().sum() > 0
        # Which image of a row a grid is of, where each has one.
        assert idle is not ("lora_" in name and "positions.image" not in name), name


def test_parts_are_named_and_the_head_and_the_state_space_model_are_none_of_them():
    model, _ = firebolt(ssm="mamba")
    by_part = {part: set(lora_targets(model, (part,))) for part in ALL}
    assert set(lora_targets(model)) == by_part["decoder"]
    together = set(lora_targets(model, ALL))
    assert together == set().union(*by_part.values())
    assert len(together) == sum(map(len, by_part.values()))
    names = {"q_proj", "film_in", "film_out", "ffn.up", "ssm.in_proj", "ssm.out_proj"}
    assert {f"model.connector.{name}" for name in names} < by_part["connector"]
    assert "lm_head" not in together
    assert all(type(model.get_submodule(name)) is nn.Linear for name in together)


@pytest.mark.parametrize(
    ("parts", "said"),
    [((), "parts is empty"), (("head",), "parts is head"), (("decoder", "tower"), "parts is tower")],
)
def test_other_parts_are_refused(parts, said):
    with pytest.raises(ValueError, match=f"lora_targets: {said}; expected some of vision, decoder, connector"):
        lora_targets(firebolt()[0], parts)


def small_and_fast(kind, monkeypatch):
    model = make_model()
    if kind == "int8":
        return quantize_int8(model)
    if not prepacking.can_prepack():
        pytest.skip("this CPU has no such layout")
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 0)
    return prepack_weights(model.bfloat16())


@pytest.mark.parametrize("kind", ["int8", "prepacked"])
def test_weights_in_another_form_take_no_adapters_and_say_what_to_do(kind, monkeypatch):
    model = small_and_fast(kind, monkeypatch)
    inputs = {**make_text([7, 5]), **make_pixels(2)}
    what_to_do = r"merge them \(merge_and_unload\), and then make it small or fast"
    with pytest.raises(ValueError, match=rf"lora_targets: model has its weights .*{what_to_do}"):
        lora_targets(model)
    targets = lora_targets(make_model())
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with pytest.raises(ValueError, match=rf"generate: model has adapters, and its weights .*{what_to_do}"):
        tuned.generate(**inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"forward: model has its weights .*{what_to_do}"):
        tuned.train()(**inputs, labels=inputs["input_ids"])
    with pytest.raises(RuntimeError, match=r"merge adapters \(merge_and_unload\) before quantize_int8"):
        tuned.merge_and_unload()


@pytest.mark.parametrize("change", [quantize_int8, prepack_weights])
def test_a_model_with_adapters_is_merged_before_its_weights_take_another_form(change):
    model, inputs = make_model(), {**make_text([7, 5]), **make_pixels(2)}
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=lora_targets(model)))
    with pytest.raises(ValueError, match=r"model has an adapter around .*; expected adapters that are merged"):
        change(tuned.base_model.model)
    change(tuned.merge_and_unload()).eval().generate(**inputs, max_new_tokens=2)
