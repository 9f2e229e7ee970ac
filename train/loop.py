"""One loop for every training: steps, validation, checkpoints, and what is written down of them."""

import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..evaluate.files import write_text, write_whole
from .checkpoints import Checkpoints

FOLDERS = ("best", "checkpoints", "logs")
HISTORY, PLOT = "history.jsonl", "loss.png"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


class Job(ABC):
    """What a loop trains."""

    steps: int
    """The last step; the first one is 1."""
    registered: tuple = ()
    """Objects with `state_dict` and `load_state_dict` that a checkpoint holds beside models and optimisers."""

    @abstractmethod
    def prepare(self, accelerator: Accelerator) -> None:
        """Hand models and optimisers to the accelerator."""

    @abstractmethod
    def start(self, step: int) -> None:
        """Make ready for step `step`, from 0; all states are those after the steps before it."""

    @abstractmethod
    def step(self, number: int) -> dict[str, float]:
        """Do one step; returns its `loss` and what else is to be written down, such as `tokens`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the transformers layout; called by every process."""

    def validate(self) -> float | None:
        """The perplexity on what is not trained on, None where there is nothing of it."""
        return None


@dataclass(frozen=True)
class LoopOptions:
    out: Path
    save_every: int = 0
    keep: int = 2
    eval_every: int = 0
    resume: bool = False
    plot: bool = True


@dataclass(frozen=True)
class Told:
    """What is told after a step: how many are done, and what was measured (`loss`, `tokens`, `perplexity`, ...)."""

    step: int
    steps: int
    measured: dict[str, float]


class History:
    """A line of JSON for each step, which a resumed run takes back to where it goes on from."""

    def __init__(self, file: Path, writes: bool):
        self.file = file
        self.writes = writes

    def keep_until(self, step: int) -> None:
        """Forget what was written after a step: it is done again."""
        if not self.writes:
            return
        kept = [line for line in read_history(self.file) if line["step"] <= step]
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict) -> None:
        if self.writes:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_history(file: Path) -> list[dict]:
    """The whole lines of a history; the last one of a killed run may be half a line."""
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def holds_run(out: Path) -> bool:
    return (out / HISTORY).exists() or any((out / "checkpoints").glob("step-*"))


def run(
    job: Job,
    accelerator: Accelerator,
    options: LoopOptions,
    report: Callable[[Told], None] = lambda told: None,
) -> None:
    """Train `job` to its last step; the final model is in `options.out`, the best one in its folder `best`.

    With `resume` the run goes on from the newest whole checkpoint, or from the start where there is none, and does what
    it would have done had it never stopped. Raises TrainingError where a loss is not finite.
    """
    out, main = options.out, accelerator.is_main_process
    if main:
        out.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    job.prepare(accelerator)
    accelerator.register_for_checkpointing(*job.registered)
    checkpoints = Checkpoints(out / "checkpoints", accelerator, options.keep)
    history = History(out / HISTORY, main)
    restored = checkpoints.restore() if options.resume else None
    step, best = (restored.step, restored.notes["best"]) if restored else (0, None)
    checkpoints.forget_after(step)
    history.keep_until(step)
    job.start(step)
    while step < job.steps:
        begun = time.perf_counter()
        measured = job.step(step)
        step += 1
        if not math.isfinite(measured["loss"]):
            raise TrainingError(f"the loss is {measured['loss']} at step {step}; a lower learning rate may help (lr=)")
        last = step == job.steps
        measured["seconds"] = time.perf_counter() - begun
        if last or (options.eval_every and step % options.eval_every == 0):
            perplexity = job.validate()
            if perplexity is not None:
                measured["perplexity"] = perplexity
                if best is None or perplexity < best:
                    best = perplexity
                    save_model(job, out / "best", accelerator)
        history.add({"step": step, **measured})
        accelerator.log(measured, step=step)
        report(Told(step, job.steps, measured))
        if last or (options.save_every and step % options.save_every == 0):
            checkpoints.save(step, {"best": best})
    save_model(job, out, accelerator)
    if main and options.plot:
        plot_history(read_history(out / HISTORY), out / PLOT)
    accelerator.wait_for_everyone()


def save_model(job: Job, folder: Path, accelerator: Accelerator) -> None:
    """The model's files in `folder`, each renamed into its place when all of them are written, the weights last."""
    unfinished = folder.parent / f".{folder.name}.unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    job.save(unfinished)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            file.replace(folder / file.name)
        unfinished.rmdir()
    accelerator.wait_for_everyone()


def plot_history(history: list[dict], file: Path) -> None:
    """Loss and perplexity over the steps; the loss as it is and as a running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [line["step"] for line in history]
    losses = torch.tensor([line["loss"] for line in history], dtype=torch.float64)
    if not steps:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:orange", alpha=0.35, linewidth=0.8, label="loss of a step")
    window = min(len(steps), max(5, len(steps) // 50))
    smooth = losses.unfold(0, window, 1).mean(-1)
    axes.plot(steps[window - 1 :], smooth, color="tab:orange", label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    measured = [(line["step"], line["perplexity"]) for line in history if "perplexity" in line]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured), "o-", color="tab:blue", markersize=3, label="validation perplexity")
        other.set(ylabel="perplexity", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    write_whole(file, lambda temporary: figure.savefig(temporary, dpi=120))
    pyplot.close(figure)
