"""Losses, gradients, weights and perplexities that are infinite or NaN: skipped, counted, told, and never kept."""

import json
import math
import shutil
import warnings

import foveated_trainings
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import assert_finite, config, interrupted, losses, poisoned, run, steps, told, weights, write_start

from firebolt_vl.train import loop
from firebolt_vl.train.checkpoints import sum_of, sums_of
from firebolt_vl.train.conversations import ConversationsJob
from firebolt_vl.train.errors import TrainingError
from firebolt_vl.train.foveated.job import FoveatedJob
from firebolt_vl.train.loop import HISTORY, agreed, read_history
from firebolt_vl.train.session import new_accelerator
from firebolt_vl.train.start import train

ALL = ["vision", "connector", "decoder"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"), dropout=0.1)


@pytest.fixture(scope="module")
def foveated_start(tmp_path_factory):
    return foveated_trainings.write_start(tmp_path_factory.mktemp("foveated"))


def skipped(out) -> list[int]:
    return [line["step"] for line in read_history(out / HISTORY) if "skipped" in line]


@pytest.mark.parametrize(
    ("keys", "value"),
    [({}, math.nan), ({}, -math.inf), ({"train": ALL}, math.inf), ({"lora": {"rank": 2}}, math.nan)],
    ids=["stage1", "stage1-inf", "stage2-inf", "lora"],
)
def test_a_gradient_that_is_not_finite_at_the_last_step(folder, keys, value):
    """Model, best model and checkpoint are those of the step before."""
    keys = {**keys, "validation_share": 0.2, "max_steps": 3}
    said = []
    with poisoned(ConversationsJob, 2, value=value):
        out = train(config(folder, **keys), folder / "run", note=said.append)
    for file in ("model.safetensors", "best/model.safetensors"):
        assert_finite(out / file)
    assert_finite(next((out / "checkpoints").glob("*")) / "weights.safetensors")
    lines = read_history(out / HISTORY)
    assert [line.get("skipped") for line in lines] == [None, None, 1]
    assert math.isfinite(lines[2]["loss"])
    assert lines[2]["gradient_norm"] is None
    assert said[-1].startswith("1 of 3 steps were skipped")


@pytest.mark.parametrize("loss", ["text", "answers", "preferences"])
def test_the_stages_of_the_foveated_model_skip_it_too(foveated_start, tmp_path, loss):
    keys = {"loss": loss, "max_steps": 3, "save_every": 1}
    with poisoned(FoveatedJob, 1, 2):
        out = foveated_trainings.run(foveated_start, str(tmp_path / "run"), **keys)
    assert skipped(out) == [2, 3]
    assert_finite(out / "model.safetensors")
    first = load_file(out / "checkpoints" / "step-00000002" / "weights.safetensors")
    last = load_file(out / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in first.items())


def test_a_step_that_is_skipped_leaves_weights_and_optimiser_as_they_were(folder):
    keys = {"max_steps": 4, "save_every": 1, "keep": 9, "train": ALL}
    with poisoned(ConversationsJob, 2):
        out = run(folder, **keys)
    before, after = (
        {file.name: load_file(file) for file in (out / "checkpoints" / f"step-0000000{n}").glob("*.safe*")}
        for n in (2, 3)
    )
    for file, tensors in before.items():
        assert tensors.keys() == after[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(after[file][name], tensor), name
    later = load_file(out / "checkpoints" / "step-00000004" / "weights.safetensors")
    assert not all(torch.equal(later[name], tensor) for name, tensor in after["weights.safetensors"].items())


def test_a_run_that_skips_goes_on_bit_for_bit(folder):
    """The counts are kept too."""
    keys = {"max_steps": 8, "save_every": 2, "train": ALL, "validation_share": 0.2, "eval_every": 3}
    with poisoned(ConversationsJob, 1, 4, 5):
        whole = run(folder, "whole", **keys)
        interrupted(run, folder, "broken", 6, **keys)
        again = run(folder, "broken", resume=True, **keys)
    assert skipped(whole) == [2, 5, 6]
    assert told(again) == told(whole)
    assert weights(again) == weights(whole)


def test_so_many_in_a_row_stop_the_run_and_healthy_ones_between_them_do_not(folder):
    keys = {"max_steps": 9, "save_every": 1, "max_bad_steps": 2}
    with poisoned(ConversationsJob, 1, 2, 4, 5, 7):
        assert steps(run(folder, "between", **keys)) == [*range(1, 10)]
    with (
        poisoned(ConversationsJob, 3, 4, 5, 6),
        pytest.raises(
            TrainingError, match=r"step 6 had to be skipped, as 2 before it .*max_bad_steps=2.*step-00000005 is"
        ),
    ):
        run(folder, "row", **keys)
    assert not (folder / "row" / "model.safetensors").exists()
    out = run(folder, "row", resume=True, **keys)
    assert steps(out) == [*range(1, 10)]
    assert_finite(out / "model.safetensors")


def test_a_loss_that_is_not_finite_is_skipped_as_well(folder):
    honest = ConversationsJob._loss

    class Spoiled(torch.nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.model, self.inner, self.calls = loss.model, [loss], 0

        def forward(self, **inputs):
            self.calls += 1
            return self.inner[0](**inputs) * (math.inf if self.calls == 2 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConversationsJob, "_loss", lambda job: Spoiled(honest(job)))
        out = run(folder, max_steps=4)
    assert [loss is None for loss in losses(out)] == [False, True, False, False]
    json.loads((out / HISTORY).read_text().splitlines()[1], parse_constant=pytest.fail)
    assert_finite(out / "model.safetensors")


def test_a_run_without_one_good_step_is_no_model(folder):
    with poisoned(ConversationsJob, 0, 1), pytest.raises(TrainingError, match="step 2 had to be skipped, as 1 before"):
        run(folder, max_steps=2)
    assert not (folder / "run" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_neither_checkpoint_nor_model(folder):
    """An update may be infinite though its gradient is not."""
    honest = ConversationsJob.step

    def step(job, number):
        measured = honest(job, number)
        if number == 2:
            with torch.no_grad():
                next(p for p in job.model.parameters() if p.requires_grad).flatten()[0] = math.inf
        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConversationsJob, "step", step)
        with pytest.raises(TrainingError, match=r"after step 3 loss\.model\..* is not finite; .*step-00000002 is kept"):
            run(folder, max_steps=5, save_every=1)
        with pytest.raises(TrainingError, match="is not finite"):
            run(folder, "last", max_steps=3, validation_share=0.2)
    assert not (folder / "last" / "best" / "model.safetensors").exists()
    assert not (folder / "last" / "model.safetensors").exists()
    assert_finite(run(folder, resume=True, max_steps=5, save_every=1) / "model.safetensors")


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_perplexity_that_is_not_finite_is_never_the_best(folder, first, monkeypatch):
    honest, found = ConversationsJob.validate, iter([first, None])
    monkeypatch.setattr(ConversationsJob, "validate", lambda job: next(found) or honest(job))
    out = run(folder, max_steps=2, eval_every=1, validation_share=0.2)
    assert [line["perplexity"] is None for line in read_history(out / HISTORY)] == [True, False]
    assert weights(out / "best") == weights(out)


def poison(checkpoint, name: str, key: str) -> None:
    """As a run without these checks would have left it: its sums are right."""
    tensors = load_file(checkpoint / name)
    chosen = next(tensor for tensor_name, tensor in tensors.items() if tensor_name.endswith(key) and tensor.numel())
    chosen.view(-1)[0] = math.nan
    save_file(tensors, checkpoint / name, {"format": "pt"})
    rewrite_manifest(checkpoint)


def rewrite_manifest(checkpoint, **changed) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())["manifest"] | changed
    manifest["files"] = {name: sums_of(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_text(json.dumps({"manifest": manifest, "sum": sum_of(manifest)}))


@pytest.mark.parametrize(
    ("name", "key"),
    [("weights.safetensors", "weight"), ("optimizer.safetensors", "exp_avg")],
    ids=["weights", "optimiser"],
)
def test_a_resumed_run_passes_over_a_poisoned_checkpoint(folder, name, key):
    keys = {"max_steps": 4, "save_every": 1, "keep": 3}
    whole = run(folder, "whole", **keys)
    shutil.copytree(whole, folder / "run")
    for step in (3, 4):
        poison(folder / "run" / "checkpoints" / f"step-0000000{step}", name, key)
    with pytest.warns(UserWarning, match=rf"step-0000000[34] is damaged \({name}: .* is not finite\); the one before"):
        out = run(folder, resume=True, **keys)
    assert (told(out), weights(out)) == (told(whole), weights(whole))


@pytest.mark.parametrize(
    "notes",
    [
        {"best": math.nan, "skipped": 0, "in_a_row": 0},
        {"best": None, "skipped": -1, "in_a_row": 0},
        [],
    ],
)
def test_notes_that_no_run_keeps_are_passed_over(folder, notes):
    keys = {"max_steps": 2, "save_every": 1}
    run(folder, **keys)
    rewrite_manifest(folder / "run" / "checkpoints" / "step-00000002", notes=notes)
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert steps(run(folder, resume=True, **keys)) == [1, 2]


def test_a_skipped_step_is_told_in_the_log_and_to_the_tracker(folder, capsys, monkeypatch):
    logged = {}
    monkeypatch.setattr(loop.Accelerator, "log", lambda self, values, step: logged.update({step: values}), raising=True)
    with poisoned(ConversationsJob, 1):
        run(folder, max_steps=3, log_every=100)
    assert "step 2 of 3: loss" in (said := capsys.readouterr().err)
    assert "skipped, loss or gradient is not finite (1 so far)" in said
    assert logged[2]["skipped"] == 1
    assert "gradient_norm" not in logged[2]


@pytest.fixture
def every_warning():
    """PyTorch's too, of which some come once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(before)


def test_sums_of_numbers_that_still_have_a_graph_are_silent(tmp_path, every_warning):
    loss = torch.ones(1, requires_grad=True).sum()
    assert agreed(new_accelerator([], tmp_path, cpu=True), loss, 2.0) == [1.0, 2.0]
