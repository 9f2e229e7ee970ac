"""Train a model that reads screens, in a time that is given, and examine it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from rich.console import Console

from ...evaluate.screens.fonts import extra_fonts
from ...evaluate.screens.known import familiar
from ...evaluate.screens.report import evaluate_model, print_report
from ...files.writing import write_text
from ..errors import ConfigError
from ..loop import LoopOptions, run, skipped_words
from ..outputs import keep_config
from ..progress import Shown
from ..results import RESULTS, write_results
from ..session import close, new_accelerator
from .batches import Drawing
from .config import ScreensConfig
from .job import Amounts, Course, ScreensJob
from .models import PATCH, new_model, new_processor, take_tower
from .tokenizer import make_tokenizer

STEPS = "steps.json"
TIMED = 3
# Rows, columns and columns of a product that is timed: about that of a block's MLP for a few screens.
PRODUCT = 4096, 128, 256


def train_screens(config: ScreensConfig, folder: Path, resume: bool, note: Callable[[str], None]) -> None:
    """`firebolt train screens`: a model in `folder`, its results in results.json; what it prints goes to stderr."""
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_config(config, folder, resume, note)
    steps = _steps(config, folder, resume, note)
    job = new_job(config, steps)
    note(f"{sum(p.numel() for p in job.model.parameters()):,} parameters, {steps} steps")
    accelerator = new_accelerator(config.trackers, folder, cpu=True)
    accelerator.init_trackers("firebolt", config={})
    options = LoopOptions(folder, config.save_every, config.keep, resume=resume, max_bad_steps=config.max_bad_steps)
    with Shown(folder.name, config.log_every) as shown, products_in(job.bfloat16):
        skipped = run(job, accelerator, options, shown)
    close(accelerator)
    familiar().write(folder)
    if skipped:
        note(skipped_words(skipped, steps))
    results = {"training_seed": config.seed, "steps": steps, "skipped_steps": skipped}
    if config.test_scenes:
        scenes = max(config.test_scenes, len(config.kinds))
        results |= evaluate_model(job.model.eval(), job.processor, scenes, config.seed, kinds=config.kinds)
        print_report(results, Console(stderr=True))
    write_results(results, folder / RESULTS)


def new_job(config: ScreensConfig, steps: int) -> ScreensJob:
    """Make the job of a configuration, of so many steps. Raises ConfigError for a folder without fonts."""
    tokenizer = make_tokenizer()
    try:
        fonts = extra_fonts(config.fonts) if config.fonts else ()
    except ValueError as error:
        raise ConfigError(f"fonts: {error}") from None
    model = new_model(tokenizer, config.side, config.seed, config.connector, config.grids, config.cmm)
    if config.tower:
        try:
            take_tower(model, config.tower)
        except ValueError as error:
            raise ConfigError(f"tower: {str(error).strip().splitlines()[0]}") from None
    drawing = Drawing(tokenizer, config.side, PATCH, config.questions, config.seed, fonts)
    amounts = Amounts(config.screens, config.pool, config.grounding_loss)
    chances = dict.fromkeys(config.kinds, 1.0)
    bfloat16 = bfloat16_is_faster() if config.bfloat16 is None else config.bfloat16
    processor = new_processor(tokenizer, config.side)
    return ScreensJob(model, processor, drawing, chances, steps, amounts, course_of(config), bfloat16)


def course_of(config: ScreensConfig) -> Course:
    """Return the course of a configuration: of a tower that has learned the part without reading alone."""
    course = Course()
    if config.tower is None:
        return course
    lines, all_grids = ((share - course.reading) / (1 - course.reading) for share in (course.lines, course.all_grids))
    return Course(0.0, lines, all_grids)


@cache
def bfloat16_is_faster() -> bool:
    """Tell whether this machine takes products of matrices in bfloat16 in less time than in float32, by taking some."""
    rows, inner, columns = PRODUCT
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    half, single = (min(_times(lambda x=x, y=y: x @ y)) for x, y in ((a.bfloat16(), b.bfloat16()), (a, b)))
    return half < single


@contextmanager
def products_in(bfloat16: bool) -> Iterator[None]:
    """Let products of float32 matrices be taken in bfloat16, summed in float32, within the context; or as they were."""
    before = torch.get_float32_matmul_precision()
    if bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _steps(config: ScreensConfig, folder: Path, resume: bool, note: Callable[[str], None]) -> int:
    """The number of steps: that of the configuration, of the run that goes on, or as many as the time allows."""
    if config.max_steps is not None:
        return config.max_steps
    file = folder / STEPS
    if resume and file.is_file():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["minutes"] == config.minutes and isinstance(known["steps"], int) and known["steps"] > 0:
                return known["steps"]
        except (ValueError, TypeError, KeyError):
            note(f"{file} is not what a run writes; its steps are timed again")
    steps = steps_within(config)
    write_text(file, json.dumps({"minutes": config.minutes, "steps": steps}) + "\n")
    return steps


def steps_within(config: ScreensConfig) -> int:
    """Return how many steps `config.minutes` allow, by timing a few of each part of the course.

    A step whose screens are seen for the first time takes longer than another.
    """
    course, job = course_of(config), new_job(config, 100)
    job.prepare(new_accelerator([], Path(), cpu=True))
    job.start(0)
    first = job.reading
    with products_in(job.bfloat16):
        reading = _seconds(lambda: job.step(0)) if first else 0.0
        new = _seconds(lambda: (job.kept.clear(), job.step(first + 50)))
        known = min(new, _seconds(lambda: job.step(first + 50)))
    seconds, pool = 60 * config.minutes, config.pool / config.screens
    all_new = seconds / (course.reading * reading + (1 - course.reading) * new)
    if (1 - course.reading) * all_new <= pool:
        return max(1, round(all_new))
    a_step = course.reading * reading + (1 - course.reading) * known
    return max(1, round((seconds - pool * (new - known)) / a_step))


def _seconds(run: Callable[[], object]) -> float:
    """The time of a step, the shortest of a few: the first ones also make what the others use."""
    return min(_times(run))


def _times(run: Callable[[], object]) -> list[float]:
    """The times of a few runs, in seconds."""
    taken = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return taken
