"""A checkpoint of the original Firebolt-VL loads by `from_pretrained` and gives the original's numbers."""

import json

import pytest
import torch
from numerics import assert_close, relative_error
from originals import DESCRIBED, VECTORS, pixels, write_original

from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.model.firebolt.original import convert_config, convert_state_dict

# What float32 costs the original itself, with room for another order of the same operations.
FLOAT32 = 10 * relative_error(VECTORS["out.logits"], VECTORS["f64.out.logits"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_original(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return FireboltForConditionalGeneration.from_pretrained(folder).eval()


def test_vision_tokens_are_the_originals(model):
    with torch.no_grad():
        grids = model.get_grids(**pixels())
    assert_close(grids.features, VECTORS["mid.vision_tokens"], relative=FLOAT32)


def test_attention_weights_are_the_originals(model):
    found = model.ground(input_ids=VECTORS["in.input_ids"], **pixels(), method="weights")
    assert_close(found.weights, VECTORS["mid.attn"].mean(1), relative=FLOAT32)


@pytest.mark.parametrize("taps", [None, 512])
def test_logits_are_the_originals(folder, taps):
    model = FireboltForConditionalGeneration.from_pretrained(folder, kernel_taps=taps).eval()
    with torch.no_grad():
        logits = model(input_ids=VECTORS["in.input_ids"], **pixels()).logits
    assert_close(logits, VECTORS["out.logits"], relative=FLOAT32)


def test_double_precision_gives_the_double_precision_logits(folder):
    model = FireboltForConditionalGeneration.from_pretrained(folder).double().eval()
    with torch.no_grad():
        logits = model(
            input_ids=VECTORS["in.input_ids"], **{name: tensor.double() for name, tensor in pixels().items()}
        ).logits
    # LFM2's norms compute in float32 whatever the dtype.
    assert_close(logits, VECTORS["f64.out.logits"], relative=FLOAT32)


def test_right_padding_leaves_the_kept_columns_as_they_are(model):
    mask = VECTORS["in.attention_mask"]
    with torch.no_grad():
        logits = model(input_ids=VECTORS["in.input_ids"], attention_mask=mask, **pixels()).logits
    kept = mask.bool()
    assert_close(logits[kept], VECTORS["out.logits_right_padded"][kept], relative=FLOAT32)


def test_text_alone_is_the_originals(model):
    with torch.no_grad():
        logits = model(input_ids=VECTORS["in.input_ids"]).logits
    assert_close(logits, VECTORS["out.logits_text_only"], relative=FLOAT32)


def test_gradients_are_the_originals(folder):
    """The original's gradient of C is that of the folded C; every other parameter is the same one here and there."""
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    logits = model(input_ids=VECTORS["in.input_ids"], **pixels()).logits
    (logits * VECTORS["in.cotangent"]).sum().backward()
    names = {
        "base_lm.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        "base_lm.model.layers.1.operator_norm.weight": "model.language_model.layers.1.operator_norm.weight",
        "model.fuser.fuser.model.q_proj.weight": "model.connector.q_proj.weight",
        "model.fuser.fuser.model.v_proj.weight": "model.connector.v_proj.weight",
        "model.fuser.fuser.model.film_in.weight": "model.connector.film_in.weight",
        "model.fuser.fuser.model.film_out.bias": "model.connector.film_out.bias",
        "model.fuser.fuser.model.norm_in.bias": "model.connector.norm_in.bias",
    }
    for theirs, ours in names.items():
        assert_close(model.get_parameter(ours).grad, VECTORS[f"grad.param.{theirs}"], relative=5 * FLOAT32)


def test_cached_generation_is_the_originals_uncached_one(model):
    """The original re-encodes the image and runs the whole prefix for each token; the tokens are the same."""
    wanted = VECTORS["generate.use_cache_False.sequences"]
    ids = VECTORS["in.input_ids"]
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **pixels(),
        do_sample=False,
        max_new_tokens=wanted.shape[1] - ids.shape[1],
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(found.sequences, wanted)
    assert_close(torch.stack(found.logits, 1), VECTORS["generate.use_cache_False.logits"], relative=FLOAT32)


def test_shards_and_a_state_before_the_first_forward_load_too(tmp_path, model):
    """Before its first call the original's C is raw, and its l_kernel says so."""
    state = {**VECTORS.under("param"), **VECTORS.under("param_before_first_forward")}
    write_original(tmp_path, state, shards=3)
    loaded = FireboltForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = loaded(input_ids=VECTORS["in.input_ids"], **pixels()).logits
    assert_close(logits, VECTORS["out.logits"], relative=FLOAT32)


def test_converted_checkpoint_is_saved_as_ours(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = FireboltForConditionalGeneration.from_pretrained(tmp_path).eval()
    for name, kept in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], kept), name
    with torch.no_grad():
        found, wanted = (one(input_ids=VECTORS["in.input_ids"], **pixels()).logits for one in (loaded, model))
    assert_close(found, wanted, relative=1e-6)  # products may add in another order where memory is aligned otherwise


def test_every_key_of_the_original_is_accounted_for(folder):
    state = VECTORS.under("param")
    config = convert_config(
        DESCRIBED["firebolt_config"] | {"lm_name_or_path": "lm", "vision_ckpt_path": "siglip"}, state, folder
    )
    converted, dead = convert_state_dict(state, config)
    ours = FireboltForConditionalGeneration(config).state_dict()
    assert converted.keys() == ours.keys()
    assert all("projector" in key or "importance" in key or "text_model" in key or "logit_" in key for key in dead)
    with pytest.raises(ValueError, match=r"unknown keys model\.extra"):
        convert_state_dict({**state, "model.extra": torch.zeros(1)}, config)


def test_unresolvable_backbones_are_named(tmp_path):
    write_original(tmp_path, VECTORS.under("param"))
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "lm_name_or_path": "nobody/nothing"}))
    with pytest.raises(ValueError, match=r"lm_name_or_path is 'nobody/nothing'; .* pass text_config="):
        FireboltForConditionalGeneration.from_pretrained(tmp_path)
    loaded = FireboltForConditionalGeneration.from_pretrained(tmp_path, text_config=DESCRIBED["lm_config"])
    assert loaded.config.text_config.hidden_size == 32
