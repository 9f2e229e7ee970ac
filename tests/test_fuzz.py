"""`make fuzz`: counts, goes on until the time is up, keeps what it finds, and what it keeps is replayed."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import fuzzing
import pytest

SCRIPT = Path(fuzz.__file__)
CONFTEST = """
import examples

def pytest_collection_modifyitems(items):
    examples.seed_each_example(items)
"""
GOOD = """
from hypothesis import given, strategies as st

@given(x=st.integers())
def test_good_numbers(x):
    assert x == x
"""
BAD = """
import torch
from hypothesis import given, strategies as st

LIMIT = 100

@given(data=st.data())
def test_bad_numbers(data):
    x = data.draw(st.integers(0, 10**6))
    assert x < LIMIT
"""
DRAWN = """
import torch
from hypothesis import given, strategies as st

@given(x=st.booleans())
def test_torch_numbers(x):
    drawn = torch.randint(0, 10**6, ()).item()
    assert drawn < 900_000, f"torch gives {drawn}"
"""


@pytest.fixture
def tests(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_good.py").write_text(GOOD)
    (folder / "conftest.py").write_text(CONFTEST)
    return folder


def run(tests, *arguments):
    command = [sys.executable, SCRIPT, "--tests", tests, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_goes_on_until_the_time_is_up_and_counts(tests):
    start = time.monotonic()
    done = run(tests, "good", "--minutes", 0.2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - start >= 12
    passes = [int(number) for number in re.findall(r"test_good.py: (\d+) examples", done.stdout)]
    assert f"{sum(passes)}  examples in all" in done.stdout
    assert max(passes) <= fuzzing.EXAMPLES_A_PASS
    assert not (tests / "regressions").exists()


def test_a_counterexample_is_kept_and_replayed_until_it_is_mended(tests):
    (tests / "test_bad.py").write_text(BAD)
    assert fuzz.replay(tests) == (0, "")
    done = run(tests, "bad", "--minutes", 2)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "kept in tests/regressions/test_bad.json" in done.stdout
    [entry] = json.loads((tests / "regressions" / "test_bad.json").read_text())
    assert entry["test"] == "tests/test_bad.py::test_bad_numbers"
    assert "Draw 1: 100" in entry["example"], "not shrunk to the smallest"

    code, said = fuzz.replay(tests)
    assert code == 1
    assert "Draw 1: 100" in said

    (tests / "test_bad.py").write_text(BAD.replace("LIMIT = 100", "LIMIT = 10**9"))
    assert fuzz.replay(tests)[0] == 0

    (tests / "test_bad.py").write_text(BAD.replace("bad_numbers", "other_numbers"))
    code, said = fuzz.replay(tests)
    assert code != 0
    assert "not there any more: tests/test_bad.py::test_bad_numbers" in said


def test_what_an_example_draws_from_torch_is_kept_with_it(tests):
    """Found once in some ten examples by the generator alone, it is replayed to the number."""
    (tests / "test_torch.py").write_text(DRAWN)
    done = run(tests, "torch", "--minutes", 2)
    assert done.returncode == 1, done.stdout + done.stderr
    [entry] = json.loads((tests / "regressions" / "test_torch.json").read_text())
    drawn = re.findall(r"torch gives \d+", done.stdout)[-1]
    assert "torch.manual_seed(" in entry["example"]
    code, said = fuzz.replay(tests)
    assert code == 1
    assert set(re.findall(r"torch gives \d+", said)) == {drawn}


@pytest.mark.parametrize("arguments", [["nothing", "--minutes", "0.05"], ["--minutes", "0"], ["--minutes", "x"]])
def test_what_cannot_be_hunted(tests, arguments):
    done = run(tests, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
