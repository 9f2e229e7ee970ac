"""A small foveated model for each mode and seed: does it help to look, and where do the queries look?

python -m firebolt_vl.train.foveated_tiny [--out DIR] [--work DIR] [--seeds 0 1 2] [--modes ...] [--quick]

Each finished run is a row in WORK/runs and is not run again; one that was stopped goes on from its checkpoint.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, GenerationConfig
from transformers.utils import logging

from ...evaluate.digits import COLOURS
from ...evaluate.questions import Question
from ...files.tables import markdown_table
from ...files.writing import write_text, write_whole
from ...model import FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
from ..errors import ConfigError
from ..loop import LoopOptions, Told, run
from ..outputs import alone_in
from ..results import rounded, write_results
from ..session import close, new_accelerator, use_some_cores
from ..tensors import check_tensors, first_not_finite, read_about, read_tensors, write_tensors
from ..tiny.fusion import EMBEDDING_STD, Rows, tokenize
from ..tiny.tokenizer import make_tokenizer
from .exam import examine
from .jobs import LookJob, TowerJob
from .picture import draw_examples
from .pool import Clips, make_cards, make_clips

SIDE, PATCH = 80, 8
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
MODES = ("coarse_only", "coarse_fine", "autoregressive")
CLIPS_SEED, CARDS_SEED, EXAM_SEED, TOWER_SEED = 1, 2, 3, 0
ROWS, STAGE = "runs", "stage.safetensors"
SAVE_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """Settings that a row of results belongs to: with another number runs are done anew."""

    clips: int = 4000
    tower_steps: int = 1500
    steps: int = 300
    test_clips: int = 800
    split: str = "held-out"

    @classmethod
    def quick(cls) -> "Settings":
        """Enough to see every part work, not to see anything in its numbers."""
        return cls(clips=40, tower_steps=3, steps=3, test_clips=8)


@dataclass
class Stage:
    """Parts that all runs share: a vision tower, and clips to learn from."""

    tower: dict[str, Tensor]
    seconds: float
    """What it took of a core."""
    clips: Clips
    cards: Tensor
    exam: Clips
    processor: FoveatedProcessor
    texts: Rows


def new_processor() -> FoveatedProcessor:
    return FoveatedProcessor(FoveatedImageProcessor(size={"height": SIDE, "width": SIDE}), make_tokenizer())


def new_model_config(processor: FoveatedProcessor, mode: str) -> FoveatedVLMConfig:
    return FoveatedVLMConfig(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(processor.tokenizer), **_ends(processor)},
        query_dim=64,
        visual_scale=EMBEDDING_STD,
        mode=mode,
        frame_block=256,
    )


def new_model(processor: FoveatedProcessor, tower: dict[str, Tensor], mode: str, seed: int) -> FoveatedVLM:
    """The untrained model of a seed around a trained vision tower."""
    torch.manual_seed(seed)
    model = FoveatedVLM(new_model_config(processor, mode))
    model.encoder.dino.load_state_dict(tower)
    model.generation_config = GenerationConfig(**_ends(processor))
    return model


def _ends(processor: FoveatedProcessor) -> dict[str, int]:
    return {name: getattr(processor.tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def make_texts(processor: FoveatedProcessor) -> Rows:
    """Question and answer for each of 6 colours and 10 digits, as row 10 colour + digit."""
    asked = [
        Question("digit of", f"what digit is {colour}?", str(digit), held_out=False)
        for colour in COLOURS
        for digit in range(10)
    ]
    return tokenize(processor.tokenizer, list(enumerate(asked)))


def make_stage(work: Path, settings: Settings, report) -> Stage:
    """Draw the clips and train the tower, unless `work` holds those of these settings.

    Raises ValueError, which names file and tensor, where it says so and does not hold them.
    """
    processor, file = new_processor(), work / STAGE
    wanted = {name: value for name, value in asdict(settings).items() if name != "steps"}
    about = {}
    with suppress(ValueError):  # none, or damaged
        about = read_about(file)
    if about.get("settings") != json.dumps(wanted):
        begun = time.process_time()
        clips = make_clips(settings.clips, CLIPS_SEED, SIDE, "train")
        exam = make_clips(settings.test_clips, EXAM_SEED, SIDE, settings.split)
        job = TowerJob(Dinov2Config(**VISION), clips, settings.tower_steps, TOWER_SEED)
        folder = work / "tower"
        train(job, folder, wanted, report)
        tower = Dinov2Model.from_pretrained(folder).state_dict()
        kept = {f"tower.{name}": tensor for name, tensor in tower.items()}
        kept |= clips.tensors("clips") | exam.tensors("exam")
        kept["seconds"] = torch.tensor(time.process_time() - begun, dtype=torch.float64)
        write_whole(file, lambda temporary: write_tensors(temporary, kept, {"settings": json.dumps(wanted)}))
        shutil.rmtree(folder)
    kept = read_tensors(file)
    tower = {f"tower.{name}": tensor for name, tensor in Dinov2Model(Dinov2Config(**VISION)).state_dict().items()}
    expected = {"seconds": (torch.float64, ())}
    expected |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tower.items()}
    check_tensors(
        file, kept, expected | Clips.wanted("clips", settings.clips) | Clips.wanted("exam", settings.test_clips)
    )
    if (name := first_not_finite(kept)) is not None:
        raise ValueError(f"{file}: {name} is not finite")
    return Stage(
        tower={name.removeprefix("tower."): kept[name] for name in tower},
        seconds=float(kept["seconds"]),
        clips=Clips.of_tensors(kept, "clips", file),
        exam=Clips.of_tensors(kept, "exam", file),
        cards=make_cards(CARDS_SEED),
        processor=processor,
        texts=make_texts(processor),
    )


def train(job, folder: Path, settings: dict, report) -> dict:
    """Run a job in a folder, on from where one of the same settings was stopped: whether there was one, and how many
    steps were skipped."""
    kept = folder / "settings.json"
    resume = kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) == settings
    if not resume and folder.exists():
        if not kept.is_file():
            raise ConfigError(f"--work is {folder}, which holds something else than runs of this task; name another")
        shutil.rmtree(folder)
    write_text(kept, json.dumps(settings))
    accelerator = new_accelerator([], folder, cpu=True)
    skipped = run(job, accelerator, LoopOptions(folder, SAVE_EVERY, resume=resume, plot=False), report)
    close(accelerator)
    return {"resumed": resume, "skipped_steps": skipped}


def row_file(work: Path, mode: str, seed: int) -> Path:
    return work / ROWS / f"{mode}-seed-{seed}.json"


def read_row(work: Path, mode: str, seed: int, settings: Settings) -> dict | None:
    """The results of a finished run. None where there is none, or only one of other settings."""
    try:
        row = json.loads(row_file(work, mode, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if row.get("settings") == asdict(settings) else None


def do_run(work: Path, stage: Stage, mode: str, seed: int, settings: Settings, report) -> dict:
    """Train and examine one mode and seed; keep the row, and the model in WORK/MODE-seed-N."""
    begun = time.process_time()
    model = new_model(stage.processor, stage.tower, mode, seed)
    job = LookJob(model, stage.processor, stage.clips, stage.cards, stage.texts, settings.steps)
    folder = work / f"{mode}-seed-{seed}"
    trained = train(job, folder, asdict(settings), report)
    row = {
        "mode": mode,
        "seed": seed,
        "settings": asdict(settings),
        "cpu_seconds": time.process_time() - begun,
        **trained,
        **examine(model.eval(), stage.exam, stage.cards, stage.texts, EXAM_SEED),
    }
    row = rounded(row)
    write_results(row, row_file(work, mode, seed))
    shutil.rmtree(folder / "checkpoints")
    return row


def spread(values: Sequence[float]) -> str:
    """Mean of the seeds, lowest and highest in brackets, in %."""
    mean, low, high = (100 * one for one in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


COLUMNS = {
    "right answers": ("accuracy", "all"),
    "still": ("accuracy", "still"),
    "moving": ("accuracy", "moving"),
    "weight on the asked digit": ("attention", "inside"),
    "its share of the frame": ("attention", "area"),
    "on another digit": ("attention", "other"),
    "peak on the asked digit": ("attention", "peak"),
    "by chance": ("attention", "peak_chance"),
}


def table(rows: Sequence[dict]) -> str:
    """A line for each mode: in %, the mean of the seeds, lowest and highest in brackets."""
    found = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        its = [row for row in rows if row["mode"] == mode]
        found.append([f"`{mode}`", *(spread([row[part][name] for row in its]) for part, name in COLUMNS.values())])
    return markdown_table(["mode", *COLUMNS], found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m firebolt_vl.train.foveated_tiny", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out/foveated"), help="the folder of results and picture")
    parser.add_argument("--work", type=Path, default=Path("out/foveated-tiny"), help="the folder of everything else")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--split", choices=("held-out", "validation"), default=Settings.split)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    options = parser.parse_args(arguments)
    settings = Settings.quick() if options.quick else Settings(steps=options.steps, split=options.split)
    use_some_cores()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def say(what: str):
        def report(told: Told) -> None:
            if told.step % 50 == 0 or told.step == told.steps:
                print(f"{what}: step {told.step} of {told.steps}, loss {told.measured['loss']:.3f}", flush=True)

        return report

    with alone_in(options.work, print):
        stage = make_stage(options.work, settings, say("vision tower"))
        rows = run_all(options, stage, settings, say)
    write_all(options, stage, rows)


def run_all(options: argparse.Namespace, stage: Stage, settings: Settings, say) -> list[dict]:
    """The rows of all modes and seeds, those that are there already read."""
    rows = []
    for seed in options.seeds:
        for mode in options.modes:
            row = read_row(options.work, mode, seed, settings)
            if row is None:
                row = do_run(options.work, stage, mode, seed, settings, say(f"{mode}, seed {seed}"))
            rows.append(row)
            print(f"{mode}, seed {seed}: {100 * row['accuracy']['all']:.1f} % right", flush=True)
    return rows


def write_all(options: argparse.Namespace, stage: Stage, rows: list[dict]) -> None:
    """Results and picture in `options.out`, the table on stdout."""
    results = {"tower_cpu_seconds": stage.seconds, "runs": rows}
    write_results(results, options.out / "foveated.json")
    folders = {mode: options.work / f"{mode}-seed-{options.seeds[0]}" for mode in options.modes}
    models = {mode: FoveatedVLM.from_pretrained(folder).eval() for mode, folder in folders.items()}
    write_whole(
        options.out / "foveated.png",
        lambda temporary: draw_examples(models, stage.exam, stage.cards, stage.texts, stage.processor, temporary),
    )
    print(table(sorted(rows, key=lambda row: options.modes.index(row["mode"]))))
