"""The exam of the embedded model: scenes of digits as grids, the questions about them, and a model's answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model import FireboltForConditionalGeneration, FireboltProcessor
from .answering import greedy_answers
from .digits import LAYOUTS, Scene, draw, sample_scene
from .questions import KINDS, Question, sample_question

IMAGE_SIDE = 128
BATCH = 128
MAX_ANSWER_TOKENS = 8


@dataclass
class Asked:
    """One question of the exam: which scene it is about, and the scene's layout."""

    scene: int
    layout: str
    question: Question


@dataclass
class Exam:
    """Scenes as the model's grids (features [S,G,D_v], mask [S,G], boxes [S,G,4]) and the questions about them.

    `shown` [S,4,G] bool says which grids show each quarter; None: of the global view and four tiles its tile.
    """

    features: Tensor
    mask: Tensor
    boxes: Tensor
    asked: list[Asked]
    shown: Tensor | None = None

    def grids_of(self, scene: int, quarter: int) -> list[int]:
        """The grids that show a quarter."""
        return [1 + quarter] if self.shown is None else self.shown[scene, quarter].nonzero()[:, 0].tolist()


def make_exam(
    model: FireboltForConditionalGeneration, processor: FireboltProcessor, scenes: int, seed: int, split: str
) -> Exam:
    """Draw the scenes, pose the questions and encode the images, through the processor like any other image."""
    drawn, asked = pose(scenes, seed, split)
    encoded = []
    for start in range(0, scenes, BATCH):
        images = [draw(scene, IMAGE_SIDE) for scene in drawn[start : start + BATCH]]
        encoded.append(model.get_grids(**processor.image_processor(images, return_tensors="pt").to(model.device)))
    features, mask, boxes = (torch.cat(parts) for parts in list(zip(*encoded))[:3])
    return Exam(features, mask, boxes, asked)


def pose(scenes: int, seed: int, split: str, scale: float = 1.0) -> tuple[list[Scene], list[Asked]]:
    """Scenes, whose layouts take turns, and the questions about them; `scale` multiplies the digits' sizes."""
    rng = np.random.default_rng(seed)
    drawn = list(sample_scenes(rng, scenes, split, scale))
    asked = []
    for i, scene in enumerate(drawn):
        for held_out in (False, True):
            for kind in KINDS:
                question = sample_question(rng, scene, kind, held_out)
                if question is not None:
                    asked.append(Asked(i, scene.layout, question))
    return drawn, asked


def sample_scenes(rng: np.random.Generator, count: int, split: str, scale: float = 1.0) -> Iterator[Scene]:
    """Random scenes, whose layouts take turns."""
    for number in range(count):
        yield sample_scene(rng, LAYOUTS[number % len(LAYOUTS)], split, scale)


def answer(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    exam: Exam,
    prompts: Sequence[str],
    which: Sequence[int],
    scene_of: Sequence[int] | None = None,
    answered: Callable[[int], None] = lambda more: None,
) -> list[str]:
    """The model's greedy answers to some of the exam's questions; `scene_of` maps a scene to the one that is shown.

    `answered` is called with the number of answers of each batch.
    """
    answers = []
    for start in range(0, len(which), BATCH):
        chosen = which[start : start + BATCH]
        scenes = [exam.asked[i].scene for i in chosen]
        scenes = torch.tensor([scene_of[scene] for scene in scenes] if scene_of is not None else scenes)
        grids = {
            "grids": exam.features[scenes],
            "grid_mask": exam.mask[scenes],
            "grid_boxes": exam.boxes[scenes],
        }
        texts = greedy_answers(model, processor, [prompts[i] for i in chosen], grids, MAX_ANSWER_TOKENS)
        answers.extend(texts)
        answered(len(texts))
    return answers
