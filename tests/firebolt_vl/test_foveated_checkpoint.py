"""A checkpoint of which nobody said whose it is: a foveated model, the original without a configuration, or ours."""

import json

import pytest
import torch
from foveated import write_foveated
from safetensors.torch import save_file
from tiny_models import make_tokenizer

from firebolt_vl.errors import Failure, Misuse
from firebolt_vl.foveated_checkpoint import load_any
from firebolt_vl.model import FireboltForConditionalGeneration, FoveatedVLM
from firebolt_vl.model.checkpoint_files import CheckpointError
from firebolt_vl.model.foveated.original import is_foveated


@pytest.fixture(scope="module")
def foveated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveated")
    write_foveated(folder)
    return folder


def write_original(folder, name="q_static", config=None):
    save_file({name: torch.zeros(1, 4)}, folder / "model.safetensors")
    make_tokenizer().save_pretrained(folder)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def test_each_model_is_loaded_by_its_class(checkpoint, foveated):
    assert isinstance(load_any(checkpoint, "cpu").model, FireboltForConditionalGeneration)
    assert isinstance(load_any(foveated, "cpu").model, FoveatedVLM)
    assert load_any(foveated, "cpu", quantize="int8").model.config.quantized == "int8"


def test_a_foveated_model_has_its_own_dtype(foveated):
    with pytest.raises(Misuse, match=r"--dtype is bfloat16, but .* is a foveated model"):
        load_any(foveated, "cpu", dtype="bfloat16")


@pytest.mark.parametrize("config", [None, {}, {"query_dim": 4}])
def test_the_original_says_nothing_and_is_known_by_its_query(tmp_path, config):
    write_original(tmp_path, config=config)
    assert is_foveated(tmp_path)


@pytest.mark.parametrize("config", [None, {}])
def test_other_weights_without_a_configuration_are_no_foveated_model(tmp_path, config):
    write_original(tmp_path, name="lm_head.weight", config=config)
    assert not is_foveated(tmp_path)
    with pytest.raises(Failure, match="has no config.json" if config is None else "expected a Firebolt-VL"):
        load_any(tmp_path, "cpu")


def test_a_folder_of_anything_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(Failure, match=r"has no config\.json; is it a checkpoint"):
        load_any(tmp_path, "cpu")


def test_pickled_weights_are_refused_unopened(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="pickle files"):
        is_foveated(tmp_path)
