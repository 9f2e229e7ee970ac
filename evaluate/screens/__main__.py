"""Show the screens: python -m firebolt_vl.evaluate.screens OUT.png

One screen of each kind and split on one picture, questions about them on stdout, and how many are drawn in a second.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.writing import write_whole
from .drawing import draw
from .layouts import SCREENS
from .questions import KINDS, sample_question
from .sampling import SIDE, SPLITS, sample_scene
from .scenes import letters_of

TIMED = 200


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m firebolt_vl.evaluate.screens", description="Show the screens.")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    picture = Image.new("RGB", (SIDE * len(SCREENS), SIDE * len(SPLITS)))
    for row, (name, split) in enumerate(SPLITS.items()):
        for column, kind in enumerate(SCREENS):
            scene = sample_scene(rng, kind, split)
            picture.paste(draw(scene), (SIDE * column, SIDE * row))
            for question in (sample_question(rng, scene, asked, held_out=row > 0) for asked in KINDS):
                if question is not None:
                    print(f"{name}, {kind}: {question.text} {question.answer}")
    write_whole(given.out, lambda unfinished: picture.save(unfinished, "PNG"))
    print(speeds(rng))


def speeds(rng: np.random.Generator) -> str:
    """Return how many scenes are made up, drawn, and searched for their letters in a second of a core."""
    begun = time.process_time()
    scenes = [sample_scene(rng, SCREENS[i % len(SCREENS)], SPLITS["seen"]) for i in range(TIMED)]
    made = time.process_time()
    for scene in scenes:
        draw(scene)
    drawn = time.process_time()
    for scene in scenes:
        letters_of(scene)
    found = time.process_time()
    rates = [TIMED / (end - start) for start, end in ((begun, made), (made, drawn), (drawn, found))]
    return "in a second of a core: {:.0f} scenes made up, {:.0f} drawn, {:.0f} searched for their letters".format(
        *rates
    )


if __name__ == "__main__":
    main()
