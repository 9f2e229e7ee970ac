"""Train the model that ships inside the package: one vision tower, then three seeds of all else; the median ships.

python -m firebolt_vl.train.tiny [--out DIR] [--seeds 0 1 2] [--tower-steps N] [--fusion-steps N] ...
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, PreTrainedTokenizerBase, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

from ...evaluate.digits import SPLITS
from ...evaluate.files import write_text
from ...evaluate.questions import GROUNDED_KINDS, NOTHING
from ...evaluate.tiny import evaluate_model, print_report
from ...model import FireboltConfig, FireboltForConditionalGeneration, FireboltImageProcessor, FireboltProcessor
from .fusion import tokenize, train_fusion
from .pool import make_pool
from .tokenizer import make_tokenizer
from .tower import encode, pretrain_tower

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


def train_seed(
    seed: int, weight: float, out: Path, options: argparse.Namespace, report: Callable[[int, float], None]
) -> dict:
    """Train one seed from what `prepare` kept, save it in `out`, and return its evaluation."""
    processor = FireboltProcessor.from_pretrained(options.work)
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION))
    kept = torch.load(options.work / "stage.pt", weights_only=False)
    tower.load_state_dict(kept["tower"])
    model = new_model(processor.tokenizer, tower, seed)
    start = time.process_time()
    nothing = processor.tokenizer.convert_tokens_to_ids(NOTHING)
    stage = kept["grids"], kept["questions"], kept["captions"], nothing
    train_fusion(model, *stage, options.fusion_steps, weight, report)
    seconds = time.process_time() - start
    model.save_pretrained(out)
    processor.save_pretrained(out)
    results = evaluate_model(model, processor, options.test_scenes, seed=0, split=options.split)
    return {"training_seed": seed, "grounding_loss_weight": weight, "cpu_seconds": round(seconds), **results}


def _worker(queue, seed: int, *arguments) -> None:
    use_some_cores()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = train_seed(seed, *arguments, report=lambda step, loss: queue.put((seed, step, loss)))
    queue.put((seed, None, results))


def use_some_cores() -> None:
    """A thread for every four cores.

    Of matrices so small a second thread gets little, three seeds train at once, and threads that wait for one another
    on a machine with other work wait for that too: two on two busy cores made a step of the tower twenty times slower.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))


def checkpoint_of(seed: int, weight: float, options: argparse.Namespace) -> Path:
    return options.work / f"seed-{seed}-grounding-loss-{weight:g}"


def train_seeds(weight: float, options: argparse.Namespace, progress: Progress) -> list[dict]:
    """Train all seeds at once, a process for each, with a weight of the grounding loss; returns their results."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = {
        seed: context.Process(
            target=_worker, args=(queue, seed, weight, checkpoint_of(seed, weight, options), options), daemon=True
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
    options = parser.parse_args(arguments)
    console = Console()
    start = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    use_some_cores()
    weight = options.grounding_loss_weight if options.compare is None else options.compare
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
        if not options.reuse and options.compare is None:
            prepare(options, progress)
        trained = train_seeds(weight, options, progress)
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
    """Draw the scenes, make the tokenizer, train the tower and keep what all seeds start from in `options.work`."""
    bar = progress.add_task("scenes", total=1, note="")
    pool = make_pool(options.scenes, FIRST_SCENES_SEED, IMAGE_SIDE)
    processor = new_processor(make_tokenizer())
    processor.save_pretrained(options.work)
    progress.update(bar, completed=1)
    bar = progress.add_task("vision tower", total=options.tower_steps, note="")
    tower = pretrain_tower(
        SiglipVisionConfig(**VISION),
        pool,
        options.tower_steps,
        options.seeds[0],
        lambda step, loss: progress.update(bar, completed=step, note=f"loss {loss:.3f}"),
    )
    bar = progress.add_task("grids", total=1, note="")
    # The hardest to learn are practised twice as often: counting, and to say what lies in a quarter.
    harder = [asked for asked in pool.questions if asked[1].kind in ("how many", *GROUNDED_KINDS)]
    stage = {
        "tower": tower.state_dict(),
        "grids": encode(tower, pool.pixels),
        "questions": tokenize(processor.tokenizer, pool.questions + harder),
        "captions": tokenize(processor.tokenizer, pool.captions),
    }
    torch.save(stage, options.work / "stage.pt")
    progress.update(bar, completed=1)


def ship(checkpoint: Path, results: dict, out: Path) -> None:
    """Put a checkpoint and its results in the place of what lies in `out`."""
    fresh = out.with_name(out.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(checkpoint, fresh)
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
