"""Measure how often the embedded model's doubts are wrong: false alarms in its own exam, and what they miss elsewhere.

python -m firebolt_vl.evaluate.familiar_exam [FOLDER]          measures it
python -m firebolt_vl.evaluate.familiar_exam [FOLDER] --write  writes FOLDER/familiar.json first, from validation digits
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from ..model.places import find
from .digits import COLOURS, POSITIONS, draw
from .exam import IMAGE_SIDE, pose, sample_scenes
from .familiar import FILE, WORD, Familiar, fit, read_familiar
from .questions import KINDS, SAMPLES, wordings

KNOWS = (
    "it knows coloured handwritten digits on plain paper, and questions about which digit or colour is at a corner, "
    "where one is, whether it is there, and how many there are"
)
SCENES, CROPS = 2000, 200
OTHER_QUESTIONS = (
    *("is there a dog?", "what is in the image?", "describe the picture", "how old is the man?", "what do you see?"),
    *("who is this?", "is it raining?", "what is the text at the top left?", "where is the cat?", "how many people?"),
    *("what colour is the car?", "are there any flowers?", "is this a photo?", "what is 7 times 8?", "why?"),
    *("read the sign", "welche Ziffer ist oben links?", "¿qué número hay?", "左上の数字は何ですか", "ignore the image"),
)


def known() -> tuple[list[str], list[str]]:
    """The words of all wordings that are trained on, and those of them that name what can be asked for."""
    digits = [form for digit in range(10) for form in (str(digit), f"{digit}s")]
    corners = [word for position in POSITIONS for word in position.split()]
    things = [*digits, *COLOURS, *corners, "digit", "digits", "number", "numbers"]
    asked = [text.format(**SAMPLES) for kind in KINDS for group in wordings(kind, False) for text in group]
    words = {word for text in asked for word in WORD.findall(text.casefold())} | {"an"}
    return sorted(words | set(things)), sorted(set(things))


def photographs(crops: int = CROPS) -> Iterator[Image.Image]:
    """The two that scikit-learn ships, whole and in random pieces of a third of their sides at least."""
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(levels) for levels in load_sample_images().images]
    yield from whole
    for number in range(crops):
        image = whole[number % len(whole)]
        width, height = (int(side * rng.uniform(0.33, 1)) for side in image.size)
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        yield image.crop((left, top, left + width, top + height))


def make() -> Familiar:
    """Fit the statistics to the digits by which choices are made, of which the exam has none."""
    scenes = sample_scenes(np.random.default_rng(1), SCENES, "validation")
    return Familiar(KNOWS, *known(), fit(draw(scene, IMAGE_SIDE) for scene in scenes))


def measure(familiar: Familiar, count: int = SCENES) -> dict[str, float]:
    """Shares of false alarms, over the exam's layouts and its two kinds of wordings, and of alarms where one is due."""
    wrong: dict[str, list[bool]] = {}
    drawn, asked = pose(count, 0, "held-out")
    for scene in drawn:
        found = bool(familiar.doubts_of_image(draw(scene, IMAGE_SIDE)))
        wrong.setdefault(f"false alarms, images: {scene.layout}", []).append(found)
    for one in asked:
        kind = "held-out wordings" if one.question.held_out else "trained wordings"
        found = bool(familiar.doubts_of_question(one.question.text))
        wrong.setdefault(f"false alarms, questions: {kind}", []).append(found)
    wrong["alarms, photographs"] = [bool(familiar.doubts_of_image(image)) for image in photographs()]
    wrong["alarms, other questions"] = [bool(familiar.doubts_of_question(text)) for text in OTHER_QUESTIONS]
    return {name: float(np.mean(marks)) for name, marks in wrong.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=None, help="a checkpoint; default: the one that ships")
    parser.add_argument("--write", action="store_true", help=f"write {FILE} first")
    arguments = parser.parse_args()
    folder = arguments.folder or find("tiny")
    if arguments.write:
        make().write(folder)
    familiar = read_familiar(folder)
    if familiar is None:
        raise SystemExit(f"{folder} has no {FILE}; --write makes it")
    for name, bounds in familiar.image.items():
        print(f"{name:<42} {bounds[0]:.4f} to {bounds[1]:.4f}")
    for name, share in measure(familiar).items():
        print(f"{name:<42} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
