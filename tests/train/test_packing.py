"""`packing = true`: the same losses and the same model as from rows of their own, and nothing but tokens computed."""

import pytest
import torch
from numerics import assert_close
from safetensors.torch import load_file
from trainings import config, run, write_start

from firebolt_vl.train.config import TrainConfig
from firebolt_vl.train.config_files import checked
from firebolt_vl.train.conversations import ConversationsJob
from firebolt_vl.train.data import Collator, PackedCollator
from firebolt_vl.train.data.chat import IGNORED
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.loop import HISTORY, read_history

ALL = ["vision", "connector", "decoder"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


RUNS = {
    "stage 1": {"max_steps": 4},
    "all parts, in micro-batches": {"train": ALL, "micro_batch_size": 2, "max_steps": 3},
    "checkpointing": {"train": ALL, "gradient_checkpointing": True, "max_steps": 2},
}


@pytest.mark.parametrize("keys", RUNS.values(), ids=RUNS)
def test_losses_and_weights_are_those_of_rows(folder, keys):
    """Of the connector: some biases of the tower have no gradient but rounding, which AdamW makes whole steps of."""
    keys = {"validation_share": 0.25, **keys}
    rows, packed = (run(folder, f"packing-{on}", packing=on, **keys) for on in (False, True))
    before, after = (load_file(out / "model.safetensors") for out in (rows, packed))
    for name in before:
        if ".connector." in name:
            assert_close(after[name], before[name], relative=1e-4)
    for mine, theirs in zip(read_history(packed / HISTORY), read_history(rows / HISTORY), strict=True):
        assert (mine["tokens"], mine["answer_tokens"]) == (theirs["tokens"], theirs["answer_tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        assert mine["padding"] == 0
    assert max(line["padding"] for line in read_history(rows / HISTORY)) > 0
    ends = [read_history(out / HISTORY)[-1]["perplexity"] for out in (packed, rows)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_a_packed_batch_has_the_rows_one_after_the_other(folder):
    job = ConversationsJob(config(folder, packing=True))
    rows = [0, 5, 3]
    padded, packed = (kind(job.dataset, job.processor)(rows) for kind in (Collator, PackedCollator))
    assert isinstance(job.collator(job.dataset, job.processor), PackedCollator)
    kept = padded.inputs["attention_mask"].bool()
    assert torch.equal(packed.inputs["input_ids"][0], padded.inputs["input_ids"][kept])
    assert torch.equal(packed.inputs["labels"][0], padded.inputs["labels"][kept])
    assert packed.inputs["cu_seq_lens_q"].tolist() == [0, *kept.sum(1).cumsum(0).tolist()]
    assert packed.inputs["cu_seq_lens_q"].dtype == torch.int32
    begins = packed.inputs["cu_seq_lens_q"][:-1].long()
    assert (packed.inputs["position_ids"][0, begins] == 0).all()
    assert (packed.inputs["labels"][0, begins] == IGNORED).all()
    assert "attention_mask" not in packed.inputs
    for name in ("pixel_values", "pixel_tiles", "image_mask"):
        assert torch.equal(packed.inputs[name], padded.inputs[name])
    assert packed.answer_tokens == padded.answer_tokens
    assert packed.text_tokens == packed.positions == padded.text_tokens < padded.positions


@pytest.mark.parametrize(
    "keys", [{"fusion": "concat"}, {"fusion": "pool"}, {"connector": "prepend"}, {"connector": "routed"}]
)
def test_a_new_model_that_inserts_positions_is_refused(keys):
    start = {"data": ["rows.jsonl"], "decoder": "decoder", "vision": "vision", "packing": True, "eval_every": 0}
    with pytest.raises(ConfigError, match=r"packing is given with (fusion|connector)=.*; it inserts positions"):
        checked(TrainConfig, {**start, **keys})


def test_so_is_a_checkpoint_of_one(tmp_path):
    from tiny_models import write_checkpoint

    folder = write_start(tmp_path, rows=4)
    write_checkpoint(folder / "model", connector="prepend")
    with pytest.raises(ConfigError, match="packing is true; expected false with connector 'prepend'"):
        ConversationsJob(config(folder, packing=True))
