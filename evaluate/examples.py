"""The example images and their questions: scenes of held-out digits, by seed.

python -m firebolt_vl.evaluate.examples        writes examples/*.png and examples/README.md
"""

import ast
from pathlib import Path

import numpy as np

from .digits import Scene, draw, sample_scene
from .questions import KINDS, Question, sample_question

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SIDE = 384
QUESTIONS = 4

# file name -> layout and seed; the seeds are the first six numbers, in the order of the names.
SCENES = {
    "digits-1": ("inside", 0),
    "digits-2": ("inside", 1),
    "digits-3-some-empty": ("empty", 2),
    "digits-4-clutter": ("clutter", 3),
    "digits-5-across-borders": ("across", 4),
    "digits-6-across-borders": ("across", 5),
}


def example(name: str) -> tuple[Scene, list[Question]]:
    """The scene of an example and its questions: the kinds in turn, from one that depends on the seed."""
    layout, seed = SCENES[name]
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, layout, "held-out")
    kinds = [KINDS[(i + QUESTIONS * seed) % len(KINDS)] for i in range(len(KINDS))]
    asked = (sample_question(rng, scene, kind, plain=True) for kind in kinds)
    return scene, [question for question in asked if question is not None][:QUESTIONS]


def first_line(file: Path) -> str:
    """The first line of a script's docstring."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    lines = [
        "# Examples",
        "",
        "Scripts that run as they stand, on a CPU, in less than a minute each.",
        "",
        "| script | what it shows |",
        "| --- | --- |",
        *(f"| [{file.name}]({file.name}) | {first_line(file)} |" for file in sorted(FOLDER.glob("*.py"))),
        "",
        "## Images",
        "",
        "Handwritten digits that the embedded model was not trained on (from scikit-learn's `load_digits`), drawn by",
        "`python -m firebolt_vl.evaluate.examples`. The answers are what is in the image.",
        "",
        "| image | question | answer |",
        "| --- | --- | --- |",
    ]
    for name in SCENES:
        scene, questions = example(name)
        draw(scene, SIDE).save(FOLDER / f"{name}.png", optimize=True)
        lines += [f"| [{name}.png]({name}.png) | {question.text} | {question.answer} |" for question in questions]
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
