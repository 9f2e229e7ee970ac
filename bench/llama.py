"""llama.cpp as one of those that answer: its own llama-bench, in a process for each answer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("out/llama")
BENCH = "llama-bench.exe" if sys.platform == "win32" else "llama-bench"
# Name of a row -> what its weights are in, in files that `llama_build` makes.
LLAMA = {"llama-bf16": "bf16", "llama-q8_0": "q8_0", "llama-q4_0": "q4_0"}
# An image of 640 x 480 is so many tokens to LFM2-VL; its decoder reads them like words.
IMAGE_TOKENS = 252
CONTAINS = f"decoder alone: {IMAGE_TOKENS} image tokens, text; before them our tower and grids, for theirs"

# Linux counts to a process's peak of memory what its parent had when it was started, models and all: so a small process
# starts it, and tells its peak.
IN_BETWEEN = """
import json, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
try:
    from resource import RUSAGE_CHILDREN, getrusage
    peak = getrusage(RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
except ImportError:
    peak = 0
print(json.dumps({"code": done.returncode, "output": done.stdout, "peak": peak}))
"""


def is_installed(folder: Path = FOLDER) -> bool:
    """Return whether `make bench-llama` has made its folder."""
    return (folder / BENCH).is_file()


class LlamaProcess:
    """Answers of one of its files: `answer(n)` gives when each of n tokens was there, in seconds from the start."""

    def __init__(self, file: Path, prompt_tokens: int, threads: int, see: Callable[[], float]):
        self.file, self.prompt, self.threads, self.see = file, prompt_tokens + IMAGE_TOKENS, threads, see
        self.peak = 0

    def answer(self, new_tokens: int) -> list[float]:
        """Take the time of the prompt, and of prompt and answer together; tokens come at one pace between.

        Before the prompt stand the seconds that `see()` takes for the image.
        """
        seen = self.see()
        tests = ["-p", self.prompt, "-n", 0, "-pg", f"{self.prompt},{new_tokens - 1}"] if new_tokens > 1 else []
        tests = tests or ["-p", self.prompt, "-n", 0]
        found = self._run([*tests, "-r", 1, "-t", self.threads, "-o", "json"])
        by_length = {one["n_gen"]: one["avg_ns"] / 1e9 for one in found}
        first = by_length[0]
        pace = (by_length[new_tokens - 1] - first) / (new_tokens - 1) if new_tokens > 1 else 0.0
        return [seen + first + number * pace for number in range(new_tokens)]

    def _run(self, options: list) -> list[dict]:
        command = [sys.executable, "-c", IN_BETWEEN, self.file.parent / BENCH, "-m", self.file, *options]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True)
        told = json.loads(done.stdout)
        if told["code"] != 0:
            raise RuntimeError(f"{BENCH} ended with exit code {told['code']} for {self.file}; make bench-llama again")
        self.peak = max(self.peak, told["peak"])
        return json.loads(told["output"])


__all__ = ["BENCH", "CONTAINS", "FOLDER", "LLAMA", "LlamaProcess", "is_installed"]
