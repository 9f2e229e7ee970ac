"""Run the property tests with many random examples until one fails or the time is up; `make fuzz` calls this.

The files come in random order, so that a hunt that ends early does not always leave out the same ones. Hypothesis keeps
what it finds (.hypothesis), and the next run starts with it.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NOTHING_SELECTED = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="?", default="", help="only tests with this in their name or file, such as film")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    files = [path for path, text in texts.items() if "from hypothesis" in text and options.op in f"{path.name} {text}"]
    random.shuffle(files)
    hunted = 0
    for path in files:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "hypothesis", "-k", options.op, str(path)]
        name = path.relative_to(TESTS.parent)
        try:
            hunt = subprocess.run(
                command,
                cwd=TESTS.parent,
                env={**os.environ, "HYPOTHESIS_PROFILE": "fuzz"},
                capture_output=True,
                text=True,
                timeout=max(0, end - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: the time is up; no counterexample so far")
            return 0
        if hunt.returncode == NOTHING_SELECTED:
            continue
        hunted += 1
        if hunt.returncode:
            print(hunt.stdout + hunt.stderr)
            return hunt.returncode
        print(f"{name}: {hunt.stdout.strip().splitlines()[-1]}", flush=True)
    if not hunted:
        print(f"no property test has {options.op!r} in its name")
    return 0 if hunted else 1


if __name__ == "__main__":
    sys.exit(main())
