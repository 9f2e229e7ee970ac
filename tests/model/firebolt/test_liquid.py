"""A model whose state-space model is Liquid-S4: configuration, files, dtypes, and generation from its cache."""

import copy

import pytest
import tiny_models
import torch
from cached_generation import ROUNDING, WAYS, check_assisted_equals_plain, check_cached_equals_uncached
from numerics import assert_close

from firebolt_vl.model import FireboltConfig, FireboltForConditionalGeneration

LIQUID = {"ssm": "liquid", "liquid_order": 3, "liquid_kernel": "product"}


def make_model(**cmm):
    """With time steps near 1, so that the products are as large as the rest."""
    model = tiny_models.make_model(**LIQUID | cmm)
    with torch.no_grad():
        model.model.connector.ssm.kernel.log_dt.uniform_(-1, 0)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def inputs():
    text = tiny_models.make_text([12, 7])
    text["input_ids"][0, 6:] = text["input_ids"][0, :6]  # something for a lookup to find
    return {**text, **tiny_models.make_pixels(2)}


def test_the_products_are_large_enough_to_be_seen(model, inputs):
    plain = copy.deepcopy(model)
    plain.model.connector.ssm.liquid_order = 1
    with torch.no_grad():
        difference = (model(**inputs).logits - plain(**inputs).logits).abs().max()
    assert difference > 100 * ROUNDING


@WAYS
def test_cached_generation_equals_uncached(model, inputs, options):
    check_cached_equals_uncached(model, inputs, 8, options)


def test_assisted_generation_forgets_what_is_refused(model, inputs):
    check_assisted_equals_plain(model, inputs, 8)


def test_a_saved_model_is_the_same_model(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    again = FireboltForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.cmm_config.items() >= LIQUID.items()
    with torch.no_grad():
        assert_close(again(**inputs).logits, model(**inputs).logits, relative=ROUNDING)


@pytest.mark.parametrize("liquid_order", [1, 2])
def test_a_checkpoint_of_s4_becomes_a_liquid_model(inputs, tmp_path, liquid_order):
    tiny_models.make_model(ssm="s4").save_pretrained(tmp_path)
    plain = FireboltForConditionalGeneration.from_pretrained(tmp_path)
    config = FireboltConfig.from_pretrained(tmp_path)
    config.cmm_config = {**config.cmm_config, "ssm": "liquid", "liquid_order": liquid_order}
    model, report = FireboltForConditionalGeneration.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found, wanted = model(**inputs).logits, plain(**inputs).logits
    assert torch.equal(found, wanted) == (liquid_order == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_leaves_the_parameters_that_the_products_are_made_of(model, inputs, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    half = FireboltForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    weights, wanted = (m.model.connector.ssm.product_weights() for m in (half, model))
    assert weights.dtype == torch.float32
    assert torch.equal(weights, wanted)
    assert {p.dtype for p in half.model.connector.ssm.kernel.parameters()} == {torch.float32}
    half_inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        assert half(**half_inputs).logits.isfinite().all()


def test_wrong_fields_are_named_by_the_configuration():
    with pytest.raises(ValueError, match="liquid_order is 0; expected at least 1"):
        tiny_models.make_config(ssm="liquid", liquid_order=0)
    with pytest.raises(ValueError, match="liquid_order is 3; expected 2, the default, where ssm is 's4'"):
        tiny_models.make_config(ssm="s4", liquid_order=3)
