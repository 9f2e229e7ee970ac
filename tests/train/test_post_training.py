"""Trainings by trl on answers and on preferences: what learns, what is scored, and broken runs that go on."""

import json
import shutil
import sys

import foveated_trainings
import pytest
import torch
from conversations import row, write_rows
from numerics import assert_close
from post_trainings import config, interrupted, run, told, write_start
from safetensors.torch import load_file
from tiny_models import make_model

from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor, FoveatedVLM
from firebolt_vl.train import post
from firebolt_vl.train.data import TooManyBadRows
from firebolt_vl.train.errors import ConfigError, TrainingError
from firebolt_vl.train.post import adapters
from firebolt_vl.train.post.checkpoints import checkpoints_in, newest
from firebolt_vl.train.post.config import DpoConfig
from firebolt_vl.train.post.habits import Habits

LORA = {"rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def foveated(tmp_path_factory):
    return foveated_trainings.write_start(tmp_path_factory.mktemp("foveated"))


def part_of(name: str) -> str:
    return {"vision_tower": "vision", "connector": "connector"}.get(name.split(".")[1], "decoder")


def test_only_the_parts_that_are_named_change(folder):
    before = load_file(folder / "model" / "model.safetensors")
    out = run(folder, "sft", train=["connector"])
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert {part_of(name) for name in before if not torch.equal(before[name], after[name])} == {"connector"}
    assert [line["step"] for line in told(out)] == [1, 2, 3]
    FireboltProcessor.from_pretrained(out)
    FireboltForConditionalGeneration.from_pretrained(out)


def test_the_first_loss_is_that_of_the_model(folder):
    """Of all answers of a row, with its images, as the loop of `firebolt train` has it."""
    from trainings import config as our_config

    from firebolt_vl.train.conversations import ConversationsJob
    from firebolt_vl.train.data import Collator

    out = run(folder, "sft", batch_size=12, max_steps=1)
    job = ConversationsJob(our_config(folder))
    batch = Collator(job.dataset, job.processor)(range(12))
    expected = job.model(**batch.inputs).loss.detach()
    assert_close(torch.tensor(told(out)[0]["loss"]), expected, relative=1e-5)


@pytest.mark.parametrize("fusion", ["concat", "pool"])
def test_an_answer_is_no_part_of_the_prompt(tmp_path, fusion):
    write_start(tmp_path)
    make_model(fusion=fusion).save_pretrained(tmp_path / "model")
    from trainings import config as our_config

    from firebolt_vl.train.conversations import ConversationsJob
    from firebolt_vl.train.data import Collator

    out = run(tmp_path, "sft", batch_size=12, max_steps=1)
    job = ConversationsJob(our_config(tmp_path))
    expected = job.model(**Collator(job.dataset, job.processor)(range(12)).inputs).loss.detach()
    assert_close(torch.tensor(told(out)[0]["loss"]), expected, relative=1e-5)


def test_preferences_begin_without_one(tmp_path):
    """The reference is the model at the start, without dropout: the first loss is log 2, and falls."""
    write_start(tmp_path, dropout=0.2)
    keys = {"max_steps": 4, "lr": 1e-2, "train": ["connector", "decoder"]}
    losses = [line["loss"] for line in told(run(tmp_path, "dpo", **keys))]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < 0.6


@pytest.mark.parametrize(("kind", "lora"), [("sft", None), ("dpo", LORA)], ids=["sft-full", "dpo-lora"])
def test_a_killed_run_goes_on_as_if_it_never_was(folder, kind, lora):
    keys = {"lora": lora, "save_every": 2, "max_steps": 4}
    whole = run(folder, kind, "whole", **keys)
    interrupted(folder, kind, "broken", at=3, **keys)
    assert [path.name for path in checkpoints_in(folder / "broken" / "checkpoints")] == ["checkpoint-2"]
    broken = run(folder, kind, "broken", resume=True, **keys)
    assert told(broken) == told(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def _both(first, second):
    def call(*args, **kwargs):
        second(*args, **kwargs)
        return first(*args, **kwargs)

    return call


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_run_that_was_killed_after_its_last_step_takes_no_other(folder, lora):
    """It had its last checkpoint, and the model was not written yet."""
    out = run(folder, "sft", lora=lora, max_steps=2)
    whole, weights = told(out), (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    run(folder, "sft", resume=True, lora=lora, max_steps=2)
    assert told(out) == whole
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_taken(folder):
    """A seal that is missing, a bit that turned, half a file: at each, one checkpoint is left fewer."""
    out = run(folder, "sft", save_every=1, max_steps=4, keep=4)
    whole = told(out)
    kept = checkpoints_in(out / "checkpoints")
    assert [path.name for path in kept] == [f"checkpoint-{step}" for step in (4, 3, 2, 1)]
    (kept[0] / "manifest.json").unlink()
    weights = bytearray((kept[1] / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (kept[1] / "model.safetensors").write_bytes(weights)
    (kept[2] / "optimizer.pt").write_bytes((kept[2] / "optimizer.pt").read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert newest(out / "checkpoints") == kept[3]
    said = [str(one.message) for one in warned]
    for path, why in zip(kept, ("manifest.json is missing", "model.safetensors is not", "optimizer.pt is not")):
        assert any(f"{path} is damaged ({why}" in text for text in said)
    run(folder, "sft", resume=True, save_every=1, max_steps=4, keep=2)
    assert told(out) == whole
    assert [path.name for path in checkpoints_in(out / "checkpoints")] == ["checkpoint-4", "checkpoint-3"]


def test_the_best_model_is_kept(folder):
    out = run(folder, "dpo", validation_share=0.4, eval_every=1)
    values = [line["eval_loss"] for line in told(out)]
    assert len(values) == 3
    assert all(line["perplexity"] > 1 for line in told(out))
    assert (out / "best" / "model.safetensors").is_file()


def test_adapters_alone_learn_and_are_merged(folder):
    before = load_file(folder / "model" / "model.safetensors")
    out = run(folder, "sft", lora=LORA, train=["decoder", "vision"])
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == {"decoder", "vision"}
    assert all(before[name].dim() == 2 for name in changed)
    assert sorted(path.name for path in (out / "adapters").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert adapters.base_of(out / "adapters") == str((folder / "model").resolve())
    adapters.merge(out / "adapters", adapters.base_of(out / "adapters"), folder / "merged")
    again = load_file(folder / "merged" / "model.safetensors")
    for name, tensor in after.items():
        assert_close(again[name], tensor, relative=1e-6)


def test_adapters_of_another_model_are_refused(folder, foveated):
    out = run(folder, "sft", lora=LORA)
    with pytest.raises(ConfigError, match=r"does not fit the model|has no place in the model"):
        adapters.merge(out / "adapters", str(foveated / "model"), folder / "merged")
    assert not (folder / "merged").exists()


def test_layers_that_are_not_there_are_named(folder):
    with pytest.raises(ConfigError, match=r"lora\.targets has zzz; expected some of .*q_proj.*, the dense layers of"):
        run(folder, "sft", lora={"targets": ["zzz"]})


def test_a_quantised_model_is_refused(folder):
    shutil.copytree(folder / "model", folder / "quantised")
    described = json.loads((folder / "quantised" / "config.json").read_text())
    described["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (folder / "quantised" / "config.json").write_text(json.dumps(described))
    for lora in (None, LORA):
        with pytest.raises(ConfigError, match="whose weights are quantised; expected the model that it was made from"):
            run(folder, "sft", model=str(folder / "quantised"), lora=lora)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_foveated_model_learns_preferences_by_the_same_code(foveated, tmp_path, lora):
    for name in ("model", "data"):
        (tmp_path / name).symlink_to(foveated / name, target_is_directory=True)
    losses = [line["loss"] for line in told(run(tmp_path, "dpo", lr=1e-2, max_steps=4, lora=lora, frames=2))]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]
    FoveatedVLM.from_pretrained(tmp_path / "run")


def test_the_foveated_losses_are_those_of_its_own_stage(foveated, tmp_path):
    """The preference loss of trl and ours, of the same pairs after the same step, agree."""
    from firebolt_vl.train.foveated.job import FoveatedJob

    for name in ("model", "data"):
        (tmp_path / name).symlink_to(foveated / name, target_is_directory=True)
    line = told(run(tmp_path, "sft", batch_size=16, max_steps=1, frames=2))[0]
    job = FoveatedJob(foveated_trainings.config(tmp_path))
    batch = job.collator(job.dataset, job.processor)(range(16))
    assert_close(torch.tensor(line["loss"]), job.model(**batch.inputs).loss.detach(), relative=1e-5)


def test_bad_rows_are_named_and_counted(folder):
    rows = [row("a", "b", rejected="c")] * 8 + [row("a", "b"), row("a", "b", rejected="b")]
    shutil.copytree(folder / "data", folder / "more")
    write_rows(folder / "more" / "rows.jsonl", rows)
    found = []
    from firebolt_vl.train.start import train

    keys = {"data": [str(folder / "more" / "rows.jsonl")], "max_steps": 1}
    train(config(folder, "dpo", max_bad_share=0.5, **keys), folder / "run", note=lambda text: None, report=found.append)
    assert [(problem.place, problem.kind) for problem in found] == [
        ("9", "no rejected answer"),
        ("10", "rejected is chosen"),
    ]
    with pytest.raises(TooManyBadRows, match="2 of 10 rows cannot be used"):
        train(config(folder, "dpo", **keys), folder / "other", note=lambda text: None, report=found.append)


def test_a_row_that_turns_out_bad_is_replaced_by_the_next(folder):
    shutil.copytree(folder / "data", folder / "more")
    (folder / "more" / "0.png").write_text("no image")
    found = []
    from firebolt_vl.train.start import train

    keys = {"data": [str(folder / "more" / "rows.jsonl")], "max_steps": 1, "batch_size": 12, "max_bad_share": 0.5}
    keys["workers"] = 1  # whose finds have to come back
    train(config(folder, "sft", **keys), folder / "run", note=lambda text: None, report=found.append)
    assert {problem.kind for problem in found} == {"unreadable image"}
    assert len(found) == 4
    with pytest.raises(TooManyBadRows):
        train(config(folder, "sft", **{**keys, "max_bad_share": 0.1}), folder / "other", note=lambda text: None)


def test_a_step_that_is_not_finite_changes_nothing(folder):
    out = run(folder, "sft", "honest", max_steps=2)

    def poison(habits, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Habits, "on_pre_optimizer_step", _both(Habits.on_pre_optimizer_step, poison))
        skipped = run(folder, "sft", "poisoned", max_steps=2)
        with pytest.raises(TrainingError, match=r"step 2 had to be skipped.*max_bad_steps=0"):
            run(folder, "sft", "stopped", max_steps=2, max_bad_steps=0)
    assert [line.get("skipped") for line in told(skipped)] == [None, 1]
    assert told(skipped)[0] == told(out)[0]
    weights = load_file(skipped / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_without_a_reference_there_is_no_preference():
    with pytest.raises(ConfigError, match=r"beta is 0\.0; expected more than 0: without the reference model"):
        DpoConfig(model="m", data=["d"], beta=0)


def test_trl_that_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "firebolt_vl.train.post.trainers", raising=False)
    monkeypatch.delattr(post, "trainers", raising=False)
    with pytest.raises(ConfigError, match=r"needs trl, which is not installed; pip install 'firebolt-vl\[train,trl\]'"):
        run(folder, "sft")
