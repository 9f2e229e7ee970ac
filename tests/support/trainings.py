"""Small training runs: a model with random weights, a few rows, a configuration."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
from conversations import write_conversations
from safetensors.torch import load_file
from tiny_models import write_checkpoint

from firebolt_vl.train import loop
from firebolt_vl.train.config import TrainConfig
from firebolt_vl.train.config_files import checked
from firebolt_vl.train.conversations import ConversationsJob  # noqa: F401  (what tests break into)
from firebolt_vl.train.loop import HISTORY, read_history
from firebolt_vl.train.start import train

QUIET = {"trackers": [], "workers": 0, "eval_every": 0, "save_every": 0, "precision": "float32", "warmup_steps": 0}


def write_start(folder: Path, rows: int = 16, text_only: int = 4, dropout: float = 0.0) -> Path:
    """`folder`/model, whose connector has this dropout, and `folder`/data/rows.jsonl."""
    write_checkpoint(folder / "model")
    described = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    described["cmm_config"]["dropout"] = dropout
    (folder / "model" / "config.json").write_text(json.dumps(described), encoding="utf-8")
    write_conversations(folder / "data", rows=rows, text_only=text_only)
    return folder


def config(folder: Path, **keys) -> TrainConfig:
    start = {"model": str(folder / "model"), "data": [str(folder / "data" / "rows.jsonl")]}
    sizes = {"batch_size": 4, "max_steps": 4, "lr": 1e-3}
    return checked(TrainConfig, {**QUIET, **start, **sizes, **keys})


def run(folder: Path, out: str = "run", resume: bool = False, **keys) -> Path:
    return train(config(folder, **keys), folder / out, resume, note=lambda text: None)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_history(out / HISTORY)]


def steps(out: Path) -> list[int]:
    return [line["step"] for line in read_history(out / HISTORY)]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def told(out: Path) -> str:
    """What a run has computed, without its times."""
    lines = read_history(out / HISTORY)
    return json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines])


class Killed(BaseException):
    """Not an error: nothing on the way may catch it."""


def interrupted(run, folder: Path, out: str, at: int, **keys) -> None:
    """A `run` that ends within its step number `at`, after it is written down and before a checkpoint of it is."""

    with pytest.MonkeyPatch.context() as patch:
        told_of = loop.History.add

        def add(history, line):
            told_of(history, line)
            if line["step"] == at:
                raise Killed

        patch.setattr(loop.History, "add", add)
        with pytest.raises(Killed):
            run(folder, out, **keys)


@contextmanager
def poisoned(kind, *at: int, value: float = math.nan):
    """Jobs of a kind whose gradients are not finite at these steps (from 0); the loss is as it was."""
    honest = kind.step

    def step(job, number):
        if number not in at:
            return honest(job, number)
        learning = [p for module in job.states().modules.values() for p in module.parameters() if p.requires_grad]
        hooks = [parameter.register_hook(lambda gradient: gradient * value) for parameter in learning]
        try:
            return honest(job, number)
        finally:
            for hook in hooks:
                hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", step)
        yield


def assert_finite(file: Path) -> None:
    for name, tensor in load_file(file).items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{file}: {name}"
