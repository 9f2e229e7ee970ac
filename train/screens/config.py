"""Configuration of the training of the model that reads."""

from dataclasses import dataclass, fields

from ...evaluate.screens.layouts import SCREENS
from ...evaluate.screens.sampling import LEAST_SIDE, SIDE
from ...model.firebolt.configuration_firebolt import CONNECTORS, GRIDS, connector_config_class
from ..errors import ConfigError
from ..keys import check_keys, check_values, key
from ..run_config import MOST_SEED
from .models import PATCH


@dataclass(frozen=True)
class ScreensConfig:
    """Keys of the recipe of a model that reads screens: its tower learns to read patches, then the rest to answer."""

    minutes: float = key(
        90.0,
        "time for the training, from which the number of steps is found: a few are timed before the first one",
        least=0.1,
        excludes={"max_steps": "expected one of the two"},
    )
    max_steps: int | None = key(None, "steps in the place of a time", least=1)
    kinds: list[str] = key(list(SCREENS), "kinds of screens to learn", choices=SCREENS)
    side: int = key(SIDE, f"side of the screens in pixels, a multiple of {2 * PATCH}", least=LEAST_SIDE)
    screens: int = key(
        16, "screens of a step; while the tower learns, as many pages of letters and half as many screens", least=1
    )
    pool: int = key(
        8192,
        "screens that are asked about, again and again; what the tower makes of one is kept, 160 kB with grids patches",
        least=1,
    )
    questions: int = key(3, "questions about each", least=1)
    tower: str | None = key(
        None,
        "a checkpoint of this recipe whose tower is taken, and learns no more; default: a new one that learns to read",
    )
    fonts: str | None = key(None, "a folder of more fonts to train on; families that are held out are left out of it")
    grounding_loss: float = key(0.5, "weight of the grounding loss, of connector cmm with grids patches", least=0)
    connector: str = key("cmm", "what joins images and text", choices=CONNECTORS)
    grids: str = key("patches", "what the connector sees of an image", choices=GRIDS)
    cmm: dict = key({}, "keys of CMMConfig, with connector routed of RoutedConfig")
    test_scenes: int = key(160, "scenes of the exam at the end, of each split; 0: no exam", least=0)
    threads: int | None = key(None, "of PyTorch; default: as many as there are cores", least=1)
    bfloat16: bool | None = key(None, "multiply matrices in bfloat16; default: where that is faster, which is measured")
    max_bad_steps: int = key(
        10, "a step whose loss or gradient is not finite is skipped; after more than so many in a row it stops", least=0
    )

    seed: int = key(0, "of weights, screens and questions", least=0, most=MOST_SEED)
    out: str | None = key(None, "the folder of everything that the run writes; default: out/train")
    save_every: int = key(200, "steps between checkpoints; 0: at the end alone", least=0)
    keep: int = key(2, "how many of the last checkpoints are kept", least=1)
    log_every: int = key(10, "steps between lines, where there is no terminal for a bar", least=1)
    trackers: list[str] = key([], 'what accelerate logs to; "tensorboard" writes OUT/logs')

    def __post_init__(self):
        check_values(self)
        if self.side % (2 * PATCH):
            raise ConfigError(f"side is {self.side}; expected a multiple of {2 * PATCH}")
        if not self.kinds:
            raise ConfigError(f"kinds is empty; expected some of {', '.join(SCREENS)}")
        check_keys("cmm", self.cmm, [one.name for one in fields(connector_config_class(self.connector))])
