"""The study: what a weak model gains from trainings by trl on the same questions, and where its answers come from.

One part after another in this process: the start model, its samples, then each training with each seed and its exam.
What is finished is a file in OUT and is not done again; a training that was stopped goes on from its checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ....files.writing import write_text
from ...config_files import checked
from ...loop import HISTORY
from ...outputs import alone_in
from ...session import use_some_cores
from ...start import train
from ..config import POST
from .exam import examine, load, pass_at
from .rows import ROWS, write_questions
from .start import make_start


@dataclass(frozen=True)
class Sizes:
    """Amounts of everything: scenes and steps of the start model, steps of each training and questions of each."""

    scenes: int = 2500
    start_steps: int = 500
    steps: int = 50
    questions: int = 8
    generations: int = 8
    exam_scenes: int = 160
    seeds: int = 3

    @classmethod
    def quick(cls) -> "Sizes":
        """Return the least of everything: to see that it works."""
        return cls(scenes=40, start_steps=2, steps=1, questions=2, generations=2, exam_scenes=4, seeds=1)


ALL, RATE = ["connector", "decoder"], 1e-4
# Variant -> recipe and keys; each sees every question once, at one rate.
VARIANTS: Mapping[str, tuple[str, dict]] = {
    "sft": ("sft", {}),
    "dpo": ("dpo", {}),
    "grpo-answer": ("grpo", {"rewards": {"exact": 1.0}}),
    "grpo-both": ("grpo", {"rewards": {"exact": 1.0, "grounding": 1.0}}),
    "grpo-grounding": ("grpo", {"rewards": {"exact": 0.0, "grounding": 1.0}}),
}
LAST = "grpo-grounding"


def study(out: Path, sizes: Sizes, note: Callable[[str], None]) -> dict[str, list[dict]]:
    """Do what is missing of the study in `out`; returns the results of each variant, and of "start"."""
    use_some_cores()
    with alone_in(out, note):
        start = out / "start"
        if not (start / "model.safetensors").is_file():
            note(f"start model: {sizes.start_steps} steps")
            make_start(start, sizes.scenes, sizes.start_steps, resume=(start / HISTORY).is_file())
        _once(
            out / "start.json",
            lambda: {**examine(start, sizes.exam_scenes), **pass_at(start, sizes.exam_scenes, out / "exam")},
        )
        if not (out / "data" / ROWS).is_file():
            note("questions, with answers that the start model samples")
            write_questions(out / "data", *load(start), count=sizes.steps * sizes.questions)
        parts = [(name, seed) for seed in range(sizes.seeds) for name in VARIANTS]
        for name, seed in sorted(parts, key=lambda part: part[0] == LAST):
            note(f"{name}, seed {seed}")
            _once(out / "results" / f"{name}-{seed}.json", lambda n=name, s=seed: _run(out, n, s, sizes, note))
    return read_results(out)


def _once(file: Path, make: Callable[[], dict]) -> None:
    """Write what `make` returns as JSON, where the file is not there."""
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found, indent=1) + "\n")


def _run(out: Path, name: str, seed: int, sizes: Sizes, note: Callable[[str], None]) -> dict:
    """Train one variant with one seed, and examine it; what is left of the training is its history."""
    recipe, keys = VARIANTS[name]
    if recipe == "grpo":
        keys = {**keys, "generations": sizes.generations, "max_new_tokens": 8}
    common = {
        **{"model": str(out / "start"), "data": [str(out / "data" / ROWS)], "train": ALL, "seed": seed},
        "lr": RATE,
        **{"batch_size": sizes.questions, "max_steps": sizes.steps, "warmup_steps": 2, "clip": 1.0},
        **{"precision": "float32", "workers": 0, "trackers": [], "save_every": 10, "eval_every": 0},
    }
    folder = out / "runs" / f"{name}-{seed}"
    if not (folder / "model.safetensors").is_file():
        resume = (folder / "train.json").is_file()
        train(checked(POST[recipe], {**common, **keys}), folder, resume, note=lambda text: None, report=note)
    found = examine(folder, sizes.exam_scenes)
    lines = [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
    names = {key: None for line in lines for key in line if key == "loss" or key.startswith("reward")}
    measured = {key: [line.get(key) for line in lines] for key in names}
    shutil.rmtree(folder / "checkpoints")
    return {**found, "seconds": sum(line["seconds"] for line in lines), "history": measured}


def read_results(out: Path) -> dict[str, list[dict]]:
    """The finished results in a folder: those of the start model, then those of each variant, seed by seed."""
    found = {"start": [out / "start.json"], **{name: sorted(out.glob(f"results/{name}-*.json")) for name in VARIANTS}}
    return {
        name: [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        for name, files in found.items()
    }


__all__ = ["VARIANTS", "Sizes", "read_results", "study"]
