"""Train the model that ships inside the package: one vision tower, then three seeds of all else; the median ships.

python -m firebolt_vl.train.tiny [--out DIR] [--seeds 0 1 2] [--tower-steps N] [--fusion-steps N] [--resume] ...
firebolt train tiny [seed=N]                              one seed of it, resumable like every run
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

from ...evaluate.digits import SPLITS
from ...evaluate.questions import GROUNDED_KINDS
from ...evaluate.tiny import evaluate_model, print_report
from ...files.writing import write_text, write_whole
from ...model import FireboltConfig, FireboltForConditionalGeneration, FireboltImageProcessor, FireboltProcessor
from ..config import TinyConfig
from ..errors import ConfigError
from ..loop import FOLDERS, HISTORY, PLOT, LoopOptions, Told, run, skipped_words
from ..outputs import alone_in
from ..progress import Shown
from ..start import close, keep_config, new_accelerator
from ..tensors import check_tensors, first_not_finite, read_tensors, write_tensors
from .fusion import FusionJob, Rows, Views, tokenize
from .pool import make_pool
from .tokenizer import make_tokenizer
from .tower import TowerJob, encode

IMAGE_SIDE = 64
VISION = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 128_000,
}
# Without dropout: it is shares of a weight that say which of two quarters a word means.
CMM = {"heads": 4, "head_dim": 32, "top_k": 4, "ssm": "s4", "dropout": 0.0}
PACKAGED = Path(__file__).resolve().parents[2] / "firebolt_vl" / "tiny"
FIRST_SCENES_SEED = 1
# All seeds of the second stage share one tower.
TOWER_SEED = 0
STAGE = "stage.safetensors"
SAVE_EVERY = 200
LEAST_SCENES, LEAST_TEST_SCENES = 500, 20


def new_model(
    tokenizer: PreTrainedTokenizerBase, tower: SiglipVisionModel, seed: int
) -> FireboltForConditionalGeneration:
    """The untrained model of a seed around a trained vision tower."""
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = FireboltConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), **ends}, vision_config=VISION, cmm_config=CMM
    )
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config = GenerationConfig(**ends)
    return model


def new_processor(tokenizer: PreTrainedTokenizerBase) -> FireboltProcessor:
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return FireboltProcessor(FireboltImageProcessor(size=size, tile_size=IMAGE_SIDE // 2, max_tiles=4), tokenizer)


@dataclass(frozen=True)
class Sizes:
    """How much of everything: scenes to learn from, steps of the tower, steps of all else, scenes of the exam."""

    scenes: int = 40_000
    tower_steps: int = 2500
    fusion_steps: int = 2800
    test_scenes: int = 800

    @classmethod
    def of(cls, config: TinyConfig) -> "Sizes":
        """What is not said goes with the steps as in the full recipe, with at least a little of it."""

        def share(whole: int, least: int) -> int:
            return min(whole, max(least, round(whole * config.max_steps / cls.fusion_steps)))

        return cls(
            config.scenes or share(cls.scenes, LEAST_SCENES),
            config.tower_steps or share(cls.tower_steps, 1),
            config.max_steps,
            share(cls.test_scenes, LEAST_TEST_SCENES) if config.test_scenes is None else config.test_scenes,
        )


@dataclass
class Stage:
    """What all seeds of the second stage start from."""

    tower: SiglipVisionModel
    processor: FireboltProcessor
    grids: Tensor
    questions: Rows
    captions: Rows


def load_stage(work: Path) -> Stage:
    """What `make_stage` kept in `work`. Raises ValueError, which names file and tensor, where it is not that."""
    file, tower = work / STAGE, SiglipVisionModel(SiglipVisionConfig(**VISION))
    processor = FireboltProcessor.from_pretrained(work, local_files_only=True, trust_remote_code=False)
    kept = read_tensors(file)
    weights = {f"tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    wanted = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    wanted["grids"] = (torch.float32, ("scenes", 5, VISION["hidden_size"]))
    sizes = check_tensors(file, kept, {**wanted, **Rows.wanted("questions"), **Rows.wanted("captions")})
    if (name := first_not_finite(kept)) is not None:
        raise ValueError(f"{file}: {name} is not finite")
    questions, captions = (Rows.of_tensors(kept, name) for name in ("questions", "captions"))
    questions.check(file, "questions", sizes["scenes"], len(processor.tokenizer))
    captions.check(file, "captions", sizes["scenes"], len(processor.tokenizer))
    tower.load_state_dict({name: kept[f"tower.{name}"] for name in tower.state_dict()})
    return Stage(tower, processor, kept["grids"], questions, captions)


def make_stage(work: Path, scenes: int, loop: LoopOptions, steps: int, report: Callable[[Told], None]) -> None:
    """Draw the scenes, make the tokenizer, train the tower (its run is that of `loop`), and keep it all in `work`."""
    pool = make_pool(scenes, FIRST_SCENES_SEED, IMAGE_SIDE)
    processor = new_processor(make_tokenizer())
    processor.save_pretrained(work)
    job = TowerJob(SiglipVisionConfig(**VISION), pool, steps, TOWER_SEED)
    run(job, new_accelerator([], loop.out, cpu=True), loop, report)
    # The hardest to learn are practised twice as often: counting, and to say what lies in a quarter.
    harder = [asked for asked in pool.questions if asked[1].kind in ("how many", *GROUNDED_KINDS)]
    stage = {
        **{f"tower.{name}": tensor for name, tensor in job.tower.state_dict().items()},
        "grids": encode(job.tower.eval(), pool.pixels),
        **tokenize(processor.tokenizer, pool.questions + harder).tensors("questions"),
        **tokenize(processor.tokenizer, pool.captions).tensors("captions"),
    }
    write_whole(work / STAGE, lambda temporary: write_tensors(temporary, stage))


def train_seed(
    seed: int,
    weight: float,
    work: Path,
    sizes: Sizes,
    split: str,
    loop: LoopOptions,
    report: Callable[[Told], None],
    trackers: Sequence[str] = (),
) -> dict:
    """Train one seed from the stage in `work`, save it in `loop.out`, and return its evaluation."""
    stage = load_stage(work)
    model = new_model(stage.processor.tokenizer, stage.tower, seed)
    start = time.process_time()
    views = Views.of_quarters(stage.grids)
    job = FusionJob(model, stage.processor, views, stage.questions, stage.captions, sizes.fusion_steps, weight)
    accelerator = new_accelerator(list(trackers), loop.out, cpu=True)
    accelerator.init_trackers("firebolt", config={})
    skipped = run(job, accelerator, loop, report)
    close(accelerator)
    trained = {"training_seed": seed, "grounding_loss_weight": weight, "skipped_steps": skipped}
    trained["cpu_seconds"] = round(time.process_time() - start)
    if sizes.test_scenes:
        trained |= evaluate_model(job.model.eval(), job.processor, sizes.test_scenes, seed=0, split=split)
    return trained


def train_tiny(config: TinyConfig, folder: Path, resume: bool, note: Callable[[str], None]) -> None:
    """`firebolt train tiny`: one seed, with its evaluation in `folder`/results.json; what it prints goes to stderr."""
    work = Path(config.tower) if config.tower else folder / "tower"
    if config.tower and not (work / STAGE).is_file():
        old = " (stage.pt is a pickle of an earlier version, and is not read)" if (work / "stage.pt").exists() else ""
        raise ConfigError(f"tower: {work} holds no {STAGE}{old}; name the folder `tower` of another run")
    use_some_cores()
    keep_config(config, folder, resume, note)
    sizes = Sizes.of(config)
    if not (work / STAGE).is_file():
        note(f"drawing {sizes.scenes} scenes, then {sizes.tower_steps} steps of the vision tower")
        loop = LoopOptions(work, config.save_every, config.keep, resume=resume, max_bad_steps=config.max_bad_steps)
        with Shown("vision tower", config.log_every) as shown:
            make_stage(work, sizes.scenes, loop, sizes.tower_steps, shown)
    loop = LoopOptions(folder, config.save_every, config.keep, resume=resume, max_bad_steps=config.max_bad_steps)
    with Shown(f"seed {config.seed}", config.log_every) as shown:
        results = train_seed(
            config.seed, config.grounding_loss, work, sizes, config.split, loop, shown, config.trackers
        )
    write_results(results, folder)
    if results["skipped_steps"]:
        note(skipped_words(results["skipped_steps"], sizes.fusion_steps))
    if sizes.test_scenes:
        print_report(results, Console(stderr=True))


def _worker(queue, seed: int, *arguments) -> None:
    use_some_cores()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = train_seed(seed, *arguments, report=lambda told: queue.put((seed, told.step, told.measured["loss"])))
    queue.put((seed, None, results))


def use_some_cores() -> None:
    """A thread for every four cores.

    Of matrices so small a second thread gets little, three seeds train at once, and threads that wait for one another
    on a machine with other work wait for that too: two on two busy cores made a step of the tower twenty times slower.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))


def checkpoint_of(seed: int, weight: float, options: argparse.Namespace) -> Path:
    return options.work / f"seed-{seed}-grounding-loss-{weight:g}"


def loop_of(seed: int, weight: float, options: argparse.Namespace) -> LoopOptions:
    return LoopOptions(checkpoint_of(seed, weight, options), SAVE_EVERY, resume=options.resume)


def train_seeds(weight: float, options: argparse.Namespace, sizes: Sizes, progress: Progress) -> list[dict]:
    """Train all seeds at once, a process for each, with a weight of the grounding loss; returns their results."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = {
        seed: context.Process(
            target=_worker,
            args=(queue, seed, weight, options.work, sizes, options.split, loop_of(seed, weight, options)),
            daemon=True,
        )
        for seed in options.seeds
    }
    bars = {seed: progress.add_task(f"seed {seed}", total=options.fusion_steps, note="") for seed in options.seeds}
    for worker in workers.values():
        worker.start()
    results = {}
    while len(results) < len(workers):
        try:
            seed, step, found = queue.get(timeout=5)
        except Empty:
            if failed := [seed for seed, worker in workers.items() if seed not in results and worker.exitcode]:
                raise RuntimeError(f"seed {', '.join(map(str, failed))}: the training process ended early") from None
            continue
        if step is None:
            results[seed] = found
        else:
            progress.update(bars[seed], completed=step, note=f"loss {found:.3f}")
            # A log has no bars.
            if step % 100 == 0 and not progress.console.is_terminal:
                progress.console.print(f"seed {seed}: step {step} of {options.fusion_steps}, loss {found:.3f}")
    for worker in workers.values():
        worker.join()
    return [results[seed] for seed in options.seeds]


def overall(results: dict) -> float:
    """The mean of the accuracies inside the tiles and on the harder layouts."""
    return (results["accuracy"]["inside"]["all"] + results["accuracy"]["harder"]["all"]) / 2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m firebolt_vl.train.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGED, help="the folder of the checkpoint that ships")
    parser.add_argument("--work", type=Path, default=Path("out/tiny"), help="the folder of everything else")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes to learn from")
    parser.add_argument("--tower-steps", type=int, default=2500)
    parser.add_argument("--fusion-steps", type=int, default=2800)
    parser.add_argument("--grounding-loss-weight", type=float, default=1.0)
    parser.add_argument(
        "--compare",
        type=float,
        metavar="WEIGHT",
        help="train the seeds with this weight of the grounding loss, from the scenes and the tower kept in --work, "
        "and note what they reach beside the results of the model that ships",
    )
    parser.add_argument("--test-scenes", type=int, default=800)
    parser.add_argument(
        "--split", choices=SPLITS, default="held-out", help="digits to test with: validation, to choose a recipe by"
    )
    parser.add_argument("--reuse", action="store_true", help="start from the scenes and the tower kept in --work")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was stopped had come to")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.scenes, options.tower_steps, options.fusion_steps, options.test_scenes)
    console = Console()
    start = time.monotonic()
    if out_holds_other_files(options.out):
        parser.error(f"--out {options.out} holds files, and no results.json of this recipe; name a new folder")
    use_some_cores()
    with alone_in(options.work, print):
        train_and_ship(options, sizes, console, start)


def out_holds_other_files(out: Path) -> bool:
    """Whether the folder that is going to be replaced holds what this recipe has not written."""
    return out.exists() and not (out / "results.json").is_file() and (not out.is_dir() or any(out.iterdir()))


def train_and_ship(options: argparse.Namespace, sizes: Sizes, console: Console, start: float) -> None:
    weight = options.grounding_loss_weight if options.compare is None else options.compare
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
        kept = options.reuse or options.compare is not None
        if not kept and not (options.resume and (options.work / STAGE).is_file()):
            prepare(options, progress)
        trained = train_seeds(weight, options, sizes, progress)
    if options.compare is not None:
        note_comparison(trained, options.out)
        return
    shipped = sorted(trained, key=overall)[(len(trained) - 1) // 2]
    results = {
        "shipped_seed": shipped["training_seed"],
        "minutes": (time.monotonic() - start) / 60,
        "cpu_minutes": cpu_seconds() / 60,
        "cores": os.cpu_count(),
        "steps": {"tower": options.tower_steps, "fusion": options.fusion_steps},
        "seeds": trained,
        "compared": [],
    }
    ship(checkpoint_of(shipped["training_seed"], weight, options), results, options.out)
    print_report(shipped, console)
    console.print(
        f"{results['minutes']:.0f} minutes, {results['cpu_minutes']:.0f} of a core's; "
        f"seed {shipped['training_seed']} is the median: {options.out}"
    )


def cpu_seconds() -> float:
    """What this process and those that it has waited for took of all cores."""
    return sum(os.times()[:4])


def prepare(options: argparse.Namespace, progress: Progress) -> None:
    """`make_stage` in `options.work`."""
    bar = progress.add_task("vision tower", total=options.tower_steps, note="drawing scenes")

    def report(told: Told) -> None:
        progress.update(bar, completed=told.step, note=f"loss {told.measured['loss']:.3f}")

    loop = LoopOptions(options.work / "tower", SAVE_EVERY, resume=options.resume)
    make_stage(options.work, options.scenes, loop, options.tower_steps, report)


def ship(checkpoint: Path, results: dict, out: Path) -> None:
    """Put a checkpoint and its results in the place of what lies in `out`."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.copytree(checkpoint, fresh, ignore=shutil.ignore_patterns(*FOLDERS, HISTORY, PLOT))
    write_results(results, fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


def note_comparison(trained: list[dict], out: Path) -> None:
    """Put the results of other weights of the grounding loss beside those of the checkpoint in `out`."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    weights = {run["grounding_loss_weight"] for run in trained}
    kept = [run for run in results["compared"] if run["grounding_loss_weight"] not in weights]
    write_results({**results, "compared": kept + trained}, out)


def write_results(results: dict, folder: Path) -> None:
    write_text(folder / "results.json", json.dumps(rounded(results), indent=1) + "\n")


def rounded(value):
    """Every number in nested results to four places."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float | np.floating) else value
