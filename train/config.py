"""What a training run is told: a file of keys, checked against one dataclass for each recipe."""

import contextlib
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..cmm import CMMConfig
from ..evaluate.reading import read_text
from ..model.firebolt.configuration_firebolt import CONNECTORS, FUSIONS

SHIPPED = Path(__file__).parent / "configs"
PARTS = ("vision", "connector", "decoder")
PRECISIONS = ("float32", "bf16")
LOSSES = ("text", "answers", "preferences")
LOOKS = ("coarse_only", "coarse_fine", "autoregressive")
QUERY = ("query_dim", "visual_scale", "deep_query", "lambda_coarse")
LORA = {"rank": int, "alpha": float, "dropout": float, "targets": list[str]}
# Of each pair one alone says something: given after a file, as key=value, it takes the place of the other there.
EITHER = (("epochs", "max_steps"), ("validation", "validation_share"))
EPOCHS = 5
MOST = 2**31 - 1
MOST_SEED = 2**32 - 1


class ConfigError(ValueError):
    """A key or value that cannot be; the message names it."""


@dataclass(frozen=True)
class RowsConfig:
    """What every training on rows of data files is told.

    model              a checkpoint to go on from: a folder or a hub id; or, for a new one:
    decoder, vision    trained backbones, folders or hub ids, between which a new connector is put; or
    architecture       text_config and vision_config of backbones with random weights
    tokenizer          default: that of `model` or `decoder`
    train              the parts that learn, of "vision", "connector" and "decoder"

    data, validation   data files (train/data); without validation files `validation_share` of the rows is kept for it
    image_root         where paths of images start; default: the folder of each file
    max_length         the longest row in tokens
    max_bad_share      the share of rows that may be bad; they are reported and skipped
    workers            processes that read images

    batch_size         rows of one step, over all processes and accumulated micro-batches
    micro_batch_size   rows that one process has on its device at a time; None: all of its share
    epochs, max_steps  how long: one of the two; default: 5 epochs
    lr                 peak learning rate
    min_lr             where the cosine ends, after warmup_steps of linear rise
    weight_decay       none on norms, biases and other vectors
    clip               the largest norm of the gradient; 0: any
    max_bad_steps      a step whose loss or gradient is infinite or NaN is skipped; more than so many in a row: it stops

    eval_every         steps between validations, 0: at the end alone; the best by perplexity is kept in OUT/best
    save_every         steps between checkpoints, 0: at the end alone; the last `keep` of them are kept
    trackers           what accelerate logs to; "tensorboard" writes OUT/logs
    """

    model: str | None = None
    decoder: str | None = None
    vision: str | None = None
    architecture: dict | None = None
    tokenizer: str | None = None
    train: list[str] = field(default_factory=lambda: ["connector"])

    data: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    validation_share: float = 0.0
    image_root: str | None = None
    max_length: int = 2048
    max_bad_share: float = 0.01
    workers: int = 2

    batch_size: int = 128
    micro_batch_size: int | None = None
    epochs: int | None = None
    max_steps: int | None = None
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_steps: int = 100
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.01
    clip: float = 1.0
    max_bad_steps: int = 10
    precision: str = "bf16"
    gradient_checkpointing: bool = False

    seed: int = 0
    out: str | None = None
    eval_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    log_every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self):
        check_types(self)
        starts = [name for name in ("model", "decoder", "architecture") if getattr(self, name) is not None]
        if len(starts) != 1:
            raise ConfigError(
                f"{' and '.join(starts) or 'nothing'} came to start from; one of model, decoder (with vision) and "
                "architecture is wanted"
            )
        if (self.decoder is None) != (self.vision is None):
            raise ConfigError("decoder, vision: a new model is put between both; name both")
        if self.architecture is not None and set(self.architecture) != {"text_config", "vision_config"}:
            raise ConfigError("architecture: text_config and vision_config are wanted, and nothing else")
        if self.architecture is not None and self.tokenizer is None:
            raise ConfigError("tokenizer: random weights (architecture) come with none; name a folder or a hub id")
        if self.tokenizer is not None and self.model is not None:
            raise ConfigError("tokenizer: a checkpoint (model) has its own")
        if not self.train:
            raise ConfigError(f"train: no part came, some of {', '.join(PARTS)} are wanted")
        for part in self.train:
            check_choice("train", part, PARTS)
        if not self.data:
            raise ConfigError("data: no file came; name the data files (`firebolt data check` looks through them)")
        for one, other in EITHER:
            if getattr(self, one) and getattr(self, other):
                raise ConfigError(f"{one}, {other}: both came; one of the two is wanted")
        check_choice("precision", self.precision, PRECISIONS)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: {self.betas} came, two numbers from 0 to below 1 are wanted")
        for name in ("batch_size", "epochs", "keep", "log_every", "max_length", "max_steps", "micro_batch_size"):
            check_least(name, getattr(self, name), 1)
        for name in ("eval_every", "save_every", "warmup_steps", "workers", "max_bad_steps"):
            check_least(name, getattr(self, name), 0)
        for name in ("lr", "min_lr", "weight_decay", "clip"):
            check_least(name, getattr(self, name), 0)
        for name in ("validation_share", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} came, a share in 0..1 is wanted")
        check_seed(self.seed)

    def accumulation(self, processes: int) -> int:
        """Micro-batches of one step in one process. Raises ConfigError where the batch cannot be cut evenly."""
        micro = self.micro_batch_size or max(1, self.batch_size // processes)
        if self.batch_size % (micro * processes):
            raise ConfigError(
                f"batch_size: {self.batch_size} rows cannot be cut into micro-batches of {micro} on {processes} "
                f"process{'es' if processes > 1 else ''}; a multiple of {micro * processes} is wanted"
            )
        return self.batch_size // (micro * processes)


@dataclass(frozen=True)
class TrainConfig(RowsConfig):
    """Training on conversations: which model, which of its parts, on what, and how; beside the keys of RowsConfig

    connector, fusion, cmm    of a new model, as in FireboltConfig; default: its own, "cmm" and "replace"
    lora               rank, alpha, dropout, targets: adapters on the decoder in the place of its weights (peft)
    ssm_lr             peak learning rate for the SSM's own parameters; None: lr. They have no weight decay.
    """

    connector: str | None = None
    fusion: str | None = None
    cmm: dict | None = None
    lora: dict | None = None
    packing: bool = False
    ssm_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("connector", "fusion", "cmm"):
            if getattr(self, name) is not None and self.model is not None:
                raise ConfigError(f"{name}: it is that of the checkpoint (model); only a new model is told")
        check_choice("connector", self.connector, (None, *CONNECTORS))
        check_choice("fusion", self.fusion, (None, *FUSIONS))
        if self.fusion not in (None, "replace") and self.connector not in (None, "cmm"):
            raise ConfigError(f"fusion: {self.fusion!r} goes with connector 'cmm' alone, {self.connector!r} came")
        check_keys("cmm", self.cmm or {}, [one.name for one in fields(CMMConfig)])
        if self.lora is not None and "decoder" in self.train:
            raise ConfigError("lora, train: adapters stand in the place of the decoder's weights; take one of the two")
        check_lora(self.lora or {})
        check_least("ssm_lr", self.ssm_lr, 0)
        if self.ssm_lr is not None and "connector" not in self.train:
            raise ConfigError("ssm_lr: the state-space model is part of the connector, which does not learn (train)")


@dataclass(frozen=True)
class FoveatedConfig(RowsConfig):
    """A stage in the training of the foveated model; beside the keys of RowsConfig

    loss               "text": all text; "answers": the answers alone; "preferences": answers over rejected ones (DPO)
    beta               of "preferences": how dear it is to leave the model that the stage began with; default: 0.1
    mode               where to look: "coarse_fine", "coarse_only" or "autoregressive"
    frames             how many frames of a video, spread over it; None: one a second, at most 64
    query              of a new model: query_dim, visual_scale, deep_query, lambda_coarse, as in FoveatedVLMConfig
    vision_lr, decoder_lr    peak learning rates of these parts; None: lr
    min_lr             where all parts' cosines end, also that of a part whose peak is lower
    """

    train: list[str] = field(default_factory=lambda: list(PARTS))
    loss: str = "answers"
    beta: float | None = None
    mode: str = "coarse_fine"
    frames: int | None = None
    query: dict = field(default_factory=dict)
    vision_lr: float | None = None
    decoder_lr: float | None = None
    lr: float = 3e-5
    min_lr: float = 0.0
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        check_choice("loss", self.loss, LOSSES)
        check_choice("mode", self.mode, LOOKS)
        if self.loss == "preferences" and self.mode != "coarse_fine":
            raise ConfigError(f"mode: {self.mode!r} came; preferences are learned in 'coarse_fine'")
        if self.mode == "autoregressive" and self.gradient_checkpointing:
            raise ConfigError("gradient_checkpointing: it switches off the cache that mode 'autoregressive' lives on")
        check_least("frames", self.frames, 1)
        for name in ("beta", "vision_lr", "decoder_lr"):
            check_least(name, getattr(self, name), 0)
        if self.beta is not None and self.loss != "preferences":
            raise ConfigError(f"beta: only preferences have one, loss {self.loss!r} came")
        for part in ("vision", "decoder"):
            if getattr(self, f"{part}_lr") is not None and part not in self.train:
                raise ConfigError(f"{part}_lr: {part} does not learn (train)")
        check_keys("query", self.query, QUERY)
        if self.query and self.model is not None:
            raise ConfigError("query: it is that of the checkpoint (model); only a new model is told")


@dataclass(frozen=True)
class TinyConfig:
    """The model that ships inside the package (train/tiny): a vision tower first, then all else on its grids.

    max_steps          steps of the second stage
    tower_steps        steps of the vision tower; None: in proportion to max_steps, as the full recipe has them (2500)
    scenes             scenes to learn from; None: likewise (40,000), but some hundreds at least
    grounding_loss     the weight of the grounding loss
    tower              a folder that holds a tower and its scenes already (OUT/tower of another run)
    test_scenes        scenes of the exam at the end, of `split`; None: likewise (800); 0: no exam
    max_bad_steps      as for other trainings
    """

    max_steps: int = 2800
    tower_steps: int | None = None
    scenes: int | None = None
    grounding_loss: float = 1.0
    tower: str | None = None
    test_scenes: int | None = None
    split: str = "held-out"
    max_bad_steps: int = 10

    seed: int = 0
    out: str | None = None
    save_every: int = 200
    keep: int = 2
    log_every: int = 10
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self):
        check_types(self)
        for name in ("max_steps", "tower_steps", "scenes", "keep", "log_every"):
            check_least(name, getattr(self, name), 1)
        for name in ("save_every", "grounding_loss", "test_scenes", "max_bad_steps"):
            check_least(name, getattr(self, name), 0)
        check_seed(self.seed)
        for name in ("tower_steps", "scenes"):
            if self.tower is not None and getattr(self, name) is not None:
                raise ConfigError(f"{name}: the folder {self.tower} (tower) has its scenes and its tower already")
        check_choice("split", self.split, ("held-out", "validation", "train"))
        if self.test_scenes and self.test_scenes < 4:
            raise ConfigError(f"test_scenes: {self.test_scenes} came, 0 or at least 4 (one of each layout) is wanted")


RECIPES = {"conversations": TrainConfig, "foveated": FoveatedConfig, "tiny": TinyConfig}
Config = TrainConfig | FoveatedConfig | TinyConfig


def check_types(config: "Config") -> None:
    """Raises ConfigError for a value of another type; whole numbers become numbers, a text a list of one."""
    for one in fields(config):
        object.__setattr__(config, one.name, _typed(one.name, getattr(config, one.name), one.type))


def check_least(name: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name}: {value} came, at least {least} is wanted")


def check_seed(seed: int) -> None:
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"seed: {seed} came, a whole number in 0..{MOST_SEED} is wanted")


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        known = [choice for choice in choices if choice is not None]
        raise ConfigError(f"{name}: {value!r} came, one of {', '.join(known)} is wanted{_meant(value, known)}")


def check_keys(name: str, table: dict, known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{name}: unknown {key}; known are {', '.join(known)}{_meant(key, known)}")


def check_lora(lora: dict) -> None:
    check_keys("lora", lora, list(LORA))
    for key, value in lora.items():
        _typed(f"lora.{key}", value, LORA[key])
    check_least("lora.rank", lora.get("rank"), 1)
    if lora.get("alpha", 1) <= 0:
        raise ConfigError(f"lora.alpha: {lora['alpha']} came, more than 0 is wanted")
    if not 0 <= lora.get("dropout", 0) < 1:
        raise ConfigError(f"lora.dropout: {lora['dropout']} came, a share from 0 to below 1 is wanted")
    if lora.get("targets") == []:
        raise ConfigError("lora.targets: no layer came")


def _meant(came: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(came), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def shipped() -> list[str]:
    """The names of the configurations in the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a TOML or YAML file, or of a shipped name, with `key=value` after it laid over.

    A value is read as TOML where it can be (`max_steps=10`, `train=["connector"]`, `lora.rank=8`), else as text.
    Raises ConfigError.
    """
    values = _read(name)
    told = {override.partition("=")[0] for override in overrides}
    for one, other in (*EITHER, *(pair[::-1] for pair in EITHER)):
        if one in told and other not in told:
            values.pop(other, None)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"{override}: key=value is wanted")
        place, *rest = key.split(".")
        inner = values
        for part in rest:
            if not isinstance(inner.setdefault(place, {}), dict):
                raise ConfigError(f"{override}: {place} is no table of keys")
            inner, place = inner[place], part
        inner[place] = _value(text)
    recipe = values.pop("recipe", "conversations")
    check_choice("recipe", recipe, tuple(RECIPES))
    return checked(RECIPES[recipe], values)


def _read(name: str) -> dict:
    file = Path(name)
    if not file.suffix:
        file = SHIPPED / f"{name}.toml"
        if not file.is_file():
            raise ConfigError(
                f"{name}: no such configuration ships; choose from {', '.join(shipped())}, or name a file"
                + _meant(name, shipped())
            )
    if file.exists() and not file.is_file():
        raise ConfigError(f"{name} is not a file; name a TOML or YAML file")
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if file.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{name} is no TOML: {error}") from None
        except RecursionError:
            raise ConfigError(f"{name} is nested too deeply; a few keys are wanted") from None
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{name}: a file that ends in .toml, .yaml or .yml is wanted")
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply; a few keys are wanted") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: keys and values are wanted")
    return values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text in ("null", "None") else text
    except RecursionError:
        raise ConfigError(f"{text[:20]}...: it is nested too deeply") from None


def checked(recipe: type[Config], values: dict) -> Config:
    """The dataclass of these values. Raises ConfigError for an unknown key or a value of another type."""
    known = {one.name: one for one in fields(recipe)}
    for key in values:
        if key not in known:
            meant = _meant(key, list(known)) or f"; known are {', '.join(known)}"
            raise ConfigError(f"{key}: there is no such key{meant}")
    return recipe(**values)


def _typed(key: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        items = [value] if isinstance(value, str) and inner is str else value
        if not isinstance(items, list):
            raise ConfigError(f"{key}: {value!r} came, a list is wanted")
        return [_typed(key, item, inner) for item in items]
    if isinstance(value, str) and kind is float:
        # YAML takes 1e-4 for text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {
            int: "a whole number",
            float: "a number",
            str: "a text",
            bool: "true or false",
            dict: "a table of keys",
        }
        raise ConfigError(f"{key}: {_shown(value)} came, {words[kind]} is wanted")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key}: {value} came, a finite number is wanted")
    if kind is int and key != "seed" and value > MOST:
        raise ConfigError(f"{key}: {_shown(value)} came, at most {MOST} is wanted")
    if kind is str and not value:
        raise ConfigError(f"{key}: an empty text came; leave the key out, or give it a value")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def to_json(config: Config) -> str:
    recipe = next(name for name, kind in RECIPES.items() if type(config) is kind)
    return json.dumps({"recipe": recipe, **asdict(config)}, indent=1) + "\n"
