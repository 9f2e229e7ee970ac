"""Task that all runs of the ablations share: scenes of small digits, their grids at three scales, and the exam.

A scene has 14 grids: the whole image at 64 pixels, 2 x 2 tiles of it, and 3 x 3 tiles of the image at 96. Its digits
are smaller than those of the embedded model's task, so that the whole image alone does not show which digit is which.
The vision tower is that of the embedded model, and stays as it is: the grids are made once.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import SiglipVisionModel

from ...evaluate.digits import draw
from ...evaluate.exam import Exam, pose
from ...evaluate.questions import GROUNDED_KINDS
from ...files.writing import write_whole
from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ..tensors import check_tensors, first_not_finite, read_about, read_tensors, write_tensors
from ..tiny.fusion import Rows, Views, tokenize
from ..tiny.pool import DRAWN_SIDE, centres_of, global_views, make_pool, tiles
from ..tiny.tower import pooled

COARSE, FINE = 64, 96
TILINGS = (1, 2, 3)
POOL_SEED, EXAM_SEED = 11, 12
SETTINGS = "settings"


@dataclass(frozen=True)
class Settings:
    """Settings that a row of results belongs to: with another number runs are done anew."""

    scenes: int = 12_000
    steps: int = 900
    test_scenes: int = 240
    scale: float = 0.62
    split: str = "held-out"

    @classmethod
    def quick(cls) -> "Settings":
        """Enough to see every part work, not to see anything in its numbers."""
        return cls(scenes=400, steps=20, test_scenes=8)

    def to_dict(self) -> dict:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


@dataclass
class Task:
    tower: SiglipVisionModel
    processor: FireboltProcessor
    views: Views
    questions: Rows
    captions: Rows
    exam: Exam
    exam_rows: Rows
    """The exam's questions in known wordings, with their answers: what perplexity is of."""


def boxes() -> Tensor:
    """[14,4]: y0, x0, y1, x1 of the whole image, 2 x 2 and 3 x 3 tiles."""
    found = [
        (row / n, column / n, (row + 1) / n, (column + 1) / n)
        for n in TILINGS
        for row in range(n)
        for column in range(n)
    ]
    return torch.tensor(found)


@torch.no_grad()
def features(tower: SiglipVisionModel, coarse: Tensor, fine: Tensor, batch: int = 250) -> Tensor:
    """The grids [N,14,D_v] of scenes, of their pixels [N,3,64,64] and [N,3,96,96] uint8."""
    made = []
    for small, large in zip(coarse.split(batch), fine.split(batch)):
        views = [global_views(small), tiles(global_views(small), 2), tiles(global_views(large), 3)]
        made.append(torch.cat([pooled(tower, view).unflatten(0, (len(small), -1)) for view in views], dim=1))
    return torch.cat(made)


def shown(centres: Tensor) -> Tensor:
    """[N,4,14] bool of the digits' centres [N,4,2]: of each quarter its own tile and the 3 x 3 tile of the centre.

    A grid shows one quarter at most: of several digits in one 3 x 3 tile, the tile is the first one's.
    """
    seen = torch.zeros(*centres.shape[:2], len(boxes()), dtype=torch.bool)
    for quarter in range(4):
        seen[:, quarter, 1 + quarter] = True
        row, column = (centres[:, quarter] * 3).long().clamp(0, 2).unbind(-1)
        cell = 5 + 3 * row + column
        free = ~seen[torch.arange(len(centres)), :, cell].any(1)
        seen[torch.arange(len(centres))[free], quarter, cell[free]] = True
    return seen


def make_task(checkpoint: Path, settings: Settings, processes: int | None = None) -> dict[str, Tensor]:
    """Draw everything and encode it by the tower of a checkpoint, the embedded one; what `Task` is made of again, but
    for the exam's questions, which `pose` draws anew."""
    model = FireboltForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = FireboltProcessor.from_pretrained(checkpoint)
    tower = model.model.vision_tower
    pool = make_pool(settings.scenes, POOL_SEED, COARSE, processes, finer=[FINE], scale=settings.scale)
    harder = [asked for asked in pool.questions if asked[1].kind in ("how many", *GROUNDED_KINDS)]
    drawn, asked = pose(settings.test_scenes, EXAM_SEED, settings.split, settings.scale)
    exam_pixels = [
        torch.from_numpy(np.stack([np.asarray(draw(scene, DRAWN_SIDE).resize((side, side), 2)) for scene in drawn]))
        for side in (COARSE, FINE)
    ]
    known = [(one.scene, one.question) for one in asked if not one.question.held_out]
    return {
        "features": features(tower, pool.pixels, *pool.finer),
        "shown": shown(pool.centres),
        **tokenize(processor.tokenizer, pool.questions + harder).tensors("questions"),
        **tokenize(processor.tokenizer, pool.captions).tensors("captions"),
        "exam_features": features(tower, *(pixels.permute(0, 3, 1, 2) for pixels in exam_pixels)),
        "exam_shown": shown(centres_of(drawn)),
        **tokenize(processor.tokenizer, known).tensors("exam_rows"),
    }


def keep_task(file: Path, checkpoint: Path, settings: Settings, processes: int | None = None) -> None:
    """`make_task` in a file, unless the file holds that of these settings."""
    with suppress(ValueError):  # none, or damaged
        if read_about(file).get(SETTINGS) == settings.to_json():
            return
    made = make_task(checkpoint, settings, processes)
    write_whole(file, lambda temporary: write_tensors(temporary, made, {SETTINGS: settings.to_json()}))


def load_task(file: Path, checkpoint: Path, settings: Settings) -> Task:
    """Load what `keep_task` kept, with the same checkpoint. Raises ValueError, which names file and tensor, where it is
    something else."""
    tower = FireboltForConditionalGeneration.from_pretrained(checkpoint).model.vision_tower
    processor = FireboltProcessor.from_pretrained(checkpoint)
    kept, count = read_tensors(file), len(boxes())
    wanted = {
        "features": (torch.float32, ("scenes", count, tower.config.hidden_size)),
        "shown": (torch.bool, ("scenes", 4, count)),
        "exam_features": (torch.float32, ("exam", count, tower.config.hidden_size)),
        "exam_shown": (torch.bool, ("exam", 4, count)),
    }
    rows = ("questions", "captions", "exam_rows")
    for name in rows:
        wanted |= Rows.wanted(name)
    sizes = check_tensors(file, kept, wanted)
    if (name := first_not_finite(kept)) is not None:
        raise ValueError(f"{file}: {name} is not finite")
    if (sizes["scenes"], sizes["exam"]) != (settings.scenes, settings.test_scenes):
        raise ValueError(
            f"{file}: features are of {sizes['scenes']} and {sizes['exam']} scenes; expected {settings.scenes} and "
            f"{settings.test_scenes}"
        )
    questions, captions, exam_rows = (Rows.of_tensors(kept, name) for name in rows)
    for name, found in zip(rows, (questions, captions, exam_rows)):
        found.check(file, name, sizes["exam" if name == "exam_rows" else "scenes"], len(processor.tokenizer))
    found = kept["exam_features"]
    mask = torch.ones(found.shape[:2], dtype=torch.bool)
    _, asked = pose(settings.test_scenes, EXAM_SEED, settings.split, settings.scale)
    exam = Exam(found, mask, boxes().expand(len(found), -1, -1), asked, kept["exam_shown"])
    views = Views(kept["features"], boxes(), kept["shown"])
    return Task(tower, processor, views, questions, captions, exam, exam_rows)
