"""Models whose modulator asks with the text so far, has two layers, or starts as the identity."""

import itertools

import pytest
import tiny_models
import torch
from cached_generation import WAYS, check_assisted_equals_plain, check_cached_equals_uncached

from firebolt_vl.model import FireboltConfig, FireboltForConditionalGeneration
from firebolt_vl.model.cpu.quantized_models import quantized_linears

ASKING = {"query": "state", "layers": 2}


@pytest.fixture(scope="module", params=["s4", "mamba"])
def model(request):
    return tiny_models.make_model(ssm=request.param, **ASKING)


@pytest.fixture(scope="module")
def inputs():
    text = tiny_models.make_text([12, 7])
    text["input_ids"][0, 6:] = text["input_ids"][0, :6]  # something for a lookup to find
    return {**text, **tiny_models.make_pixels(2)}


@WAYS
def test_cached_generation_equals_uncached(model, inputs, options):
    check_cached_equals_uncached(model, inputs, 6, options)


def test_assisted_generation_forgets_what_is_refused(model, inputs):
    check_assisted_equals_plain(model, inputs, 6)


def test_what_is_grounded_are_the_weights_of_the_second_layer(model, inputs):
    found = model.ground(**inputs).weights
    connector = model.model.connector
    with torch.no_grad():
        text = model.get_input_embeddings()(inputs["input_ids"])
        seen = model.get_grids(**{name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")})
        given = (seen.features, inputs["attention_mask"].bool(), seen.mask, seen.boxes)
        _, wanted = connector(text, *given, return_weights=True)
        second, connector.second = connector.second, None
        try:
            first, other = connector(text, *given, return_weights=True)
        finally:
            connector.second = second
        _, by_hand = second(first, *given, return_weights=True)
    assert torch.equal(found, wanted)
    assert torch.equal(found, by_hand)
    assert (found - other).abs().max() > 1e-3
    assert model.ground(**inputs, method="occlusion", max_new_tokens=2).effects.isfinite().all()


def test_a_saved_model_is_the_same_model(inputs, tmp_path):
    model = tiny_models.make_model(start="identity", **ASKING)
    with torch.no_grad():
        for gate in (model.model.connector.out_gate, model.model.connector.second.out_gate):
            gate.fill_(0.3)
    model.save_pretrained(tmp_path)
    again = FireboltForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.cmm_config.items() >= {"start": "identity", **ASKING}.items()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    half = FireboltForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kernels = [p for name, p in half.named_parameters() if ".ssm.kernel." in name]
    assert len(kernels) == 4 * len(list(half.model.connector.ssm.kernel.parameters()))
    assert {p.dtype for p in kernels} == {torch.float32}


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_that_starts_as_the_identity_is_its_decoder(inputs, layers):
    """To the bit: an image changes nothing until training opens the gate, which learns from the first step."""
    model = tiny_models.make_model(start="identity", layers=layers)
    gates = [p for name, p in model.named_parameters() if name.endswith("out_gate")]
    assert [gate.tolist() for gate in gates] == [[0.0] * 32] * layers
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits[kept], model(**text).logits[kept])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all((gate.grad != 0).all() for gate in gates)


def test_a_checkpoint_without_the_gate_gets_a_closed_one(inputs, tmp_path):
    tiny_models.make_model().save_pretrained(tmp_path)
    config = FireboltConfig.from_pretrained(tmp_path)
    assert (config.cmm_config["query"], config.cmm_config["layers"], config.cmm_config["start"]) == ("token", 1, "norm")
    config.cmm_config = {**config.cmm_config, "start": "identity"}
    model, report = FireboltForConditionalGeneration.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert set(report["missing_keys"]) == {"model.connector.out_gate"}
    assert model.model.connector.out_gate.tolist() == [0.0] * 32


def test_a_cache_is_checked_for_each_kind_anew():
    kinds = [
        tiny_models.make_model(query=query, layers=layers, start=start).kind()
        for query, layers, start in itertools.product(("token", "state"), (1, 2), ("norm", "identity"))
    ]
    assert len(set(kinds)) == len(kinds)
    small, given = tiny_models.make_model(**ASKING, start="identity").miniature()
    assert small.config.cmm_config.items() >= {**ASKING, "start": "identity"}.items()
    with torch.no_grad():
        assert small(**given).logits.isfinite().all()


def test_int8_takes_the_layers_that_a_token_passes():
    names = {name.removeprefix("model.connector.") for name in quantized_linears(tiny_models.make_model(**ASKING))}
    layer = ("q_proj", "ffn.up", "ffn.down", "ssm.output", "query.ssm.output")
    assert {name for name in names if not name.startswith(("model.", "lm_head"))} == {
        prefix + part for prefix in ("", "second.") for part in layer
    }


@pytest.mark.parametrize("change", [{"query": "state"}, {"layers": 2}, {"start": "identity"}], ids=str)
def test_other_connectors_refuse_what_they_would_not_do(change):
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"cmm_config: {name} is {value!r}; expected .* where connector is 'prepend'"):
        tiny_models.make_config("prepend", **change)
    with pytest.raises(ValueError, match=f"RoutedConfig: {name} is {value!r}; expected .*, the default"):
        tiny_models.make_config("routed", **change)
