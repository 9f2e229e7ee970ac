"""Run tests as on other CPUs, in random order and with other random numbers; `make test-machines` calls this.

The libraries choose their code by what the CPU has; each can be told to use less. So a CPU can play those with fewer
instructions, not those with more: these are left out, and a line says so. The table of a run of all tests is written to
docs/machines.md. A run on some machines replaces their rows there, if the page is of the same versions on a like CPU;
else its table is only printed, as is that of a part of the tests or of few examples (--quick). Exit code: 0 all passed,
1 some failed or could not run, 2 nothing to run.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from numpy._core._multiarray_umath import __cpu_dispatch__ as NUMPY_CODE

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "machines.md"
WORKERS = 2
QUICK_EXAMPLES = 10
"""Of each property, with --quick."""
# What torch calls them, from the fewest instructions to the most.
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
FAILED = "Failed on "
PACKAGES = ("torch", "triton", "numpy", "transformers", "hypothesis", "pytest")


class Machine(NamedTuple):
    """A CPU to play."""

    capability: str
    openblas: str
    """The CPU for which OpenBLAS, NumPy's, is to take its code."""
    threads: int

    def variables(self) -> dict[str, str]:
        """What makes the libraries take the code of such a CPU: torch's own, oneDNN, MKL, NumPy, OpenBLAS, libm."""
        onednn = {"DEFAULT": "SSE41", "AVX2": "AVX2", "AVX512": "AVX512_CORE"}[self.capability]
        mkl = {"DEFAULT": "SSE4_2", "AVX2": "AVX2", "AVX512": "AVX512"}[self.capability]
        beyond = {"DEFAULT": ("",), "AVX2": ("AVX512", "X86_V4"), "AVX512": ("AVX512_SPR",)}[self.capability]
        libm = "-AVX2,-FMA" if self.capability == "DEFAULT" else ""
        return {
            "GLIBC_TUNABLES": f"glibc.cpu.hwcaps={libm}",
            "ATEN_CPU_CAPABILITY": self.capability.lower(),
            "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
            "OPENBLAS_CORETYPE": self.openblas,
            "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in NUMPY_CODE if name.startswith(beyond)),
        }

    def environment(self, seed: int) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        # Threads that wait for others sleep: there may be more of them than cores.
        return self.variables() | threads | {"OMP_WAIT_POLICY": "passive", "TEST_SEED": str(seed)}


MACHINES = {
    "avx512": Machine("AVX512", "SkylakeX", threads=4),
    "avx2-haswell": Machine("AVX2", "Haswell", threads=4),
    "avx2-zen": Machine("AVX2", "Zen", threads=1),
    "sse": Machine("DEFAULT", "Nehalem", threads=1),
}


class Outcome(NamedTuple):
    passed: int
    failed: list[str]
    """Names of the tests."""
    skipped: int
    seconds: float


def why_not(machine: Machine) -> str | None:
    """Why this CPU cannot play that one, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"this CPU is {platform.machine()}; x86-64 alone can be told to use less"
    own = torch.backends.cpu.get_cpu_capability()
    if CAPABILITIES.index(machine.capability) > CAPABILITIES.index(own):
        return f"this CPU has no {machine.capability}, at most {own}"
    return None


def run(machine: Machine, tests: list[str], seed: int, quick: bool = False) -> Outcome:
    """Run the tests; quick: without those that are marked any_cpu, and with few examples of each property."""
    environment = os.environ | machine.environment(seed)
    if quick:
        environment["TEST_EXAMPLES"] = str(QUICK_EXAMPLES)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", "-n", str(WORKERS), "-q", "-p", "no:cacheprovider", "-r", "fE"]
        start = time.monotonic()
        command += [f"--junitxml={report}", *(["-m", "not any_cpu"] if quick else []), *tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        seconds = time.monotonic() - start
        if not report.exists():
            return Outcome(0, [f"pytest ended with {done.returncode} and no report"], 0, seconds)
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if has(case, "failure", "error")]
    skipped = sum(has(case, "skipped") for case in cases)
    if done.returncode and not failed:
        failed = [f"pytest ended with {done.returncode}"]
    return Outcome(len(cases) - skipped - len(failed), failed, skipped, seconds)


def has(case: ElementTree.Element, *children: str) -> bool:
    return any(case.find(child) is not None for child in children)


def row(name: str, outcome: Outcome, seed: int) -> str:
    """Write the outcome on a machine as a row of the table, in Markdown."""
    variables = " ".join(f"`{key}={value}`" for key, value in MACHINES[name].variables().items())
    numbers = outcome.passed, len(outcome.failed), outcome.skipped, round(outcome.seconds)
    return f"| {' | '.join(map(str, (name, MACHINES[name].threads, seed, *numbers, variables)))} |"


def failures(name: str, outcome: Outcome) -> str:
    """List the tests that failed on a machine."""
    return "\n".join([f"{FAILED}{name}:", "", *(f"- `{test}`" for test in outcome.failed)])


def table(rows: dict[str, str], failed: dict[str, str]) -> str:
    """Join rows and lists of failures by machine, in the order of `MACHINES`."""
    lines = [
        "| machine | threads | seed | passed | failed | skipped | seconds | variables |",
        "|---|---|---|---|---|---|---|---|",
        *(rows[name] for name in MACHINES if name in rows),
    ]
    return "\n\n".join(["\n".join(lines), *(failed[name] for name in MACHINES if name in failed)]) + "\n"


def head() -> str:
    """Say what the page is and with what it was made."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        "# The tests on other CPUs\n\n"
        "One CPU plays four: the variables tell each library which instructions it may use. Tests run in random order, "
        f"with another seed on each machine, in {WORKERS} processes of so many threads. Written by\n\n"
        "    make test-machines\n\n"
        f"on {platform.system()} {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, {versions}.\n\n"
    )


def read_page(page: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Read rows and lists of failures by machine; None if the page was made with something else than is here."""
    if not page.startswith(head()):
        return None
    first, *lists = page.removeprefix(head()).rstrip("\n").split(f"\n\n{FAILED}")
    rows = {name: line for line in first.splitlines() if (name := line.split("|")[1].strip()) in MACHINES}
    return rows, {of.partition(":")[0]: FAILED + of for of in lists}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", default="", help="files and folders, with spaces between them; all if empty")
    parser.add_argument("--machines", default="", help=f"of {', '.join(MACHINES)}; all if empty")
    parser.add_argument("--seed", default="", help="of the first machine, the next has the next; drawn if empty")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"leave out tests marked any_cpu, take {QUICK_EXAMPLES} examples of each property",
    )
    options = parser.parse_args()
    names, tests = options.machines.split() or list(MACHINES), options.tests.split()
    if unknown := [name for name in names if name not in MACHINES]:
        parser.error(f"--machines is {' '.join(unknown)}; expected some of {' '.join(MACHINES)}")
    if options.seed and not (options.seed.isdecimal() and int(options.seed)):
        parser.error(f"--seed is {options.seed}; expected a whole number above 0")
    first = int(options.seed or random.SystemRandom().randrange(1, 2**31))
    seeds = {name: first + number for number, name in enumerate(names)}
    left_out = {name: reason for name in names if (reason := why_not(MACHINES[name]))}
    outcomes = {}
    for name in names:
        if name in left_out:
            print(f"{name}: not run: {left_out[name]}", flush=True)
            continue
        print(f"{name}, seed {seeds[name]}: {MACHINES[name].environment(seeds[name])}", flush=True)
        outcomes[name] = run(MACHINES[name], tests, seeds[name], options.quick)
    rows = {name: row(name, outcome, seeds[name]) for name, outcome in outcomes.items()}
    rows |= {name: f"| {name} | not run: {reason} |||||||" for name, reason in left_out.items()}
    failed = {name: failures(name, outcome) for name, outcome in outcomes.items() if outcome.failed}
    print(table(rows, failed))
    if not outcomes:
        return 2
    before = ({}, {}) if set(names) == set(MACHINES) else read_page(OUT.read_text(encoding="utf-8"))
    if not (tests or options.quick) and before is not None:
        others, their_failed = before
        their_failed = {name: text for name, text in their_failed.items() if name not in rows}
        temporary = OUT.with_suffix(".tmp")
        temporary.write_text(head() + table(others | rows, their_failed | failed), encoding="utf-8")
        temporary.replace(OUT)
        print(f"written to {OUT.relative_to(ROOT)}")
    return 1 if any(outcome.failed for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
