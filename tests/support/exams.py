"""Rows of POPE about small random images, and files of predictions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

KEYS = ["id", "question", "wanted", "got", "parsed", "score", "seconds"]


def write_images(folder: Path) -> None:
    """Four images, 0.png to 3.png."""
    rng = np.random.default_rng(0)
    for number in range(4):
        levels = rng.integers(0, 256, (40 + 8 * number, 40, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")


def pope_rows(count: int) -> list[dict]:
    kinds = ("adversarial", "popular", "random")
    return [
        {
            "id": f"p{i}",
            "image": f"{i % 4}.png",
            "question": f"Is there a cat{'?' * (1 + i % 5)}",
            "answer": ("yes", "no")[i % 2],
            "category": kinds[i % 3],
        }
        for i in range(count)
    ]


def evaluator(firebolt, checkpoint, tokens: int):
    """`firebolt eval` of a checkpoint, with answers of at most so many tokens."""

    def evaluate(name, data, *arguments, out="out"):
        given = ["--checkpoint", checkpoint, "--max-new-tokens", tokens, "--out", out, "--json"]
        return firebolt("eval", name, "--data", data, *given, *arguments)

    return evaluate


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(rows: list[dict]) -> list[dict]:
    return sorted(({key: row[key] for key in KEYS if key != "seconds"} for row in rows), key=lambda row: str(row["id"]))
