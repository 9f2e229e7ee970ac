"""Table of transformers' test suites for both models: run, passed, skipped and why (docs/suites.md).

    python tests/support/suites.py --out docs/suites.md

Runs tests/model/suites and leaves with 1 where a check fails; nothing is written then.
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import transformers
from suite_subjects import SUBJECTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "model" / "suites"
SUITES = {
    "test_model_checks": "ModelTesterMixin",
    "test_generation_checks": "GenerationTesterMixin",
    "test_processor_checks": "ProcessorTesterMixin",
    "test_image_processor_checks": "ImageProcessingTestMixin",
    "test_pipeline_checks": "PipelineTesterMixin",
}
NAMES = [subject.name for subject in SUBJECTS]
HEAD = """# transformers' test suites

Written by `make test-suites`, with transformers {version}. Its wheel holds no test suites, and nothing of them is
copied here: [tests/model/suites](../tests/model/suites) asks the same of both models, in checks of our own under their
names. What they do not ask of every model is in the tests beside that folder.

A check counts once for each of its settings. Skipped is what cannot be, for the reason that stands beside it.
"""


class Results:
    """What came of each check: file -> check -> model -> list of "passed", or of a reason to skip."""

    def __init__(self) -> None:
        self.checks: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when != "call" and not report.skipped:
            return
        file, _, test = report.nodeid.rpartition("::")
        name, _, settings = test.removeprefix("test_").partition("[")
        models = [model for model in NAMES if model in settings] or NAMES
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else "passed"
        for model in models:
            self.checks[Path(file).stem][name][model].append(reason)


def page(results: Results) -> str:
    lines = [HEAD.format(version=transformers.__version__)]
    counts = " | ".join(f"{name}: run | passed | skipped" for name in NAMES)
    lines += [f"| suite | {counts} |", "| --- |" + " ---: |" * 3 * len(NAMES)]
    for file, suite in SUITES.items():
        cells = []
        for model in NAMES:
            found = [one for check in results.checks[file].values() for one in check[model]]
            passed = found.count("passed")
            cells += [len(found), passed, len(found) - passed]
        lines.append(f"| {suite} | " + " | ".join(map(str, cells)) + " |")
    for file, suite in SUITES.items():
        lines += ["", f"## {suite}", "", f"| check | {' | '.join(NAMES)} |", "| --- |" + " --- |" * len(NAMES)]
        for name, check in results.checks[file].items():
            if name == "not_here":
                lines += [f"| {_said(reason)} |" for reason in check[NAMES[0]]]
            else:
                lines.append(f"| {name} | {' | '.join(_cell(check[model]) for model in NAMES)} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[str]) -> str:
    reasons = sorted({one for one in found if one != "passed"})
    passed = found.count("passed")
    said = ["passed" if passed == 1 else f"{passed} passed"] if passed else []
    return "; ".join([*said, *(f"skipped: {reason}" for reason in reasons)])


def _said(reason: str) -> str:
    what, _, why = reason.partition(":")
    return f"{what} | " + " | ".join([f"skipped:{why}"] * len(NAMES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    out = parser.parse_args().out
    results = Results()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), str(FOLDER)], plugins=[results])
    if code or results.failed:
        print("\n".join(results.failed), file=sys.stderr)
        return 1
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(re.sub(r"[ \t]+$", "", page(results), flags=re.M), encoding="utf-8")
    temporary.replace(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
