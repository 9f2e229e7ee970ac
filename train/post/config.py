"""Configuration of a training after the first ones: on answers, on preferences, or on rewards."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..keys import check_keys, key, typed
from ..run_config import PARTS, RunConfig, check_lora
from .reward_names import NAMES

DEFAULT_LORA = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": None}
# trl has a value of its own for each of these; here they are told.
BETA, EPOCHS = 0.1, 1


@dataclass(frozen=True)
class PostConfig(RunConfig):
    """Keys of every training by trl, beside those of RunConfig."""

    model: str | None = key(None, "the checkpoint to start from: a folder or a hub id; Firebolt or the foveated model")
    train: list[str] = key(
        ["decoder"], "the parts of the model that learn; with lora, those that get adapters", choices=PARTS
    )
    lora: dict | None = key(
        None,
        "rank, alpha, dropout, targets (last names of layers; default: all dense layers): adapters (peft) learn in the "
        "place of the weights of the parts in train. OUT has the model with them merged in, OUT/adapters them alone",
    )
    frames: int | None = key(None, "frames of a video, spread over it; default: one a second, at most 64", least=1)
    max_bad_steps: int = key(
        10, "a step whose gradient is not finite is skipped; after more than so many in a row it stops", least=0
    )
    batch_size: int = key(32, "rows of one step, over all processes and accumulated micro-batches", least=1)
    epochs: int | None = key(
        None,
        f"how often every row comes; default: {EPOCHS}, where max_steps is not given",
        least=1,
        excludes={"max_steps": "expected one of the two"},
    )
    lr: float = key(1e-5, "peak learning rate", least=0)
    min_lr: float = key(0.0, "where the cosine ends that follows warm-up", least=0)
    warmup_steps: int = key(10, "steps over which the learning rate rises linearly to its peak", least=0)
    weight_decay: float = key(0.0, "AdamW's weight decay; none on norms, biases and other vectors", least=0)
    save_every: int = key(200, "steps between checkpoints; 0: at the end alone", least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.model is None:
            raise ConfigError("model is not given; expected a checkpoint to start from (model=DIR)")
        check_lora(self.lora or {})
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr is {self.min_lr}; expected at most lr, {self.lr}")

    def check_no_dropout(self) -> None:
        """Raise ConfigError for adapters with dropout, where a model is compared with what it was or said."""
        if (self.lora or {}).get("dropout"):
            raise ConfigError(
                f"lora.dropout is {self.lora['dropout']}; expected 0 or none, as all dropout is off in this recipe"
            )

    @property
    def adapters(self) -> dict | None:
        """The table `lora` with what it leaves out; None where the weights themselves learn."""
        return None if self.lora is None else {**DEFAULT_LORA, **self.lora}


@dataclass(frozen=True)
class SftConfig(PostConfig):
    """Keys of supervised training by trl, beside those of PostConfig: all answers of a row are learned."""


@dataclass(frozen=True)
class DpoConfig(PostConfig):
    """Keys of training on preferences by trl, beside those of PostConfig: a row's answer is learned over `rejected`."""

    beta: float = key(BETA, "weight of the distance to the model that the run started from; more than 0", least=0)
    lr: float = key(1e-6, "peak learning rate", least=0)

    def __post_init__(self):
        super().__post_init__()
        self.check_no_dropout()
        if self.beta == 0:
            raise ConfigError("beta is 0.0; expected more than 0: without the reference model a preference has no loss")


@dataclass(frozen=True)
class GrpoConfig(PostConfig):
    """Keys of training on rewards by trl, beside those of PostConfig: the model's own answers are scored in groups.

    Source: docs/mathematics.md, 8.2.
    """

    rewards: dict = key(
        {"exact": 1.0},
        f"weight of each reward, by name ({', '.join(NAMES)}); with 0 it is measured alone",
    )
    format: str | None = key(None, "for reward format: a regular expression that a whole answer has to match")
    generations: int = key(8, "answers to each question of a step, compared with each other", least=2)
    temperature: float = key(1.0, "of sampling; more than 0", least=0)
    max_new_tokens: int = key(64, "the longest answer in tokens", least=1)
    beta: float = key(
        0.0, "weight of the distance to the model that the run started from; 0: that model is not needed", least=0
    )
    batch_size: int = key(16, "questions of one step; each is answered `generations` times", least=1)
    micro_batch_size: int | None = key(
        None, "answers that one process has on its device at a time; default: all of its share", least=1
    )
    lr: float = key(1e-6, "peak learning rate", least=0)
    eval_every: int | None = key(
        None,
        "steps between validations, for which rows have to be held out; 0: at the end alone; default: 1000. The best "
        "model by reward is kept in OUT/best",
        least=0,
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_no_dropout()
        check_keys("rewards", self.rewards, NAMES)
        for name, weight in self.rewards.items():
            if typed(f"rewards.{name}", weight, float) < 0:
                raise ConfigError(f"rewards.{name} is {weight}; expected at least 0")
        if not any(self.rewards.values()):
            raise ConfigError("rewards has no weight above 0; expected one at least, which the model learns from")
        if self.temperature == 0:
            raise ConfigError("temperature is 0.0; expected more than 0: answers that are all the same teach nothing")
        if ("format" in self.rewards) != (self.format is not None):
            given = "given without" if self.format is not None else "not given, but"
            raise ConfigError(f"format is {given} rewards.format; expected both or neither")
        if self.format is not None:
            try:
                re.compile(self.format)
            except (re.error, RecursionError, OverflowError) as error:
                raise ConfigError(f"format is {self.format!r}, which is no regular expression ({error})") from None

    def rows(self, processes: int) -> tuple[int, int]:
        """Answers on a device at a time, and how many such micro-batches make a step of one process.

        Raises ConfigError where the answers of a step cannot be cut evenly.
        """
        answers = self.batch_size * self.generations
        micro = self.micro_batch_size or max(1, answers // processes)
        if answers % (micro * processes):
            raise ConfigError(
                f"micro_batch_size is {micro} on {processes} process{'es' if processes > 1 else ''}; expected that "
                f"together they divide {answers}, the answers of a step (batch_size {self.batch_size} times "
                f"generations {self.generations})"
            )
        return micro, answers // (micro * processes)


POST = {"sft": SftConfig, "dpo": DpoConfig, "grpo": GrpoConfig}
