"""Exam of a model that reads: screens of a split as grids, questions about them in both wordings, and marks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ..answering import greedy_answers
from ..benchmarks import by_group, mean_score
from ..items import Marked
from ..metrics.text import edit_distance
from ..own import OWN
from .drawing import draw
from .questions import KINDS, Question, sample_question
from .sampling import SPLITS, sample_scene
from .scenes import Scene

BATCH = 32
MOST_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """A question of the exam, and which of its scenes it is about."""

    scene: int
    question: Question


@dataclass
class Exam:
    """Scenes of a split, their pictures, the questions about them, and, once they are encoded, their grids."""

    scenes: list[Scene]
    pictures: list[Image.Image]
    asked: list[Asked]
    grids: dict[str, Tensor] = field(default_factory=dict)

    def grids_of(self, scenes: Sequence[int]) -> dict[str, Tensor]:
        """Return the grids of some scenes as arguments of the model."""
        chosen = torch.tensor(scenes)
        return {name: tensor[chosen] for name, tensor in self.grids.items()}


def pose(scenes: int, seed: int, split: str, side: int, kinds: Sequence[str]) -> Exam:
    """Draw scenes of a split, whose kinds take turns, and ask each of every kind in a known and a held-out wording.

    Raises ValueError for an unknown split, and for fewer scenes than kinds.
    """
    if split not in SPLITS:
        raise ValueError(f"pose: split is {split!r}; expected one of {', '.join(SPLITS)}")
    if scenes < len(kinds):
        raise ValueError(f"pose: scenes is {scenes}; expected at least {len(kinds)}, one of each kind")
    # Screens of an exam are never those of a training with the same seed, whose generators have two numbers.
    rng = np.random.default_rng((seed, list(SPLITS).index(split), 1))
    drawn = [sample_scene(rng, kinds[i % len(kinds)], SPLITS[split], side=side) for i in range(scenes)]
    asked = [
        Asked(i, question)
        for i, scene in enumerate(drawn)
        for held_out in (False, True)
        for kind in KINDS
        if (question := sample_question(rng, scene, kind, held_out)) is not None
    ]
    return Exam(drawn, [draw(scene) for scene in drawn], asked)


@torch.no_grad()
def encode(exam: Exam, model: FireboltForConditionalGeneration, processor: FireboltProcessor) -> None:
    """Encode the pictures, through the processor like any other image."""
    parts = []
    for start in range(0, len(exam.pictures), BATCH):
        inputs = processor.image_processor(exam.pictures[start : start + BATCH], return_tensors="pt")
        parts.append(model.get_grids(**inputs.to(model.device)))
    features, masks, boxes = (list(one) for one in list(zip(*parts))[:3])
    exam.grids = {"grids": torch.cat(features), "grid_mask": torch.cat(masks)}
    if boxes[0] is not None:
        exam.grids["grid_boxes"] = torch.cat(boxes)


@torch.no_grad()
def answer(
    exam: Exam,
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    prompts: Sequence[str],
    which: Sequence[int],
    scene_of: Sequence[int] | None = None,
    answered: Callable[[int], None] = lambda more: None,
) -> list[str]:
    """Return greedy answers to some of the questions; `scene_of` maps a scene to the one that is shown."""
    answers: list[str] = []
    for start in range(0, len(which), BATCH):
        chosen = which[start : start + BATCH]
        scenes = [exam.asked[i].scene for i in chosen]
        shown = exam.grids_of(scenes if scene_of is None else [scene_of[scene] for scene in scenes])
        answers += greedy_answers(model, processor, [prompts[i] for i in chosen], shown, MOST_TOKENS)
        answered(len(chosen))
    return answers


def mark(exam: Exam, which: Sequence[int], answers: Sequence[str]) -> list[Marked]:
    """Mark answers to some of the questions, as those to own questions are: whatever the case of the letters."""
    marked = []
    for i, given in zip(which, answers):
        question = exam.asked[i].question
        wanted, about = [question.answer], {"kind": question.kind}
        marked.append(Marked(i, wanted, about, given, OWN.mark(given, wanted, about)))
    return marked


def scores(marked: Sequence[Marked]) -> dict[str, dict[str, float]]:
    """Return of each kind, and of "all", exact match and the character error rate.

    The error rate is the sum of edit distances over the sum of the answers' lengths; it can exceed 1.
    """
    groups = {**by_group(marked, lambda one: one.about["kind"]), "all": list(marked)}
    return {
        kind: {"questions": len(inside), "exact": mean_score(inside), "cer": character_error_rate(inside)}
        for kind, inside in groups.items()
        if inside
    }


def character_error_rate(marked: Sequence[Marked]) -> float:
    """Return the sum of edit distances to the wanted answers over the sum of these answers' lengths.

    As of exact match, the case of letters does not count.
    """
    wrong = sum(edit_distance(one.got.casefold(), one.wanted[0].casefold()) for one in marked)
    return wrong / max(1, sum(len(one.wanted[0]) for one in marked))


def other_scene(exam: Exam) -> list[int]:
    """Return for each scene the next one of its kind; after the last comes the first."""
    others = list(range(len(exam.scenes)))
    for same in by_group([Numbered(i, one.kind) for i, one in enumerate(exam.scenes)], lambda one: one.kind).values():
        for one, following in zip(same, [*same[1:], same[0]]):
            others[one.number] = following.number
    return others


@dataclass(frozen=True)
class Numbered:
    """The number and the kind of a scene."""

    number: int
    kind: str


def points_at(boxes: np.ndarray, values: np.ndarray, box: Sequence[float]) -> tuple[float, float]:
    """Tell whether the grid with the highest value overlaps a box, 1 or 0, and how often a random grid would.

    Boxes are (y0, x0, y1, x1). An answer that is spelled has a grid for each letter, any of which may be the highest;
    `metrics.grounding.fit` asks for the one at the box's centre.
    """
    y0, x0, y1, x1 = box
    over = (boxes[:, 0] < y1) & (boxes[:, 2] > y0) & (boxes[:, 1] < x1) & (boxes[:, 3] > x0)
    return float(over[int(values.argmax())] and values.max() > 0), fmean(over)
