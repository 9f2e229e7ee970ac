"""The habits of every training here, in trl's trainers: history, progress, checkpoints, Ctrl-C, steps not finite."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from ..errors import Stopped, TrainingError
from ..interrupts import Interrupts
from ..loop import HISTORY, History, Told, read_history
from ..run_config import EVAL_EVERY
from .checkpoints import CHECKPOINTS, checkpoints_in, keep_newest, kept_in, seal
from .config import GrpoConfig, PostConfig

# Names of what trainers measure -> those that every history here has.
RENAMED = {"grad_norm": "gradient_norm", "learning_rate": "lr", "step_time": None, "epoch": None, "num_tokens": None}


@dataclass(frozen=True)
class Best:
    """Measure of a validation, by the trainer's name, and whether more of it is better."""

    metric: str
    higher: bool


LOSS, REWARD = Best("eval_loss", higher=False), Best("eval_reward", higher=True)


class Habits(TrainerCallback):
    """Callback that writes down and shows a run by trl, and says when it saves, validates and stops.

    A step whose gradient is not finite changes nothing: its gradients are dropped, and it is counted as `skipped`.
    Raises TrainingError where more than `max_bad_steps` in a row are.
    """

    def __init__(
        self,
        folder: Path,
        config: PostConfig,
        validates: bool,
        report: Callable[[Told], None],
        save_best: Callable[[], None],
        interrupts: Interrupts,
        accelerator: Accelerator,
    ):
        best = REWARD if isinstance(config, GrpoConfig) else LOSS
        self.folder = folder
        self.keep = config.keep
        self.max_bad_steps = config.max_bad_steps
        self.save_every = config.save_every
        self.eval_every = EVAL_EVERY if config.eval_every is None else config.eval_every
        self.validates = validates
        self.report = report
        self.best = best
        self.save_best = save_best
        self.interrupts = interrupts
        self.accelerator = accelerator
        self.history = History(folder / HISTORY, accelerator.is_main_process)
        self.line: dict | None = None
        self.skipped = self.in_a_row = 0
        self.finite = True
        self.best_value: float | None = None
        self.begun = time.perf_counter()

    def go_on_from(self, step: int) -> None:
        """Forget what was written down after a step; what was counted before it counts on."""
        self.history.keep_until(step)
        lines = read_history(self.history.file)
        skips = [line.get("skipped") for line in lines]
        self.skipped = max((one for one in skips if one is not None), default=0)
        self.in_a_row = next((turn for turn, one in enumerate(reversed(skips)) if one is None), len(skips))
        values = [line[self.best.metric] for line in lines if line.get(self.best.metric) is not None]
        self.best_value = (max if self.best.higher else min)(values, default=None)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._write_down()
        self.begun = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        parameters = [p for p in model.parameters() if p.grad is not None] if model is not None else []
        self.finite = all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None)
        if not self.finite:
            for parameter in parameters:
                parameter.grad = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_training_stop |= self.interrupts.asked
        control.should_save = last or self.interrupts.asked or bool(self.save_every and step % self.save_every == 0)
        control.should_evaluate = self.validates and (last or bool(self.eval_every and step % self.eval_every == 0))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not logs or "loss" not in logs:  # what is told of a validation, or of the whole run at its end
            return
        measured = {
            RENAMED.get(name, name): float(value)
            for name, value in logs.items()
            if isinstance(value, int | float) and RENAMED.get(name, name) is not None
        }
        measured["seconds"] = time.perf_counter() - self.begun
        if self.finite:
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            measured["skipped"] = self.skipped
        self.line = {"step": state.global_step, **measured}
        if self.in_a_row > self.max_bad_steps or self.skipped == state.max_steps:
            self._write_down()
            raise TrainingError(
                f"step {state.global_step} had to be skipped, as {self.in_a_row - 1} before it (loss {logs['loss']}, "
                f"norm of the gradient {measured.get('gradient_norm', 'unknown')}; max_bad_steps="
                f"{self.max_bad_steps}); {kept_in(self.folder / CHECKPOINTS)}. A lower learning rate may help (lr=)"
            )
        self.report(Told(state.global_step, state.max_steps, measured))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        value = (metrics or {}).get(self.best.metric)
        if value is None or self.line is None:
            return
        self.line[self.best.metric] = value
        told = {"loss": self.line["loss"], **({} if self.best.higher else {"perplexity": math.exp(min(value, 700))})}
        self.line |= told
        self.report(Told(state.global_step, state.max_steps, {**told, self.best.metric: value}))
        better = self.best_value is None or (value > self.best_value if self.best.higher else value < self.best_value)
        if math.isfinite(value) and better:
            self.best_value = value
            self.save_best()

    def on_save(self, args, state, control, **kwargs) -> None:
        self._write_down()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                seal(checkpoints_in(self.folder / CHECKPOINTS)[0])
                keep_newest(self.folder / CHECKPOINTS, self.keep)
            except OSError as error:
                raise TrainingError(
                    f"the checkpoint of step {state.global_step} could not be written ({error.strerror or error}); "
                    f"{kept_in(self.folder / CHECKPOINTS)}"
                ) from None

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._write_down()
        if self.interrupts.asked and state.global_step < state.max_steps:
            raise Stopped(
                f"stopped after step {state.global_step} of {state.max_steps}; {kept_in(self.folder / CHECKPOINTS)}"
            )

    def _write_down(self) -> None:
        if self.line is not None:
            self.history.add(self.line)
            self.line = None
