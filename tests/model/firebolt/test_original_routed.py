"""A checkpoint of Firebolt-VL V2 loads by `from_pretrained` and gives the numbers of its equations, in float64."""

import json

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close
from originals import (
    DESCRIBED,
    ROUTED_EXPERTS,
    ROUTED_KEPT,
    ROUTED_TOKEN,
    ROUTED_VISION,
    routed_state,
    write_routed_original,
)
from transformers import Lfm2Config, Lfm2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.model.firebolt.original import convert_state_dict

# LFM2's norms compute in float32 whatever the dtype.
FLOAT32 = 2e-5
TOWER = "model.vision_encoder.encoder."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    write_routed_original(folder)
    return folder


def load(folder, **arguments) -> FireboltForConditionalGeneration:
    return FireboltForConditionalGeneration.from_pretrained(folder, **arguments).double().eval()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (2, 9), generator=generator)
    ids[:, 3] = ROUTED_TOKEN
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].mT + state[f"{name}.bias"]


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def by_equations(state, input_ids, pixel_values, insert="mean_at_token", layers=1):
    """V2's equations in float64 on its own parameters: the logits of the text's columns, and the tokens."""
    state = {name: tensor.double() for name, tensor in state.items()}
    tower = SiglipVisionModel(SiglipVisionConfig(**ROUTED_VISION)).double()
    tower.load_state_dict({name.removeprefix(TOWER): t for name, t in state.items() if name.startswith(TOWER)})
    z = tower(pixel_values).last_hidden_state
    scores = linear(state, "model.router.importance", z).squeeze(-1)
    z = torch.stack([row[order[:ROUTED_KEPT]] for row, order in zip(z, scores.argsort(descending=True))])
    logits = linear(state, "model.expert_connector.router", z)
    best = logits.topk(2).indices
    a = torch.zeros_like(logits).scatter(-1, best, logits.gather(-1, best).softmax(-1))
    x = torch.zeros_like(z)
    for e in range(ROUTED_EXPERTS):
        hidden = F.gelu(linear(state, f"model.expert_connector.experts.{e}.ff.0", z))
        x = x + a[..., e, None] * linear(state, f"model.expert_connector.experts.{e}.ff.3", hidden)
    normed = norm(state, "model.ssm.norm", x)
    q, k, v = (normed @ state["model.ssm.attn.in_proj_weight"].mT + state["model.ssm.attn.in_proj_bias"]).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (8, 3)).transpose(1, 2) for part in (q, k, v))
    attended = ((q @ k.mT / 3**0.5).softmax(-1) @ v).transpose(1, 2).flatten(-2)
    x = x + linear(state, "model.ssm.attn.out_proj", attended)
    hidden = F.gelu(linear(state, "model.ssm.ff.0", norm(state, "model.ssm.norm", x)))
    x = x + linear(state, "model.ssm.ff.3", hidden)
    for layer in range(layers):
        x = linear(state, f"model.visual_proj.proj.{4 * layer}", x)
        x = F.gelu(norm(state, f"model.visual_proj.proj.{4 * layer + 1}", x))
    lm = Lfm2ForCausalLM(Lfm2Config(**DESCRIBED["lm_config"])).double()
    lm.load_state_dict({n.removeprefix("base_lm."): t for n, t in state.items() if n.startswith("base_lm.")})
    text = lm.get_input_embeddings()(input_ids)
    if insert == "prepend":
        return lm.eval()(inputs_embeds=torch.cat([x, text], 1)).logits[:, ROUTED_KEPT:], x
    text = torch.where((input_ids == ROUTED_TOKEN)[..., None], x.mean(1, keepdim=True), text)
    return lm.eval()(inputs_embeds=text).logits, x


@pytest.mark.parametrize("insert", ["prepend", "mean_at_token"])
@torch.no_grad()
def test_logits_are_those_of_the_equations(folder, insert):
    model, given = load(folder, insert=insert), inputs()
    wanted, tokens = by_equations(routed_state(), **given, insert=insert)
    assert_close(model(**given).logits, wanted, relative=FLOAT32)
    seen = model.get_grids(given["pixel_values"])
    text = model.get_input_embeddings()(given["input_ids"])
    found = model.model.connector(text, seen.features, None, seen.mask, seen.boxes)
    wanted = tokens if insert == "prepend" else tokens.mean(1, keepdim=True)
    assert_close(found[:, : wanted.shape[1]], wanted, relative=1e-12)


@torch.no_grad()
def test_several_layers_of_the_projector_and_another_place_of_the_tower(tmp_path):
    state = routed_state(layers=2, seed=3)
    moved = {name.replace(TOWER, "model.vision_encoder.encoder.vision_model."): t for name, t in state.items()}
    moved["model.vision_encoder.encoder.text_model.embeddings.token_embedding.weight"] = torch.zeros(3, 4)
    moved["model.vision_encoder.encoder.logit_scale"] = torch.zeros(1)
    write_routed_original(tmp_path, moved)
    model, given = load(tmp_path), inputs()
    assert_close(model(**given).logits, by_equations(state, **given, layers=2)[0], relative=FLOAT32)


def test_what_it_is_comes_from_weights_and_configuration(folder, tmp_path):
    config = FireboltForConditionalGeneration.from_pretrained(folder).config
    own = config.connector_config()
    assert (config.connector, config.grids, own.insert, own.image_token_id) == (
        *("routed", "patches", "mean_at_token", ROUTED_TOKEN),
    )
    assert own.ssm == "self_attn", "the configuration says s4d, the weights are those of self-attention"
    assert own.original_behaviour
    assert (own.top_k, own.experts, own.experts_used, own.expert_width) == (5, 4, 2, 12)
    write_routed_original(tmp_path, image_token_id=None)
    assert FireboltForConditionalGeneration.from_pretrained(tmp_path).config.connector_config().insert == "prepend"


def test_every_key_is_used_or_has_no_influence(folder):
    state = routed_state()
    config = FireboltForConditionalGeneration.from_pretrained(folder).config
    converted, dead = convert_state_dict(state, config)
    assert converted.keys() == FireboltForConditionalGeneration(config).state_dict().keys()
    heads = ("dino_head", "recon_head", "image_proj", "text_proj", "contrastive_log_temp", "encoder.head.")
    assert set(dead) == {name for name in state if any(head in name for head in heads)}
    with pytest.raises(ValueError, match=r"unknown keys model\.extra"):
        convert_state_dict({**state, "model.extra": torch.zeros(1)}, config)
    without = {name: tensor for name, tensor in state.items() if "ssm.norm" not in name}
    with pytest.raises(ValueError, match=r"missing ssm\.norm\.weight"):
        convert_state_dict(without, config)


def test_cached_generation_equals_uncached_and_files_round_trip(folder, tmp_path):
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    given = inputs()
    given["pixel_values"] = given["pixel_values"].float()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    wanted = model.generate(**given, **options, use_cache=False)
    assert torch.equal(model.generate(**given, **options), wanted)
    model.save_pretrained(tmp_path)
    again = FireboltForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again.generate(**given, **options), wanted)


def test_insert_is_for_v2_alone(folder, tmp_path):
    from originals import write_original

    write_original(tmp_path / "first")
    with pytest.raises(ValueError, match="insert is 'prepend'; expected None"):
        FireboltForConditionalGeneration.from_pretrained(tmp_path / "first", insert="prepend")
    with pytest.raises(ValueError, match="insert is 'middle'; expected one of"):
        FireboltForConditionalGeneration.from_pretrained(folder, insert="middle")
    described = json.loads((folder / "config.json").read_text())
    assert described["model_type"] == "fireboltvl"
