"""Files of questions and of answers for the tests of `ask --batch`."""

import json
from pathlib import Path

TOKENS = 6


def write(path: Path, rows: list) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions(count: int) -> list[dict]:
    """About each of four images in turn, about two, about none; of several lengths."""
    asked = []
    for i in range(count):
        row = {"image": f"{i % 4}.png", "question": "why" + "?" * (1 + 5 * (i % 3)), "id": f"q{i}"}
        if i % 6 == 4:
            row["image"] = ["1.png", "3.png"]
        if i % 6 == 5:
            del row["image"]
        asked.append(row)
    return asked
