"""Train the model that ships inside the package: one vision tower, then one seed or several of all else."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ...evaluate.tiny import print_report
from ..config import TinyConfig
from ..errors import ConfigError
from ..loop import skipped_words
from ..outputs import keep_config
from ..progress import Shown
from ..results import RESULTS, write_results
from ..session import use_some_cores
from .seed import Sizes, loop_of, train_seed
from .seeds import train_seeds
from .stage import STAGE, make_stage


def train_tiny(config: TinyConfig, folder: Path, resume: bool, note: Callable[[str], None]) -> None:
    """`firebolt train tiny`: a model in `folder`, its results in results.json; what it prints goes to stderr."""
    work = Path(config.tower) if config.tower else folder / "tower"
    if config.tower and not (work / STAGE).is_file():
        old = " (stage.pt is a pickle of an earlier version, and is not read)" if (work / "stage.pt").exists() else ""
        raise ConfigError(f"tower is {work}, which has no {STAGE}{old}; name the folder `tower` of another run")
    use_some_cores()
    keep_config(config, folder, resume, note)
    sizes = Sizes.of(config)
    if not (work / STAGE).is_file():
        note(f"drawing {sizes.scenes} scenes, then {sizes.tower_steps} steps of the vision tower")
        with Shown("vision tower", config.log_every) as shown:
            make_stage(work, sizes.scenes, loop_of(config, work, resume), sizes.tower_steps, shown)
    if config.seeds > 1:
        train_seeds(config, folder, work, resume)
        return
    with Shown(f"seed {config.seed}", config.log_every) as shown:
        results = train_seed(config, config.seed, work, loop_of(config, folder, resume), shown)
    write_results(results, folder / RESULTS)
    if results["skipped_steps"]:
        note(skipped_words(results["skipped_steps"], sizes.fusion_steps))
    if sizes.test_scenes:
        print_report(results, Console(stderr=True))
