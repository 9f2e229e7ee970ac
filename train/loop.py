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
from safetensors import SafetensorError

from ..files.writing import write_text, write_whole
from .checkpoints import Checkpoints, kept_in
from .errors import Stopped, TrainingError
from .interrupts import Interrupts
from .states import States, check_supported, not_finite

FOLDERS = ("best", "checkpoints", "logs")
HISTORY, PLOT = "history.jsonl", "loss.png"


class Job(ABC):
    """Training that the loop runs."""

    steps: int
    """The last step; the first one is 1."""

    @abstractmethod
    def prepare(self, accelerator: Accelerator) -> None:
        """Hand models and optimisers to the accelerator."""

    @abstractmethod
    def start(self, step: int) -> None:
        """Make ready for step `step`, from 0; all states are those after the steps before it."""

    @abstractmethod
    def step(self, number: int) -> dict[str, float]:
        """Do one step; returns its `loss` and what else is to be written down, such as `tokens`.

        A step whose loss or gradient is not finite changes nothing that learns; its `skipped` is True.
        """

    @abstractmethod
    def states(self) -> States:
        """All that a checkpoint holds of the job, once it is prepared."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the transformers layout; called by every process."""

    def validate(self) -> float | None:
        """The perplexity on what is not trained on, None where there is nothing of it."""
        return None


def agreed(accelerator: Accelerator, *numbers: float | torch.Tensor) -> list[float]:
    """The sums of numbers over all processes: what is not finite in one is so in all, and all decide alike."""
    mine = torch.tensor(
        [torch.as_tensor(one).detach().item() for one in numbers], dtype=torch.float64, device=accelerator.device
    )
    return accelerator.reduce(mine).tolist()


@dataclass(frozen=True)
class LoopOptions:
    out: Path
    save_every: int = 0
    keep: int = 2
    eval_every: int = 0
    resume: bool = False
    plot: bool = True
    max_bad_steps: int = 10
    """How many steps in a row may be skipped."""


@dataclass(frozen=True)
class Told:
    """Report of a step: how many are done, and what was measured (`loss`, `tokens`, `perplexity`, ...)."""

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
        """Append a line; what is not finite is null, since JSON has no such numbers."""
        if self.writes:
            told = {key: value if math.isfinite(value) else None for key, value in line.items()}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


def read_history(file: Path) -> list[dict]:
    """The whole lines of a history; the last one of a killed run may be half a line."""
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int) or "loss" not in line:
            break
        lines.append(line)
    return lines


def holds_run(out: Path) -> bool:
    """Tell whether a run wrote a folder: of one model, or of several seeds below it."""
    kept = (*out.glob("checkpoints/step-*"), *out.glob("checkpoints/checkpoint-*"))
    found = (out / HISTORY, *out.glob(f"seed-*/{HISTORY}"), *kept)
    return any(path.exists() for path in found)


def run(
    job: Job,
    accelerator: Accelerator,
    options: LoopOptions,
    report: Callable[[Told], None] = lambda told: None,
) -> int:
    """Train `job` to its last step; the final model is in `options.out`, the best one in its folder `best`.

    With `resume` the run goes on from the newest checkpoint that is whole and finite, or from the start where there is
    none, and does what it would have done had it never stopped. Returns how many steps were skipped.

    Raises TrainingError where more than `max_bad_steps` steps in a row are skipped, weights are not finite or a
    checkpoint cannot be written; Stopped where the user stops it.
    """
    # Of several processes each would stop at another step; their launcher stops them all.
    with Interrupts(accelerator.num_processes == 1) as interrupts:
        try:
            return _run(job, accelerator, options, report, interrupts)
        except Stopped:
            raise
        except KeyboardInterrupt:
            raise Stopped(f"stopped at once; {kept_in(options.out / 'checkpoints')}") from None


def _run(
    job: Job, accelerator: Accelerator, options: LoopOptions, report: Callable[[Told], None], interrupts: Interrupts
) -> int:
    out, main = options.out, accelerator.is_main_process
    check_supported(accelerator)
    if main:
        out.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    job.prepare(accelerator)
    checkpoints = Checkpoints(out / "checkpoints", accelerator, options.keep, job.states())
    history = History(out / HISTORY, main)
    restored = checkpoints.restore() if options.resume else None
    step = restored.step if restored else 0
    notes = restored.notes if restored else {"best": None, "skipped": 0, "in_a_row": 0}
    checkpoints.forget_after(step)
    history.keep_until(step)
    job.start(step)
    while step < job.steps:
        begun = time.perf_counter()
        measured = job.step(step)
        step += 1
        count_skipped(notes, measured)
        last = step == job.steps
        measured["seconds"] = time.perf_counter() - begun
        if last or (options.eval_every and step % options.eval_every == 0):
            perplexity = job.validate()
            if perplexity is not None:
                measured["perplexity"] = perplexity
                if math.isfinite(perplexity) and (notes["best"] is None or perplexity < notes["best"]):
                    save_model(job, out / "best", accelerator)
                    notes["best"] = perplexity
        history.add({"step": step, **measured})
        accelerator.log({key: value for key, value in measured.items() if math.isfinite(value)}, step=step)
        report(Told(step, job.steps, measured))
        if notes["in_a_row"] > options.max_bad_steps or notes["skipped"] == job.steps:
            raise TrainingError(too_many_skipped(step, measured, notes, options, checkpoints))
        if last or interrupts.asked or (options.save_every and step % options.save_every == 0):
            checkpoints.save(step, notes)
        if interrupts.asked and not last:
            raise Stopped(f"stopped after step {step} of {job.steps}; {kept_in(checkpoints.folder)}")
    save_model(job, out, accelerator)
    if main and options.plot:
        plot_history(read_history(out / HISTORY), out / PLOT)
    accelerator.wait_for_everyone()
    return notes["skipped"]


def count_skipped(notes: dict, measured: dict) -> None:
    """Count a step that was skipped; what is measured of it says how many there were."""
    if measured.pop("skipped", False) or not math.isfinite(measured["loss"]):
        notes["skipped"] += 1
        notes["in_a_row"] += 1
        measured["skipped"] = notes["skipped"]
    else:
        notes["in_a_row"] = 0


def too_many_skipped(step: int, measured: dict, notes: dict, options: LoopOptions, checkpoints: Checkpoints) -> str:
    return (
        f"step {step} had to be skipped, as {notes['in_a_row'] - 1} before it (loss {measured['loss']}, norm of the "
        f"gradient {measured.get('gradient_norm', 'unknown')}; max_bad_steps={options.max_bad_steps}); "
        f"{kept_in(checkpoints.folder)}. A lower learning rate may help (lr=)"
    )


def skipped_words(skipped: int, steps: int) -> str:
    return f"{skipped} of {steps} steps were skipped: their loss or gradient was not finite ({HISTORY} says which)"


def save_model(job: Job, folder: Path, accelerator: Accelerator) -> None:
    """Write the model of a job (`write_model`). Raises TrainingError where weights are not finite too."""
    if (name := not_finite(job.states(), accelerator)) is not None:
        raise TrainingError(f"{name} is not finite; the model is not written to {folder}. A lower rate may help (lr=)")
    write_model(job.save, folder, accelerator)


def write_model(write: Callable[[Path], None], folder: Path, accelerator: Accelerator) -> None:
    """A model's files in `folder`, each renamed into its place when all of them are written, the weights last.

    `write` writes them into the folder that it is given; every process calls this, and `write` is called by each.
    Raises TrainingError where they cannot be written; what was there stays.
    """
    # Within the folder, which may be a link to another disk.
    unfinished = folder / ".unfinished"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        write(unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for file in sorted(unfinished.iterdir(), key=lambda file: file.suffix == ".safetensors"):
                file.replace(folder / file.name)
            unfinished.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise TrainingError(f"the model could not be written to {folder} ({why}); the checkpoints are kept") from None
    accelerator.wait_for_everyone()


def plot_history(history: list[dict], file: Path) -> None:
    """Loss and perplexity over the steps; the loss as it is and as a running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = [line for line in history if line["loss"] is not None]
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
    measured = [(line["step"], line["perplexity"]) for line in history if line.get("perplexity") is not None]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured), "o-", color="tab:blue", markersize=3, label="validation perplexity")
        other.set(ylabel="perplexity", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    write_whole(file, lambda temporary: figure.savefig(temporary, dpi=120))
    pyplot.close(figure)
