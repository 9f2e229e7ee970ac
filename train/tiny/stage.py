"""The first stage, which all seeds of the second one share: scenes, a tokenizer, and a trained vision tower."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from ...evaluate.questions import GROUNDED_KINDS
from ...files.writing import write_whole
from ...model import FireboltProcessor
from ..loop import LoopOptions, Told, run
from ..session import new_accelerator
from ..tensors import check_tensors, first_not_finite, read_tensors, write_tensors
from .fusion import Rows, tokenize
from .models import IMAGE_SIDE, VISION, new_processor
from .pool import make_pool
from .tokenizer import make_tokenizer
from .tower import TowerJob, encode

STAGE = "stage.safetensors"
SCENES_SEED, TOWER_SEED = 1, 0


@dataclass
class Stage:
    """Stage that all seeds of the second stage start from."""

    tower: SiglipVisionModel
    processor: FireboltProcessor
    grids: Tensor
    questions: Rows
    captions: Rows


def load_stage(work: Path) -> Stage:
    """Load what `make_stage` kept in `work`. Raises ValueError, which names file and tensor, where it does not fit."""
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
    pool = make_pool(scenes, SCENES_SEED, IMAGE_SIDE)
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
