"""Run the property tests on new random examples until one fails or the time is up; `make fuzz` calls this.

Each core takes one test file after the other, in random order and again and again, 200 examples a test. How many
examples each test has seen is told at the end. A failing example is shrunk, printed and kept in tests/regressions,
which the normal test run replays (`test_regressions.py`). Exit code: 0 nothing found, 1 a counterexample, 2 no such
tests.

With the engine "emulator" kernels run compiled, bfloat16 too, and every byte is watched; what is found is printed and
not kept, since the interpreter cannot replay it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzzing import Failure, keep, kept_failures

SUPPORT = Path(__file__).resolve().parent
NOTHING_SELECTED = 5
# The environment in which kernels run in Triton's interpreter, or compiled in the emulator.
ENGINES = {"interpreter": {}, "emulator": {"FUZZ_ENGINE": "emulator", "TRITON_INTERPRET": "0"}}
# What a pass may take beyond the end: a failure that was found is still made small.
GRACE_SECONDS = 120


class Pass:
    """One pytest over one file, in a process of its own."""

    def __init__(self, tests: Path, file: Path, op: str, scratch: Path, end: float, engine: str):
        self.file, self.log, self.report_file = file, scratch / "log", scratch / "report.json"
        self.report_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-p", "fuzzing", "-p", "no:cacheprovider", "-x", "-q"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "-m", "hypothesis", *(["-k", op] if op else []), str(file)],
                cwd=tests.parent,
                env=environment(tests)
                | ENGINES[engine]
                | {"FUZZ_REPORT": str(self.report_file), "FUZZ_DEADLINE": str(end)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def report(self) -> dict:
        try:
            return json.loads(self.report_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"examples": {}, "found": [], "interrupted": False}


def environment(tests: Path) -> dict[str, str]:
    paths = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "FUZZ_REGRESSIONS": str(tests / "regressions")}
    # With a seed hypothesis would not replay what is kept.
    return {name: value for name, value in os.environ.items() if name != "TEST_SEED"} | ours


def replay(tests: Path) -> tuple[int, str]:
    """Run the tests that have kept failures on these alone: an exit code and what pytest says."""
    wanted = {failure.test for failure in kept_failures(tests / "regressions")}
    if not wanted:
        return 0, ""
    files = sorted({name.split("::")[0] for name in wanted})
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "fuzzing", "-p", "no:cacheprovider", "-q", *files],
            cwd=tests.parent,
            env=environment(tests) | {"FUZZ_REPORT": str(report), "FUZZ_REPLAY": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seen = json.loads(report.read_text(encoding="utf-8"))["examples"] if report.exists() else {}
    code, said = done.returncode, done.stdout
    if missed := sorted(wanted - set(seen)):
        code, said = code or 1, f"{said}kept failures of tests that are not there any more: {', '.join(missed)}\n"
    return code, said


def property_files(tests: Path, op: str) -> list[Path]:
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(tests.rglob("test_*.py"))}
    return [path for path, text in texts.items() if "from hypothesis" in text and op in f"{path.name} {text}"]


def hunt(tests: Path, op: str, minutes: float, processes: int, engine: str = "interpreter") -> int:
    files, waiting = property_files(tests, op), []
    end = time.time() + 60 * minutes
    examples: Counter[str] = Counter()
    running: dict[int, Pass] = {}
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        for slot in range(processes):
            Path(scratch, str(slot)).mkdir()
        try:
            while files and (running or time.time() < end):
                for slot in range(processes):
                    if slot not in running and files and time.time() < end and not code:
                        waiting = waiting or random.sample(files, len(files))
                        running[slot] = Pass(tests, waiting.pop(), op, Path(scratch, str(slot)), end, engine)
                time.sleep(0.1)
                for slot, run in list(running.items()):
                    if time.time() > end + GRACE_SECONDS:
                        run.process.kill()
                        run.process.wait()
                    if run.process.poll() is None:
                        continue
                    del running[slot]
                    report = run.report()
                    examples.update(report["examples"])
                    if run.process.returncode == NOTHING_SELECTED:
                        files = [file for file in files if file != run.file]
                        waiting = [file for file in waiting if file != run.file]
                    elif run.process.returncode > 0 and not report["interrupted"]:
                        code = 1
                        print(run.log.read_text(encoding="utf-8"))
                        for found in report["found"] if engine == "interpreter" else ():
                            print(f"kept in {keep(tests / 'regressions', Failure(**found)).relative_to(tests.parent)}")
                        break
                    else:
                        counted = sum(report["examples"].values())
                        print(f"{run.file.relative_to(tests.parent)}: {counted} examples", flush=True)
                if code:
                    break
        finally:
            for run in running.values():
                run.process.kill()
                run.process.wait()
    if not files:
        print(f"no property test has {op!r} in its name", file=sys.stderr)
        return 2
    print_examples(examples)
    print("a counterexample was found" if code else "no counterexample was found")
    return code


def print_examples(examples: Counter) -> None:
    for name, number in sorted(examples.items()):
        print(f"{number:8}  {name}")
    print(f"{sum(examples.values()):8}  examples in all, of {len(examples)} tests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="?", default="", help="only tests with this in their name or file, such as film")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engine", choices=tuple(ENGINES), default="interpreter", help="what kernels run in")
    parser.add_argument("--tests", type=Path, default=SUPPORT.parent, help="the folder of the tests")
    options = parser.parse_args()
    if not 0 < options.minutes < float("inf") or options.processes < 1:
        parser.error("--minutes and --processes have to be above 0")
    return hunt(options.tests.resolve(), options.op, options.minutes, options.processes, options.engine)


if __name__ == "__main__":
    sys.exit(main())
