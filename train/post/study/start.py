"""The study's start model: deliberately weak, the embedded model's connector and decoder after few steps."""

from pathlib import Path

from ....evaluate.questions import GROUNDED_KINDS
from ....files.writing import write_whole
from ....model import FireboltForConditionalGeneration, FireboltProcessor
from ....model.places import EMBEDDED, find
from ...config import TinyConfig
from ...tensors import write_tensors
from ...tiny.fusion import tokenize
from ...tiny.models import IMAGE_SIDE
from ...tiny.pool import make_pool
from ...tiny.seed import loop_of, train_seed
from ...tiny.stage import STAGE
from ...tiny.tower import encode

POOL_SEED = 11


def make_start(folder: Path, scenes: int, steps: int, resume: bool) -> None:
    """Train a new connector and decoder for `steps` steps on the embedded model's vision tower, into `folder`.

    Without the grounding loss of its recipe, so that where answers come from is left to what comes after.
    """
    work = folder / "tower"
    if not (work / STAGE).is_file():
        write_stage(work, scenes)
    config = TinyConfig(max_steps=steps, tower=str(work), test_scenes=0, grounding_loss=0.0, save_every=100)
    train_seed(config, 0, work, loop_of(config, folder, resume), lambda told: None)


def write_stage(work: Path, scenes: int) -> None:
    """Write what the second stage of the embedded model's recipe begins with: the trained tower, scenes, questions."""
    embedded = find(EMBEDDED)
    model = FireboltForConditionalGeneration.from_pretrained(embedded).eval()
    processor = FireboltProcessor.from_pretrained(embedded)
    tower = model.model.vision_tower
    pool = make_pool(scenes, POOL_SEED, IMAGE_SIDE, processes=1)
    harder = [asked for asked in pool.questions if asked[1].kind in ("how many", *GROUNDED_KINDS)]
    stage = {
        **{f"tower.{name}": tensor for name, tensor in tower.state_dict().items()},
        "grids": encode(tower, pool.pixels),
        **tokenize(processor.tokenizer, pool.questions + harder).tensors("questions"),
        **tokenize(processor.tokenizer, pool.captions).tensors("captions"),
    }
    processor.save_pretrained(work)
    write_whole(work / STAGE, lambda temporary: write_tensors(temporary, stage))
