"""trl's trainers with this project's optimiser and counting of bad rows; all that is asked of trl stands here."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from ..errors import ConfigError
from ..optimizer import cosine, parameter_groups
from .checkpoints import CHECKPOINTS
from .config import EPOCHS, DpoConfig, GrpoConfig, PostConfig
from .models import adapter_config
from .rewards_of_run import rewards_of_run
from .rows import PROBLEMS, AnswerBatches, PreferenceBatches, Questions, Source, Spares, collator_of, numbered


@dataclass(frozen=True)
class Parts:
    """Parts of a trainer: the model, its processor, rows to train on and rows held out, and a folder."""

    model: PreTrainedModel
    processor: ProcessorMixin
    train: Source
    held_out: Source
    folder: Path


class Ours:
    """Habits of all trainings here, for each of trl's trainers; stands before the trainer among the bases."""

    parts: Parts
    config: PostConfig

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Make AdamW in this project's groups: no weight decay on vectors and on state-space models."""
        if self.optimizer is None:
            groups = parameter_groups(model or self.model, self.config.lr, None, self.config.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=tuple(self.config.betas))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LambdaLR:
        """Make the rates of all trainings here: a linear rise, then half a cosine."""
        if self.lr_scheduler is None:
            end = self.config.min_lr / self.config.lr if self.config.lr else 0.0

            def share(step: int) -> float:
                return cosine(step, num_training_steps, self.config.warmup_steps, 1.0, end)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self._counted(inputs), *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        return super().prediction_step(model, self._counted(inputs), *args, **kwargs)

    def _counted(self, inputs: Any) -> Any:
        """Count the bad rows that a batch met. Raises TooManyBadRows."""
        batches: Sequence[dict] = inputs if isinstance(inputs, list) else [inputs]
        for batch in batches:
            for which, problem in batch.pop(PROBLEMS, ()):
                (self.parts.train, self.parts.held_out)[which].dataset.note(problem)
        return inputs

    def create_model_card(self, *args, **kwargs) -> None:
        """Write none: train.json in a run's folder says what made it."""

    def _send_telemetry(self) -> None:
        """Send none: nothing about a run leaves the machine."""


class Sft(Ours, SFTTrainer):
    """Supervised training."""


class Dpo(Ours, DPOTrainer):
    """Training on preferences."""


class Grpo(Ours, GRPOTrainer):
    """Training on rewards."""


def trainer_of(config: PostConfig, parts: Parts, processes: int) -> Sft | Dpo | Grpo:
    """The trainer of a run, ready to train. Raises ConfigError."""
    if isinstance(config, GrpoConfig):
        made = _grpo(config, parts, processes)
    else:
        made = _dpo(config, parts, processes) if isinstance(config, DpoConfig) else _sft(config, parts, processes)
    made.parts, made.config = parts, config
    made.remove_callback(PrinterCallback)
    return made


def _sft(config: PostConfig, parts: Parts, processes: int) -> Sft:
    batches = AnswerBatches(Spares(parts.train, parts.held_out), collator_of(parts.train.dataset, parts.processor))
    micro = config.batch_size // (config.accumulation(processes) * processes)
    args = SFTConfig(**_arguments(config, parts.folder, micro, config.accumulation(processes)), max_length=None)
    return Sft(args=args, data_collator=batches, **_given(config, parts))


def _dpo(config: DpoConfig, parts: Parts, processes: int) -> Dpo:
    batches = PreferenceBatches(Spares(parts.train, parts.held_out), collator_of(parts.train.dataset, parts.processor))
    micro = config.batch_size // (config.accumulation(processes) * processes)
    told = _arguments(config, parts.folder, micro, config.accumulation(processes))
    args = DPOConfig(**told, max_length=None, beta=config.beta)
    # With adapters the model without them is the reference.
    reference = None if config.lora is not None else copy.deepcopy(parts.model).requires_grad_(False).eval()
    return Dpo(args=args, data_collator=batches, ref_model=reference, **_given(config, parts))


def _grpo(config: GrpoConfig, parts: Parts, processes: int) -> Grpo:
    micro, accumulated = config.rows(processes)
    if len(parts.train.rows) < config.batch_size:
        raise ConfigError(
            f"batch_size is {config.batch_size}; expected at most {len(parts.train.rows)}, the questions to train on"
        )
    args = GRPOConfig(
        **_arguments(config, parts.folder, micro, accumulated)
        | {"per_device_eval_batch_size": config.generations * max(1, micro // config.generations)},
        num_generations=config.generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.beta,
        reward_weights=list(config.rewards.values()),
    )
    questions = Questions(tuple(config.rewards), parts.train, parts.held_out)
    given = _given(config, parts)
    # Of an image's inputs trl keeps some by name; packed, these hold all of its views.
    given["processing_class"] = copy.deepcopy(parts.processor)
    given["processing_class"].image_processor.packed = True
    for name in ("train_dataset", "eval_dataset"):
        given[name] = None if given[name] is None else given[name].with_transform(questions)
    return Grpo(args=args, reward_funcs=rewards_of_run(config, parts.model, parts.processor), **given)


def _given(config: PostConfig, parts: Parts) -> dict[str, Any]:
    """Arguments that every trainer is given."""
    train, held_out = len(parts.train.rows), len(parts.held_out.rows)
    adapters = config.adapters
    return {
        "model": parts.model,
        "processing_class": parts.processor,
        "train_dataset": numbered(0, train),
        "eval_dataset": numbered(train, held_out) if held_out else None,
        "peft_config": None if adapters is None else adapter_config(parts.model, config.train, adapters),
        "callbacks": _trackers(config, parts.folder),
    }


def _trackers(config: PostConfig, folder: Path) -> list[TrainerCallback]:
    if "tensorboard" not in config.trackers:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "logs")))]


def _arguments(config: PostConfig, folder: Path, micro: int, accumulated: int) -> dict[str, Any]:
    """The arguments that trl's configurations share; when it saves and validates is decided by `Habits`."""
    steps = {"max_steps": config.max_steps} if config.max_steps else {"num_train_epochs": config.epochs or EPOCHS}
    return {
        "output_dir": str(folder / CHECKPOINTS),
        **steps,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": config.lr,
        "max_grad_norm": config.clip,
        "bf16": config.precision == "bf16",
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_num_workers": config.workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "report_to": [name for name in config.trackers if name != "tensorboard"] or "none",
        "disable_tqdm": True,
    }
