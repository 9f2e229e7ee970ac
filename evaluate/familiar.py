"""Test of a question and an image for likeness to a small model's training data: statistics that are kept beside it.

A question is familiar if all its words were trained on, or may be names of what the image shows, and one of them is a
thing that can be asked for. An image is familiar if it is as much smooth paper, and has as many strokes on it, of which
as many are in colour, as those of the training.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FILE = "familiar.json"
SIDE = 64
# Levels in 0..1: a pixel this near to the fitted paper is paper, one this far from it is a stroke, one of this
# saturation is coloured.
PAPER, STROKE, COLOURED = 0.04, 0.12, 0.3
STATISTICS = ("paper", "strokes", "colour")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Familiar:
    """Description of what a model knows.

    knows      one sentence for a user
    words      all that stand in the questions that it was trained on
    things     those of them, one of which a question has to have
    image      statistic -> (low, high): what images of its kind have
    names      whether a question may have other words, as they stand on the image ("how much is the tea?")
    """

    knows: str
    words: Sequence[str]
    things: Sequence[str]
    image: dict[str, tuple[float, float]]
    names: bool = False

    def doubts(self, question: str, *images: Image.Image) -> list[str]:
        """List what is unlike its training, each as a sentence."""
        of_images = [doubt for image in images for doubt in self.doubts_of_image(image)]
        return list(
            dict.fromkeys([*self.doubts_of_question(question), *self.doubts_of_number(len(images)), *of_images])
        )

    def doubts_of_number(self, images: int) -> list[str]:
        return ["there are several images, and this model was trained on one at a time"] if images > 1 else []

    def doubts_of_question(self, question: str) -> list[str]:
        words = WORD.findall(question.casefold())
        unknown = [] if self.names else list(dict.fromkeys(word for word in words if word not in self.words))
        if unknown:
            listed = ", ".join(f'"{word}"' for word in unknown[:3])
            return [f"the question has words that this model was not trained on ({listed})"]
        if not set(words) & set(self.things):
            return ["the question asks for nothing that this model was trained on"]
        return []

    def doubts_of_image(self, image: Image.Image) -> list[str]:
        found = statistics(image)
        if all(low <= found[name] <= high for name, (low, high) in self.image.items()):
            return []
        return ["the image is unlike those that this model was trained on"]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_familiar(folder: Path) -> Familiar | None:
    """Read what the model in a folder knows; None where it does not say."""
    try:
        described = json.loads((folder / FILE).read_text(encoding="utf-8"))
        image = {name: tuple(described["image"][name]) for name in STATISTICS}
        return Familiar(
            described["knows"], described["words"], described["things"], image, described.get("names", False)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def statistics(image: Image.Image) -> dict[str, float]:
    """Shares of the pixels of a small copy of the image: paper, strokes, and of the strokes those in colour.

    Paper is a cubic surface for each channel, fitted with the least sum of absolute differences.
    """
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    levels = np.asarray(small, dtype=np.float64).reshape(-1, 3) / 255
    y, x = (axis.reshape(-1) for axis in np.meshgrid(*(np.linspace(-1, 1, SIDE),) * 2, indexing="ij"))
    terms = np.stack([np.ones_like(y), y, x, y * x, y**3, x**3], axis=1)
    weights = np.ones((len(levels), 1))
    for _ in range(15):  # iteratively reweighted least squares
        weighed = terms * weights
        surface = np.linalg.solve(weighed.T @ terms, weighed.T @ levels)
        distance = np.abs(levels - terms @ surface).max(axis=1)
        weights = 1 / np.maximum(distance, 0.01)[:, None]
    strokes = distance > STROKE
    saturation = (levels.max(axis=1) - levels.min(axis=1))[strokes]
    return {
        "paper": float((distance < PAPER).mean()),
        "strokes": float(strokes.mean()),
        "colour": float((saturation > COLOURED).mean()) if len(saturation) else 0.0,
    }


def fit(images: Iterable[Image.Image]) -> dict[str, tuple[float, float]]:
    """Compute the bounds of the statistics of these images, widened by a twentieth at each end."""
    found = [statistics(image) for image in images]
    bounds = {}
    for name in STATISTICS:
        values = [one[name] for one in found]
        room = 0.05 * (max(values) - min(values))
        bounds[name] = (round(max(0.0, min(values) - room), 4), round(min(1.0, max(values) + room), 4))
    return bounds
