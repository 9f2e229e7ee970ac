"""Configuration of a training run: the keys of each recipe."""

from dataclasses import dataclass, fields

from ..model.firebolt.configuration_firebolt import CONNECTORS, FUSIONS, GRIDS, connector_config_class
from .errors import ConfigError
from .keys import check_keys, check_values, key
from .post.config import POST, PostConfig
from .run_config import MOST_SEED, PARTS, RunConfig, check_lora
from .screens.config import ScreensConfig

LOSSES = ("text", "answers", "preferences")
OPTIMIZERS = ("adamw", "muon")
LOOKS = ("coarse_only", "coarse_fine", "autoregressive")
QUERY = ("query_dim", "visual_scale", "deep_query", "lambda_coarse")
# Of each pair only one can be given: as key=value after a file, it replaces the other there.
EITHER = (("epochs", "max_steps"), ("validation", "validation_share"))

ONE_START = "expected one of model, decoder (with vision) and architecture to start from"
NEW_ALONE = "expected for a new model alone, since a checkpoint has its own"
BOTH_BACKBONES = "expected both backbones of a new model"


@dataclass(frozen=True)
class RowsConfig(RunConfig):
    """Keys of a training from a checkpoint, from trained backbones or from nothing, beside those of RunConfig."""

    model: str | None = key(
        None,
        "a checkpoint to go on from: a folder or a hub id",
        excludes={"decoder": ONE_START, "vision": ONE_START, "architecture": ONE_START},
    )
    decoder: str | None = key(
        None,
        "for a new model, its trained decoder: a folder or a hub id; a new connector is put between it and vision",
        excludes={"architecture": ONE_START},
        needs={"vision": BOTH_BACKBONES},
    )
    vision: str | None = key(
        None,
        "for a new model, its trained vision tower: a folder or a hub id",
        needs={"decoder": BOTH_BACKBONES},
    )
    architecture: dict | None = key(
        None,
        "for a new model with random weights: text_config and vision_config of its backbones",
        needs={"tokenizer": "random weights (architecture) come with none; name a folder or a hub id"},
    )
    tokenizer: str | None = key(
        None,
        "a folder or a hub id; default: that of the decoder",
        excludes={"model": "a checkpoint has its own"},
    )
    optimizer: str = key(
        "adamw",
        "AdamW, or Muon for the matrices of dense layers (steps of AdamW's size, at one rate) and AdamW for the rest",
        choices=OPTIMIZERS,
    )
    frames: int | None = key(None, "frames of a video, spread over it; default: one a second, at most 64", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.model is None and self.decoder is None and self.architecture is None:
            raise ConfigError(f"model is not given; {ONE_START}")
        if self.architecture is not None and set(self.architecture) != {"text_config", "vision_config"}:
            keys = ", ".join(self.architecture) or "no keys"
            raise ConfigError(f"architecture has {keys}; expected text_config and vision_config, and nothing else")


@dataclass(frozen=True)
class TrainConfig(RowsConfig):
    """Keys of a training on conversations, beside those of RowsConfig."""

    connector: str | None = key(
        None,
        "of a new model: what joins images and text; default: cmm",
        choices=CONNECTORS,
        excludes={"model": NEW_ALONE},
    )
    fusion: str | None = key(
        None,
        "of a new model with connector cmm: how its output enters the decoder; default: replace",
        choices=FUSIONS,
        excludes={"model": NEW_ALONE},
    )
    grids: str | None = key(
        None,
        "of a new model: what the connector sees of an image: views, patches or both; default: views",
        choices=GRIDS,
        excludes={"model": NEW_ALONE},
    )
    cmm: dict | None = key(
        None,
        "of a new model: keys of CMMConfig, with connector routed of RoutedConfig",
        excludes={"model": NEW_ALONE},
    )
    lora: dict | None = key(
        None,
        "rank, alpha, dropout, targets: adapters (peft) learn in the place of the decoder's weights",
        excludes={"train=decoder": "adapters stand in the place of the decoder's weights; take one of the two"},
    )
    packing: bool = key(
        False,
        "put the texts of a micro-batch one after the other into one row, so that no position is padding; losses and "
        "gradients are those of rows of their own",
        excludes={
            **dict.fromkeys(("fusion=concat", "fusion=pool"), "it inserts positions into each row"),
            **dict.fromkeys(("connector=prepend", "connector=routed"), "it inserts positions into each row"),
        },
    )
    ssm_lr: float | None = key(
        None,
        "peak learning rate of the state-space model's own parameters, which have no weight decay; default: lr",
        least=0,
        needs={"train=connector": "the state-space model is part of the connector, which does not learn"},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fusion not in (None, "replace") and self.connector not in (None, "cmm"):
            raise ConfigError(f"fusion is {self.fusion!r}; expected with connector 'cmm' alone, not {self.connector!r}")
        check_keys("cmm", self.cmm or {}, [one.name for one in fields(connector_config_class(self.connector))])
        check_lora(self.lora or {})


@dataclass(frozen=True)
class FoveatedConfig(RowsConfig):
    """Keys of a stage in the training of the foveated model, beside those of RowsConfig."""

    train: list[str] = key(list(PARTS), "the parts of the model that learn", choices=PARTS)
    loss: str = key(
        "answers",
        "over all text, over the answers alone, or over answers and rejected ones (direct preference optimisation)",
        choices=LOSSES,
    )
    beta: float | None = key(
        None,
        "weight of the distance to the model that the stage began with; default: 0.1",
        least=0,
        needs={"loss=preferences": "only preferences have one"},
    )
    mode: str = key(
        "coarse_fine",
        "how the model looks at frames",
        choices=LOOKS,
        excludes={"loss=preferences": "preferences are learned in mode 'coarse_fine'"},
    )
    query: dict = key(
        {}, "of a new model: query_dim, visual_scale, deep_query, lambda_coarse", excludes={"model": NEW_ALONE}
    )
    vision_lr: float | None = key(
        None,
        "peak learning rate of the vision tower; default: lr",
        least=0,
        needs={"train=vision": "the vision tower does not learn"},
    )
    decoder_lr: float | None = key(
        None,
        "peak learning rate of the decoder; default: lr",
        least=0,
        needs={"train=decoder": "the decoder does not learn"},
    )
    lr: float = key(3e-5, "peak learning rate", least=0)
    min_lr: float = key(0.0, "where all parts' cosines end, also that of a part whose peak is lower", least=0)
    batch_size: int = key(32, "rows of one step, over all processes and accumulated micro-batches", least=1)
    gradient_checkpointing: bool = key(
        False,
        "compute activations again in the backward pass, for less memory",
        excludes={"mode=autoregressive": "it switches off the cache that mode 'autoregressive' lives on"},
    )

    def __post_init__(self):
        super().__post_init__()
        check_keys("query", self.query, QUERY)


@dataclass(frozen=True)
class TinyConfig:
    """Keys of the recipe of the model inside the package: a vision tower first, then all else on its grids."""

    max_steps: int = key(2800, "steps of the second stage", least=1)
    tower_steps: int | None = key(
        None, "steps of the vision tower; default: in proportion to max_steps, 2500 in the full recipe", least=1
    )
    scenes: int | None = key(
        None, "scenes to learn from; default: in proportion to max_steps, 40,000 in the full recipe", least=1
    )
    grounding_loss: float = key(1.0, "weight of the grounding loss", least=0)
    tower: str | None = key(
        None,
        "a folder that holds a tower and its scenes already: OUT/tower of another run",
        excludes=dict.fromkeys(("tower_steps", "scenes"), "the folder has its scenes and its tower already"),
    )
    test_scenes: int | None = key(
        None,
        "scenes of the exam at the end: 0 (no exam) or at least 4; default: in proportion to max_steps, 800 in the "
        "full recipe",
        least=0,
    )
    seeds: int = key(
        1,
        "how many seeds of the second stage, from seed on, are trained at once in OUT/seed-N; the result is the median "
        "by the exam",
        least=1,
    )
    split: str = key("held-out", "the digits of the exam", choices=("held-out", "validation", "train"))
    max_bad_steps: int = key(
        10, "a step whose loss or gradient is not finite is skipped; after more than so many in a row it stops", least=0
    )

    seed: int = key(0, "of the second stage; all seeds share one tower", least=0, most=MOST_SEED)
    out: str | None = key(None, "the folder of everything that the run writes; default: out/train")
    save_every: int = key(200, "steps between checkpoints; 0: at the end alone", least=0)
    keep: int = key(2, "how many of the last checkpoints are kept", least=1)
    log_every: int = key(10, "steps between lines, where there is no terminal for a bar", least=1)
    trackers: list[str] = key([], 'what accelerate logs to; "tensorboard" writes OUT/logs')

    def __post_init__(self):
        check_values(self)
        if self.test_scenes and self.test_scenes < 4:
            raise ConfigError(f"test_scenes is {self.test_scenes}; expected 0 or at least 4 (one of each layout)")
        if self.seeds > 1 and self.test_scenes == 0:
            raise ConfigError("test_scenes is 0; expected at least 4, since an exam finds the median of several seeds")
        if self.seed + self.seeds - 1 > MOST_SEED:
            raise ConfigError(f"seed is {self.seed}; expected at most {MOST_SEED} for the last of {self.seeds} seeds")


RECIPES = {
    "conversations": TrainConfig,
    "foveated": FoveatedConfig,
    "tiny": TinyConfig,
    "screens": ScreensConfig,
    **POST,
}
Config = TrainConfig | FoveatedConfig | TinyConfig | ScreensConfig | PostConfig
