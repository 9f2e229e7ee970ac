"""The hunt's side in pytest (`fuzz.py` loads it as a plugin): profiles, counting, and failures that are kept.

A kept failure is the sequence of choices by which hypothesis drew the example, in tests/regressions/*.json; replaying
runs a test on it alone, with nothing random. It stays the same example as long as the test's strategies do; should they
change it becomes another, valid one (the text kept beside it says what it was).
"""

import base64
import functools
import importlib
import json
import os
import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import ExampleDatabase
from hypothesis.errors import HypothesisException

EXAMPLES_A_PASS = 200
LINES_KEPT = 40


class Failure(NamedTuple):
    """An example that a test fails, or once failed."""

    test: str
    """pytest's name of it: file, function, parameters."""
    choices: str
    """base64 of hypothesis' own coding."""
    example: str
    """What it was, for people."""


def kept_failures(folder: Path) -> list[Failure]:
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [Failure(**entry) for file in files for entry in json.loads(file.read_text(encoding="utf-8"))]


def keep(folder: Path, failure: Failure) -> Path:
    """Add a failure to the file of its test module, unless it is there; returns the file."""
    name = failure.test.split("::")[0].removesuffix(".py").replace("/", ".").removeprefix("tests.")
    file = folder / f"{name}.json"
    known = [Failure(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
    if (failure.test, failure.choices) not in {(other.test, other.choices) for other in known}:
        folder.mkdir(exist_ok=True)
        text = json.dumps([entry._asdict() for entry in sorted([*known, failure])], indent=1)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(file)
    return file


class Examples(ExampleDatabase):
    """Hypothesis' memory of failing examples, by the test that is running instead of by its source."""

    def __init__(self):
        super().__init__()
        self.test = ""
        self.of_test: dict[str, set[bytes]] = defaultdict(set)

    def fetch(self, key):
        return iter([] if self._is_secondary(key) else sorted(self.of_test[self.test]))

    def save(self, key, value):
        if not self._is_secondary(key):
            self.of_test[self.test].add(value)

    def delete(self, key, value):
        if not self._is_secondary(key):
            self.of_test[self.test].discard(value)

    @staticmethod
    def _is_secondary(key: bytes) -> bool:
        return key.endswith((b".secondary", b".pareto"))


class Plugin:
    """Runs property tests on new random examples until the deadline, or on the kept ones alone."""

    def __init__(self):
        self.replaying = "FUZZ_REPLAY" in os.environ
        self.report_file = Path(os.environ["FUZZ_REPORT"])
        self.deadline = float(os.environ.get("FUZZ_DEADLINE", "inf"))
        self.examples: Counter[str] = Counter()
        self.found: list[Failure] = []
        self.failing = self.interrupted = False
        self.emulating = os.environ.get("FUZZ_ENGINE") == "emulator"
        self.database = Examples()
        for failure in kept_failures(Path(os.environ["FUZZ_REGRESSIONS"])):
            self.database.of_test[failure.test].add(base64.b64decode(failure.choices))

    def register(self) -> None:
        settings.register_profile(
            "hunt",
            max_examples=EXAMPLES_A_PASS,
            phases=[Phase.reuse] if self.replaying else [Phase.reuse, Phase.generate, Phase.shrink],
            database=self.database,
            deadline=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("hunt")

    def wrap(self, run):
        """The body of a property test, which hypothesis calls with every example."""

        @functools.wraps(run)
        def counted(*args, **kwargs):
            if time.time() > self.deadline and not self.failing:
                self.interrupted = True
                raise KeyboardInterrupt
            try:
                emulated(run, *args, **kwargs) if self.emulating else run(*args, **kwargs)
            except HypothesisException:  # an example that `assume` rejects, and the like: it does not count
                raise
            except Exception:
                self.failing = True
                self.examples[self.database.test] += 1
                raise
            self.examples[self.database.test] += 1

        return counted

    def pytest_collection_modifyitems(self, items):
        wrapped = set()
        for item in items:
            if hasattr(item.function, "hypothesis") and item.function not in wrapped:
                wrapped.add(item.function)
                item.function.hypothesis.inner_test = self.wrap(item.function.hypothesis.inner_test)
        if self.replaying:
            items[:] = [item for item in items if item.nodeid in self.database.of_test]
        else:
            random.SystemRandom().shuffle(items)

    def pytest_runtest_setup(self, item):
        self.database.test = item.nodeid

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if report.when == "call" and report.failed and self.database.of_test[item.nodeid]:
            choices = min(self.database.of_test[item.nodeid], key=lambda value: (len(value), value))
            text = base64.b64encode(choices).decode()
            self.found.append(Failure(item.nodeid, text, example_in(report.longreprtext)))

    def pytest_sessionfinish(self):
        report = {
            "examples": self.examples,
            "found": [failure._asdict() for failure in self.found],
            "interrupted": self.interrupted,
        }
        self.report_file.write_text(json.dumps(report), encoding="utf-8")


def emulated(run, *args, **kwargs) -> None:
    """The body of a test, whose kernels run compiled in the emulator; what this finds is a failure."""
    with importlib.import_module("firebolt_vl.bench.emulate.run").emulating() as emulation:
        run(*args, **kwargs)
    assert not emulation.findings, "\n".join(map(str, emulation.findings))


def example_in(text: str) -> str:
    """The example as hypothesis writes it at the end of pytest's text of a failure."""
    lines = [line.removeprefix("E").strip() for line in text.splitlines()]
    titles = ("Falsifying example", "Failing test case")  # which of them depends on hypothesis' version
    starts = [number for number, line in enumerate(lines) if line.startswith(titles)]
    return "\n".join(lines[starts[-1] : starts[-1] + LINES_KEPT]) if starts else ""


def pytest_configure(config):
    if "FUZZ_REPORT" in os.environ:
        plugin = Plugin()
        plugin.register()
        config.pluginmanager.register(plugin)
