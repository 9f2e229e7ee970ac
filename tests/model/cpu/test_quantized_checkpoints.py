"""Quantised models saved and loaded: the same bits, no pickle, and words where that cannot be."""

import copy
import json

import foveated
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from firebolt_vl.model import (
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltForSequenceClassification,
    FoveatedVLM,
    FoveatedVLMConfig,
)
from firebolt_vl.model.checkpoint_files import CheckpointError
from firebolt_vl.model.cpu import int4, quantization
from firebolt_vl.model.cpu.quantized_models import QUANTIZE, bits_of

kinds = pytest.mark.parametrize("kind", ["int8", "int4"])
MODELS = {
    "firebolt": (tiny_models.make_model, FireboltForConditionalGeneration),
    "foveated": (foveated.make_foveated, FoveatedVLM),
}


def saved(kind: str, folder, model: str = "firebolt", dtype: torch.dtype = torch.float32):
    """A quantised model that has been saved, and the sizes of its file and of that of the model that it was."""
    plain = MODELS[model][0]().to(dtype)
    plain.save_pretrained(folder / "plain")
    small = QUANTIZE[kind](plain)
    small.save_pretrained(folder / kind)
    return small, [(folder / name / "model.safetensors").stat().st_size for name in (kind, "plain")]


@kinds
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_equals_quantised_anew_to_the_bit(kind, name, dtype, tmp_path):
    made, (size, plain_size) = saved(kind, tmp_path, name, dtype)
    found, report = MODELS[name][1].from_pretrained(tmp_path / kind, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert {p.name for p in (tmp_path / kind).iterdir()} <= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert size < plain_size
    assert json.loads((tmp_path / kind / "config.json").read_text())["quantized"] == kind
    wanted, loaded = made.state_dict(), found.state_dict()
    assert wanted.keys() == loaded.keys()
    assert len(load_file(tmp_path / kind / "model.safetensors")) == len(wanted)
    for key, tensor in wanted.items():
        assert loaded[key].dtype == tensor.dtype, key
        assert torch.equal(loaded[key], tensor), key
    assert [type(module) for module in made.modules()] == [type(module) for module in found.modules()]
    assert bits_of(found) == int(kind[-1])
    assert not any(parameter.requires_grad for parameter in found.parameters())


@kinds
def test_a_loaded_model_answers_as_the_saved_one(kind, tmp_path):
    made, _ = saved(kind, tmp_path)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / kind)
    inputs = {**tiny_models.make_text([9, 4]), **tiny_models.make_pixels(2)}
    with torch.no_grad():
        assert torch.equal(found(**inputs).logits, made.eval()(**inputs).logits)
    asked = {**inputs, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert torch.equal(found.generate(**asked), made.generate(**asked))


@kinds
def test_where_there_are_no_kernels_the_same_file_is_read(kind, tmp_path, monkeypatch):
    made, _ = saved(kind, tmp_path)
    for module in (int4, quantization):
        monkeypatch.setattr(module, "has_kernels", lambda: False)
    found = FireboltForConditionalGeneration.from_pretrained(tmp_path / kind)
    assert torch.equal(found.lm_head.weight, made.lm_head.weight)
    assert found.lm_head.packed is None
    again = tmp_path / "again"
    found.save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / kind / "model.safetensors").read_bytes()


@kinds
def test_scales_stay_when_the_rest_is_cast(kind, tmp_path):
    made, _ = saved(kind, tmp_path)
    found = FireboltForConditionalGeneration.from_pretrained(tmp_path / kind, dtype=torch.bfloat16)
    assert found.model.get_input_embeddings().weight.dtype == torch.bfloat16
    for name in ("lm_head", "model.connector.q_proj"):
        assert torch.equal(found.get_submodule(name).weight, made.get_submodule(name).weight)


def test_a_model_without_a_head_says_what_it_expects(tmp_path):
    saved("int4", tmp_path)
    with pytest.raises(CheckpointError, match=r"quantized is 'int4'; FireboltForSequenceClassification expects"):
        FireboltForSequenceClassification.from_pretrained(tmp_path / "int4")


@pytest.mark.parametrize("config", [FireboltConfig, FoveatedVLMConfig])
def test_an_unknown_kind_is_refused(config):
    given = tiny_models.make_config().to_dict() if config is FireboltConfig else {}
    with pytest.raises(ValueError, match=r"quantized is 'int3'; expected one of int8, int4, or None"):
        config(**{**given, "quantized": "int3"})


def test_a_file_that_is_cut_or_does_not_fit_is_refused(tmp_path):
    saved("int4", tmp_path)
    described = json.loads((tmp_path / "int4" / "config.json").read_text())
    (tmp_path / "int4" / "config.json").write_text(json.dumps({**described, "quantized": "int8"}))
    with pytest.raises((CheckpointError, RuntimeError)):
        FireboltForConditionalGeneration.from_pretrained(tmp_path / "int4")
    weights = tmp_path / "int4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        FireboltForConditionalGeneration.from_pretrained(tmp_path / "int4")


def test_copies_are_saved_alike(tmp_path):
    made, _ = saved("int4", tmp_path)
    copy.deepcopy(made).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        tmp_path / "int4" / "model.safetensors"
    ).read_bytes()
