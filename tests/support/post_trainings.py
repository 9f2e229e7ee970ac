"""Small trainings by trl: a model with random weights, rows for each kind, a configuration."""

import json
from pathlib import Path

import pytest
import trainings
from conversations import picture, row, write_rows

from firebolt_vl.train.config_files import checked
from firebolt_vl.train.post.config import POST
from firebolt_vl.train.post.habits import Habits
from firebolt_vl.train.start import train

SIZES = {
    "sft": {"batch_size": 4},
    "dpo": {"batch_size": 4},
    "grpo": {"batch_size": 2, "generations": 2, "max_new_tokens": 3, "rewards": {"exact": 1.0, "words": 0.5}},
}


def write_start(folder: Path, dropout: float = 0.0, rows: int = 12) -> Path:
    """`folder`/model, and `folder`/data/rows.jsonl: questions about no, one and two images, each with two answers."""
    trainings.write_start(folder, dropout=dropout)
    images = [None, "0.png", ["1.png", "2.png"]]
    for number in range(4):
        picture(number).save(folder / "data" / f"{number}.png")
    written = []
    for number in range(rows):
        texts = [f"what is {number}?" + "!" * (number % 5), f"it is {number * number}"]
        texts = ["and before?", "nothing", *texts] if number % 3 == 0 else texts
        written.append(row(*texts, image=images[number % 3], rejected=f"not {number}"))
    write_rows(folder / "data" / "rows.jsonl", written)
    return folder


def config(folder: Path, kind: str, **keys):
    start = {"model": str(folder / "model"), "data": [str(folder / "data" / "rows.jsonl")]}
    steps = {"max_steps": 3, "lr": 1e-3}
    return checked(POST[kind], {**trainings.QUIET, **start, **steps, **SIZES[kind], **keys})


def run(folder: Path, kind: str, out: str = "run", resume: bool = False, **keys) -> Path:
    return train(config(folder, kind, **keys), folder / out, resume, note=lambda text: None)


class Killed(BaseException):
    """Not an error: nothing on the way may catch it."""


def interrupted(folder: Path, kind: str, out: str, at: int, **keys) -> None:
    """A run that ends within its step number `at`, before anything is written down of it."""
    ended = Habits.on_step_end

    def end(habits, args, state, control, **more):
        if state.global_step == at:
            raise Killed
        ended(habits, args, state, control, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Habits, "on_step_end", end)
        with pytest.raises(Killed):
            run(folder, kind, out, **keys)


def told(out: Path) -> list[dict]:
    """What a run has computed, without its times."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
