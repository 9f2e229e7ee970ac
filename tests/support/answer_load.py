"""Ask the embedded model about many images of random sizes in one process, and again with a SIGKILL in the middle.

    python tests/support/answer_load.py [--answers 500] [--seed 0]

Prints how far the resident memory rose from the second 50 answers to the last (medians, since images of all sizes pass
through it; Linux: it is read from /proc), and whether every answer is there once, also after the kill. Exit code 1
where memory rose by more than 2 % or one is not.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PART = 50
ALLOWED = 1.02
SIDES = (16, 1200)


def write_questions(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        height, width = rng.integers(*SIDES, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f"{number}.png")
        question = "what digit is at the top left?" + " please" * int(rng.integers(0, 20))
        rows.append(json.dumps({"id": number, "image": f"{number}.png", "question": question}))
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def start(folder: Path, out: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "firebolt_vl", "ask", "--batch", "questions.jsonl", "--out", out]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def answered(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def watched(run: subprocess.Popen, out: Path) -> list[tuple[int, int]]:
    """(answers, resident pages) seen while the run goes on."""
    seen = []
    while run.poll() is None:
        try:
            seen.append((answered(out), int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])))
        except (OSError, ValueError, IndexError):
            break  # it is just ending
        time.sleep(0.05)
    if run.wait():
        raise RuntimeError(f"the run ended with status {run.returncode}")
    return seen


def each_once(out: Path, count: int) -> bool:
    return [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()] == list(range(count))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_questions(folder, options.answers, options.seed)
        seen = watched(start(folder, "whole.jsonl"), folder / "whole.jsonl")
        first, last = (
            statistics.median(pages for count, pages in seen if from_ <= count < from_ + PART)
            for from_ in (PART, options.answers - PART)
        )
        rise = last / first
        whole = each_once(folder / "whole.jsonl", options.answers)
        print(f"{options.answers} answers: memory of the last {PART} is {rise:.3f} times that of the second; ", end="")
        print("every answer is there once" if whole else "ANSWERS ARE MISSING OR DOUBLE")

        broken = folder / "broken.jsonl"
        run = start(folder, "broken.jsonl")
        while run.poll() is None and answered(broken) < options.answers // 2:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        killed = run.wait() == -signal.SIGKILL
        there = answered(broken)
        watched(start(folder, "broken.jsonl"), broken)
        again = each_once(broken, options.answers) and broken.read_bytes() == (folder / "whole.jsonl").read_bytes()
        print(f"killed after {there} answers and started again: ", end="")
        print("the same file as of the unbroken run" if again else "NOT the same file as of the unbroken run")
    return not (rise <= ALLOWED and whole and killed and again)


if __name__ == "__main__":
    sys.exit(main())
