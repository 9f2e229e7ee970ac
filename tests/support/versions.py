"""Run tests with the oldest and with the newest versions that the package admits: `make test-versions`.

Two virtual environments are made anew in out/versions. `newest` has what a plain `pip install` takes, without
constraints. `oldest` has the lower bounds of setup.py for torch, transformers, triton, numpy, pillow, peft and
accelerate, each with its newest patch. The package is installed as a user does, not as an editable one. What was run
is told on standard output and, with --out, as a table in a Markdown file.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ("oldest", "newest")
VARIED = ("torch", "triton", "transformers", "numpy", "pillow", "peft", "accelerate")
TESTS = ("tests/model", "tests/firebolt_vl")
BEGIN = "<!-- make test-versions -->"
REQUIREMENT = re.compile(r'"(?P<name>[a-z0-9-]+)>=(?P<oldest>[\d.]+)')


class Row(NamedTuple):
    """What one environment was and gave."""

    environment: str
    versions: dict[str, str]
    passed: int
    failed: int
    skipped: int
    seconds: int

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed


def lower_bounds() -> dict[str, str]:
    """The oldest version of each varied package that setup.py admits."""
    found = {match["name"]: match["oldest"] for match in REQUIREMENT.finditer((ROOT / "setup.py").read_text("utf-8"))}
    return {name: found[name] for name in VARIED}


def pinned(version: str) -> str:
    """The newest patch of a minor version: 5.23 -> ==5.23.*"""
    major, minor = [*version.split("."), "0"][:2]
    return f"=={major}.{minor}.*"


def install(environment: str, folder: Path, torch_index: str | None) -> Path:
    """Make the virtual environment and install the package with its tests into it; returns its folder of programs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    constraints = folder / "constraints.txt"
    oldest = {name: pinned(version) for name, version in lower_bounds().items()} if environment == "oldest" else {}
    constraints.write_text("".join(f"{name}{version}\n" for name, version in oldest.items()), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def pip(*arguments: str) -> None:
        command = [programs / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, *arguments]
        subprocess.run(command, check=True)

    # torch comes first and alone, as in the Makefile: an index that offers one build of it serves nothing else.
    pip(*(["--index-url", torch_index] if torch_index else []), "torch")
    pip(f"{ROOT}[train,video,eval,trl,serve,test]")
    return programs


def installed(programs: Path) -> dict[str, str]:
    """The versions of the varied packages in an environment."""
    listed = subprocess.run(
        [programs / "python", "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    versions = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    return {name: versions.get(name, "none") for name in VARIED}


def run(environment: str, tests: list[str], torch_index: str | None) -> Row:
    programs = install(environment, ROOT / "out" / "versions" / environment, torch_index)
    versions = installed(programs)
    print(f"{environment}: {', '.join(f'{name} {version}' for name, version in versions.items())}", flush=True)
    start = time.monotonic()
    # Neither pytest nor what it starts may find the folders of the repository in the place of the installed package.
    process = subprocess.Popen(
        [programs / "pytest", "-n", "2", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": str(Path(__file__).parent),  # where scripts beside this one find each other all the same
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if re.search(r"\d+ (passed|failed|error)", line) else last
    process.wait()
    counts = {
        name: sum(map(int, re.findall(rf"(\d+) {name}", last))) for name in ("passed", "failed", "skipped", "error")
    }
    failed = counts["failed"] + counts["error"]
    if process.returncode and not failed:
        failed = 1  # pytest itself did not come to its end
    return Row(environment, versions, counts["passed"], failed, counts["skipped"], round(time.monotonic() - start))


def markdown(rows: list[Row], tests: list[str]) -> str:
    """The table of docs/versions.md."""
    names = ("environment", *VARIED, "passed", "failed", "skipped", "seconds")
    told = " and ".join(f"`{path}`" for path in tests)
    lines = [
        "# Versions that the tests pass with",
        "",
        f"`make test-versions` runs {told} with the oldest and the newest versions that `setup.py` admits,",
        "each in an environment of its own, on the machine's CPU. `make test` runs everything with those of",
        "`constraints.txt`, which lie between them.",
        "",
        BEGIN,
        f"| {' | '.join(names)} |",
        f"| {' | '.join('---' for _ in names)} |",
    ]
    for row in rows:
        cells = (row.environment, *row.versions.values(), row.passed, row.failed, row.skipped, row.seconds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=f"{' or '.join(ENVIRONMENTS)} (both)")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help=f"what to run ({' '.join(TESTS)})")
    parser.add_argument("--torch-index", help="the package index to take torch from")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    chosen = options.environments or list(ENVIRONMENTS)
    if unknown := [name for name in chosen if name not in ENVIRONMENTS]:
        parser.error(f"ENVIRONMENT is {', '.join(unknown)}; expected {' or '.join(ENVIRONMENTS)}")
    rows = [run(environment, options.tests, options.torch_index) for environment in chosen]
    table = markdown(rows, options.tests)
    print(table[table.index(BEGIN) :])
    if options.out:
        temporary = options.out.with_name(options.out.name + ".tmp")
        temporary.write_text(table, encoding="utf-8")
        temporary.replace(options.out)
    return 0 if all(row.is_good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
