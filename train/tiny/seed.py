"""The second stage: one seed of connector and decoder, trained and examined."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...evaluate.tiny import evaluate_model
from ..config import TinyConfig
from ..loop import LoopOptions, Told, run
from ..session import close, new_accelerator
from .fusion import FusionJob, Views
from .models import new_model
from .stage import load_stage

LEAST_SCENES, LEAST_TEST_SCENES = 500, 20


@dataclass(frozen=True)
class Sizes:
    """Amounts of everything: scenes to learn from, steps of the tower, steps of all else, scenes of the exam."""

    scenes: int = 40_000
    tower_steps: int = 2500
    fusion_steps: int = 2800
    test_scenes: int = 800

    @classmethod
    def of(cls, config: TinyConfig) -> "Sizes":
        """Fill in what is not given in proportion to the steps, as in the full recipe, with at least a little of it."""

        def share(whole: int, least: int) -> int:
            return min(whole, max(least, round(whole * config.max_steps / cls.fusion_steps)))

        return cls(
            config.scenes or share(cls.scenes, LEAST_SCENES),
            config.tower_steps or share(cls.tower_steps, 1),
            config.max_steps,
            share(cls.test_scenes, LEAST_TEST_SCENES) if config.test_scenes is None else config.test_scenes,
        )


def train_seed(config: TinyConfig, seed: int, work: Path, loop: LoopOptions, report: Callable[[Told], None]) -> dict:
    """Train a seed from the stage in `work`, save it in `loop.out`, and return its results."""
    stage, sizes = load_stage(work), Sizes.of(config)
    model = new_model(stage.processor.tokenizer, stage.tower, seed)
    begun = time.process_time()
    views, weight = Views.of_quarters(stage.grids), config.grounding_loss
    job = FusionJob(model, stage.processor, views, stage.questions, stage.captions, sizes.fusion_steps, weight)
    accelerator = new_accelerator(config.trackers, loop.out, cpu=True)
    accelerator.init_trackers("firebolt", config={})
    skipped = run(job, accelerator, loop, report)
    close(accelerator)
    trained = {"training_seed": seed, "grounding_loss_weight": weight, "skipped_steps": skipped}
    trained["cpu_seconds"] = round(time.process_time() - begun)
    if sizes.test_scenes:
        trained |= evaluate_model(job.model.eval(), job.processor, sizes.test_scenes, seed=0, split=config.split)
    return trained


def loop_of(config: TinyConfig, folder: Path, resume: bool) -> LoopOptions:
    return LoopOptions(folder, config.save_every, config.keep, resume=resume, max_bad_steps=config.max_bad_steps)
