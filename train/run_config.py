"""Configuration of a run on rows of data files: the keys that every recipe of one has."""

from dataclasses import dataclass

from .errors import ConfigError
from .keys import check_bounds, check_keys, check_values, key, typed

PARTS = ("vision", "connector", "decoder")
PRECISIONS = ("float32", "bf16")
LORA = {"rank": int, "alpha": float, "dropout": float, "targets": list[str]}
EPOCHS = 5
EVAL_EVERY = 1000
MOST_SEED = 2**32 - 1
ONE_OF_TWO = "expected one of the two"


@dataclass(frozen=True)
class RunConfig:
    """Keys of data, steps, optimiser and files of a run."""

    train: list[str] = key(["connector"], "the parts of the model that learn", choices=PARTS)

    data: list[str] = key([], "data files, read one after another; at least one")
    validation: list[str] = key(
        [], "data files of rows held out for validation", excludes={"validation_share": ONE_OF_TWO}
    )
    validation_share: float = key(0.0, "the share of the rows of data that is held out for validation", least=0, most=1)
    image_root: str | None = key(None, "the folder where paths of images start; default: the folder of each data file")
    max_length: int = key(2048, "the longest row in tokens; longer ones are bad rows", least=1)
    max_bad_share: float = key(
        0.01, "the share of rows that may be bad; they are reported and skipped", least=0, most=1
    )
    workers: int = key(2, "processes that read images; 0: the training process itself", least=0)

    batch_size: int = key(128, "rows of one step, over all processes and accumulated micro-batches", least=1)
    micro_batch_size: int | None = key(
        None, "rows that one process has on its device at a time; default: all of its share", least=1
    )
    epochs: int | None = key(
        None,
        f"how often every row comes; default: {EPOCHS}, where max_steps is not given",
        least=1,
        excludes={"max_steps": ONE_OF_TWO},
    )
    max_steps: int | None = key(None, "the number of steps", least=1)
    lr: float = key(5e-4, "peak learning rate", least=0)
    min_lr: float = key(1e-6, "where the cosine ends that follows warm-up", least=0)
    warmup_steps: int = key(100, "steps over which the learning rate rises linearly to its peak", least=0)
    betas: list[float] = key([0.9, 0.95], "AdamW's two decay rates, from 0 to below 1")
    weight_decay: float = key(0.01, "AdamW's weight decay; none on norms, biases and other vectors", least=0)
    clip: float = key(1.0, "the largest norm of the gradient; 0: any", least=0)
    max_bad_steps: int = key(
        10, "a step whose loss or gradient is not finite is skipped; after more than so many in a row it stops", least=0
    )
    precision: str = key("bf16", "of the forward and backward computation; weights are float32", choices=PRECISIONS)
    gradient_checkpointing: bool = key(False, "compute activations again in the backward pass, for less memory")

    seed: int = key(0, "of new weights, dropout and the order of rows", least=0, most=MOST_SEED)
    out: str | None = key(None, "the folder of everything that the run writes; default: out/train")
    eval_every: int | None = key(
        None,
        f"steps between validations, for which rows have to be held out; 0: at the end alone; default: {EVAL_EVERY}. "
        "The best model by perplexity is kept in OUT/best",
        least=0,
    )
    save_every: int = key(1000, "steps between checkpoints; 0: at the end alone", least=0)
    keep: int = key(2, "how many of the last checkpoints are kept", least=1)
    log_every: int = key(10, "steps between lines, where there is no terminal for a bar", least=1)
    trackers: list[str] = key(["tensorboard"], 'what accelerate logs to; "tensorboard" writes OUT/logs')

    def __post_init__(self):
        check_values(self)
        if not self.train:
            raise ConfigError(f"train is empty; expected some of {', '.join(PARTS)}")
        if not self.data:
            raise ConfigError("data is empty; expected data files (`firebolt data check` looks through them)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; expected two numbers from 0 to below 1")
        if self.eval_every and not self.validation and not self.validation_share:
            raise ConfigError(
                f"eval_every is {self.eval_every}, but no row is held out to validate on; give validation or "
                "validation_share, or eval_every=0"
            )

    def accumulation(self, processes: int) -> int:
        """Micro-batches of one step in one process. Raises ConfigError where the batch cannot be cut evenly."""
        micro = self.micro_batch_size or max(1, self.batch_size // processes)
        if self.batch_size % (micro * processes):
            raise ConfigError(
                f"batch_size is {self.batch_size}; expected a multiple of {micro * processes}, for micro-batches of "
                f"{micro} rows on {processes} process{'es' if processes > 1 else ''}"
            )
        return self.batch_size // (micro * processes)


def check_lora(lora: dict) -> None:
    check_keys("lora", lora, list(LORA))
    for name, value in lora.items():
        typed(f"lora.{name}", value, LORA[name])
    if "rank" in lora:
        check_bounds("lora.rank", lora["rank"], 1)
    if lora.get("alpha", 1) <= 0:
        raise ConfigError(f"lora.alpha is {lora['alpha']}; expected more than 0")
    if not 0 <= lora.get("dropout", 0) < 1:
        raise ConfigError(f"lora.dropout is {lora['dropout']}; expected a share from 0 to below 1")
    if lora.get("targets") == []:
        raise ConfigError("lora.targets is empty; expected names of layers, or leave the key out")
