"""Saving and loading, ours and the original's."""

import json

import pytest
import torch
from foveated import VECTORS, make_foveated, make_frames, original_arguments, original_inputs, original_model
from numerics import assert_close
from safetensors.torch import save_file
from tiny_models import make_text
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, Dinov2Config, LlamaConfig

from firebolt_vl.model import FoveatedVLM, FoveatedVLMConfig


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_text([4, 4]), **make_frames([2, 1])).logits


@pytest.fixture(scope="module")
def originals_logits():
    with torch.no_grad():
        return original_model(original_behaviour=False)(**original_inputs("b2")).logits


def check_original(folder, wanted, **given):
    arguments = {name: value for name, value in original_arguments().items() if name != "query_dim"}
    model = FoveatedVLM.from_pretrained(folder, **{**arguments, **given}).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert_close(model(**original_inputs("b2")).logits, wanted, relative=2e-6)
    return model


def test_what_is_saved_loads_by_every_door(tmp_path):
    model = make_foveated(visual_scale=0.2, mode="autoregressive", frame_block=3)
    model.save_pretrained(tmp_path)
    described = AutoConfig.from_pretrained(tmp_path)
    assert type(described) is FoveatedVLMConfig
    assert described.to_diff_dict() == model.config.to_diff_dict()
    for door in (FoveatedVLM, AutoModel, AutoModelForImageTextToText):
        loaded = door.from_pretrained(tmp_path).eval()
        assert type(loaded) is FoveatedVLM
        assert_close(logits_of(loaded), logits_of(model), relative=2e-6)
    assert loaded.config.frame_block == 3
    half = FoveatedVLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_the_head_is_the_embeddings(tmp_path):
    model = make_foveated()
    assert model.llm.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = FoveatedVLM.from_pretrained(tmp_path)
    assert loaded.llm.lm_head.weight is loaded.get_input_embeddings().weight


def test_new_queries_are_normal_and_loaded_ones_stay(tmp_path):
    torch.manual_seed(0)
    model = FoveatedVLM(make_foveated(query_dim=512).config)
    for query in (model.q_static, model.q_init):
        assert query.mean().abs() < 0.2
        assert 0.9 < query.std() < 1.1
    model.save_pretrained(tmp_path)
    assert torch.equal(FoveatedVLM.from_pretrained(tmp_path).q_init, model.q_init)


def test_the_full_size_is_that_of_the_original():
    """DINOv2-small, SmolLM2-135M with its head counted once, and the bridges."""
    with torch.device("meta"):
        model = FoveatedVLM(FoveatedVLMConfig())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 157.3
    assert model.config.query_dim == 384


def test_a_folder_with_the_originals_state_dict_loads(tmp_path, originals_logits):
    state = {key: tensor.contiguous() for key, tensor in VECTORS.under("param").items()}
    save_file(state, tmp_path / "model.safetensors")
    model = check_original(tmp_path, originals_logits)
    model.save_pretrained(tmp_path / "ours")
    loaded = FoveatedVLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert_close(loaded(**original_inputs("b2")).logits, originals_logits, relative=2e-6)


def test_a_training_checkpoint_of_the_original_loads(tmp_path, originals_logits):
    """With the names of a compiled encoder."""
    state = {key.replace("encoder.", "encoder._orig_mod.", 1): x for key, x in VECTORS.under("param").items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    check_original(tmp_path, originals_logits)
    (tmp_path / "config.json").write_text(json.dumps({"lr": 1e-3}))  # a configuration of the training, not of a model
    check_original(tmp_path, originals_logits)


@pytest.mark.parametrize("ours", [True, False])
def test_a_configuration_beside_the_originals_weights_is_followed(tmp_path, originals_logits, ours):
    state = {key: tensor.contiguous() for key, tensor in VECTORS.under("param").items()}
    save_file(state, tmp_path / "model.safetensors")
    if ours:
        FoveatedVLMConfig(**original_arguments()).save_pretrained(tmp_path)
    else:
        (tmp_path / "config.json").write_text(json.dumps(original_arguments()))
    model = FoveatedVLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(model(**original_inputs("b2")).logits, originals_logits, relative=2e-6)
    assert FoveatedVLM.from_pretrained(tmp_path, original_behaviour=True).config.original_behaviour


def test_configurations_may_be_objects(originals_logits):
    arguments = original_arguments()
    arguments["vision_config"] = Dinov2Config(**arguments["vision_config"])
    arguments["text_config"] = LlamaConfig(**arguments["text_config"])
    model = FoveatedVLM.from_original(VECTORS.under("param"), **arguments)
    with torch.no_grad():
        assert_close(model(**original_inputs("b2")).logits, originals_logits, relative=2e-6)


def test_the_originals_half_precision_decoder_loads_as_float32(tmp_path):
    state = VECTORS.under("param")
    halved = {key: x.bfloat16() if key.startswith("llm.") else x for key, x in state.items()}
    save_file({key: x.contiguous() for key, x in halved.items()}, tmp_path / "model.safetensors")
    wanted = FoveatedVLM.from_original({key: x.float() for key, x in halved.items()}, **original_arguments())
    with torch.no_grad():
        check_original(tmp_path, wanted(**original_inputs("b2")).logits)


@pytest.mark.parametrize("name", ["model.pt", "best.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_and_named(tmp_path, name):
    torch.save(VECTORS.under("param"), tmp_path / name)
    with pytest.raises(OSError, match=rf"pickle files \({name}\).*safetensors copy"):
        FoveatedVLM.from_pretrained(tmp_path)


def test_states_that_do_not_fit_are_named(tmp_path):
    state, arguments = VECTORS.under("param"), original_arguments()
    with pytest.raises(ValueError, match=r"unknown keys extra \(1 in all\)"):
        FoveatedVLM.from_original({**state, "extra": torch.zeros(1)}, **arguments)
    short = {key: tensor for key, tensor in state.items() if key != "dino_to_llm.bias"}
    with pytest.raises(ValueError, match=r"missing keys dino_to_llm.bias"):
        FoveatedVLM.from_original(short, **arguments)
    with pytest.raises(ValueError, match=r"has shape .*; expected .*; pass the configurations of the backbones"):
        FoveatedVLM.from_original(state, **{**arguments, "query_dim": 12})
    with pytest.raises(ValueError, match="state_dict has no q_static"):
        FoveatedVLM.from_original({"weight": torch.zeros(1)})
    with pytest.raises(OSError, match="no weights"):
        FoveatedVLM.from_pretrained(tmp_path)


def test_parts_that_may_be_missing_or_left_over(originals_logits):
    state, arguments = VECTORS.under("param"), original_arguments()
    for key in ("encoder.dino.embeddings.mask_token", "llm.lm_head.weight"):
        model = FoveatedVLM.from_original({k: x for k, x in state.items() if k != key}, **arguments)
        with torch.no_grad():
            assert_close(model(**original_inputs("b2")).logits, originals_logits, relative=2e-6)
    arguments["vision_config"] = {**arguments["vision_config"], "use_mask_token": False}
    model = FoveatedVLM.from_original(state, **arguments)
    assert model.encoder.dino.embeddings.mask_token is None


def test_a_new_model_around_trained_backbones(tmp_path):
    model = make_foveated()
    model.llm.save_pretrained(tmp_path / "llm")
    model.encoder.dino.save_pretrained(tmp_path / "dino")
    made = FoveatedVLM.from_backbones(str(tmp_path / "llm"), str(tmp_path / "dino"), query_dim=16)
    assert torch.equal(made.llm.model.norm.weight, model.llm.model.norm.weight)
    assert torch.equal(made.encoder.dino.embeddings.cls_token, model.encoder.dino.embeddings.cls_token)
    assert made.llm.lm_head.weight is made.get_input_embeddings().weight


@pytest.mark.parametrize("load", [FoveatedVLM.from_pretrained, AutoModelForImageTextToText.from_pretrained])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [None, "40KB"])
def test_what_a_saved_model_says_of_itself_comes_back(tmp_path, load, dtype, shards):
    """dtype, end tokens, sampling, and what else stands in its configuration."""
    model = make_foveated().to(dtype)
    model.config.note = "stage 2"
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = [3, 7], 5
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    again = load(tmp_path)
    assert again.dtype == dtype
    assert (again.generation_config.eos_token_id, again.generation_config.max_new_tokens) == ([3, 7], 5)
    assert again.config.note == "stage 2"
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_dtype_that_is_asked_for_wins_and_saving_again_changes_nothing(tmp_path):
    model = make_foveated().to(torch.bfloat16)
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.5
    model.save_pretrained(tmp_path / "first")
    again = FoveatedVLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    assert again.dtype == torch.float32
    FoveatedVLM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("generation_config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
