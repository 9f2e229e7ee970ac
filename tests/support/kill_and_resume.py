"""Kill a training run at random moments (SIGKILL), resume it, and count how many end bit-equal to the unbroken one.

    python tests/support/kill_and_resume.py [--kills 20] [--seed 0]

Small model, one thread, dropout on, a checkpoint every other step, so that some moments lie within the writing of one.
What is compared: the losses and perplexities of every step, and the bytes of the final and the best model.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot  # noqa: F401  (once, before the processes part)
import torch
from trainings import HISTORY, run, told, weights, write_start
from transformers.utils import logging

KEYS = {
    "max_steps": 16,
    "save_every": 2,
    "eval_every": 7,
    "validation_share": 0.2,
    "train": ["vision", "connector", "decoder"],
    "warmup_steps": 3,
}


def in_child(folder: Path, out: str, resume: bool) -> int:
    """Train in a process of its own, which shares what is imported; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.dup2(null, sys.stderr.fileno())
        run(folder, out, resume, **KEYS)
        code = 0
    finally:
        os._exit(code)


def trained(folder: Path, out: str, resume: bool) -> None:
    if status := os.waitpid(in_child(folder, out, resume), 0)[1]:
        raise RuntimeError(f"training in {folder / out} ended with status {status}")


def killed(folder: Path, out: str, after: float) -> bool:
    """Whether the run was still at work when it was killed, `after` seconds from its start."""
    child = in_child(folder, out, resume=False)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    moments = random.Random(options.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_start(Path(temporary), rows=30, dropout=0.1)
        start = time.perf_counter()
        trained(folder, "unbroken", resume=False)
        whole = time.perf_counter() - start
        expected = [told(folder / "unbroken"), *(weights(folder / "unbroken" / part) for part in ("", "best"))]
        for number in range(1, options.kills + 1):
            while True:
                after = moments.uniform(0, whole)
                if killed(folder, "broken", after):
                    break
                shutil.rmtree(folder / "broken")
            broken = folder / "broken"
            steps = (broken / HISTORY).read_bytes().count(b"\n") if (broken / HISTORY).is_file() else 0
            checkpoints = sorted(path.name for path in (broken / "checkpoints").glob("*"))
            trained(folder, "broken", resume=True)
            found = [told(broken), *(weights(broken / part) for part in ("", "best"))]
            equal += found == expected
            print(
                f"{number}: killed after {after:.2f} s at step {steps} ({', '.join(checkpoints) or 'no checkpoint'}): "
                f"{'equal' if found == expected else 'DIFFERENT'}",
                flush=True,
            )
            shutil.rmtree(broken)
    print(f"{equal} of {options.kills} resumed runs are bit-equal to the unbroken one")
    return equal < options.kills


if __name__ == "__main__":
    sys.exit(main())
