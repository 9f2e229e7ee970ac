"""`make test-machines`: what it plays, counts, tells and refuses."""

import subprocess
import sys
from pathlib import Path

import machines
import pytest

SCRIPT = Path(machines.__file__)
TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(20))
def test_one(number):
    print("NUMBER", number)

def test_skipped():
    pytest.skip("it is")

@pytest.mark.any_cpu
def test_failed():
    assert os.environ["OPENBLAS_CORETYPE"] != "Nehalem"

def test_examples():
    assert "TEST_EXAMPLES" not in os.environ or os.environ["TEST_EXAMPLES"] == "10"
"""


@pytest.fixture
def tests(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    return file


@pytest.mark.skipif(machines.why_not(machines.MACHINES["sse"]) is not None, reason="no x86-64 CPU")
def test_a_part_is_run_counted_and_told(tests):
    command = [sys.executable, SCRIPT, "--tests", tests, "--machines", "sse", "--seed", "7"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("| sse")]
    assert line.startswith("| sse | 1 | 7 | 21 | 1 | 1 | ")
    assert "test_failed`" in done.stdout
    assert "written to" not in done.stdout


@pytest.mark.skipif(machines.why_not(machines.MACHINES["sse"]) is not None, reason="no x86-64 CPU")
def test_a_quick_run_leaves_out_what_is_the_same_on_every_cpu(tests):
    tests.write_text(TESTS.replace('"TEST_EXAMPLES" not in os.environ or ', ""))
    command = [sys.executable, SCRIPT, "--tests", tests, "--machines", "sse", "--seed", "7", "--quick"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| sse | 1 | 7 | 21 | 0 | 1 | " in done.stdout
    assert "written to" not in done.stdout


def test_what_a_cpu_lacks_it_does_not_play(monkeypatch):
    monkeypatch.setattr(machines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machines.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    reasons = {name: machines.why_not(machine) for name, machine in machines.MACHINES.items()}
    assert reasons.pop("avx512") == "this CPU has no AVX512, at most AVX2"
    assert set(reasons.values()) == {None}
    monkeypatch.setattr(machines.platform, "machine", lambda: "aarch64")
    assert "x86-64 alone" in machines.why_not(machines.MACHINES["sse"])


def test_a_run_on_some_machines_replaces_their_rows_in_a_page_of_the_same_versions():
    first, second = machines.Outcome(3, ["tests.test_x::test_y"], 1, 2.4), machines.Outcome(4, [], 1, 2.4)
    rows = {name: machines.row(name, first, seed) for seed, name in enumerate(("sse", "avx2-zen"), 5)}
    rows["avx512"] = "| avx512 | not run: this CPU has none |||||||"
    failed = {name: machines.failures(name, first) for name in ("sse", "avx2-zen")}
    page = machines.head() + machines.table(rows, failed)
    assert "| sse | 1 | 5 | 3 | 1 | 1 | 2 | " in page
    assert page.index("| avx512 |") < page.index("| avx2-zen |") < page.index("| sse |")
    assert machines.read_page(page) == (rows, failed)
    rows["sse"] = machines.row("sse", second, 9)
    assert machines.read_page(machines.head() + machines.table(rows, {})) == (rows, {})
    assert machines.read_page(page.replace("Python 3", "Python 2")) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machines", "sse vax"], "--machines is vax; expected some of avx512"),
        (["--seed", "0"], "--seed is 0; expected a whole number above 0"),
        (["--seed", "x"], "--seed is x; expected"),
    ],
)
def test_arguments_that_cannot_be(arguments, words):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_another_seed_is_another_order_and_other_numbers(tests):
    tests.with_name("test_numbers.py").write_text(
        "import torch\n\ndef test_a():\n    print('DRAWN', torch.randint(10**9, ()).item())\n"
    )
    conftest = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    tests.with_name("conftest.py").write_text(conftest)
    said = []
    for seed in ("7", "7", "8"):
        command = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run(
            [*command, "-c", "/dev/null", "--rootdir", str(tests.parent), str(tests.parent)],
            env=machines.os.environ | {"TEST_SEED": seed, "PYTHONPATH": str(SCRIPT.parent), "OPENBLAS_CORETYPE": "Zen"},
            capture_output=True,
            text=True,
            check=False,
        )
        said.append([line.lstrip(".s") for line in done.stdout.splitlines() if "NUMBER" in line or "DRAWN" in line])
        assert len(said[-1]) == 21, done.stdout + done.stderr
    assert said[0] == said[1]
    assert said[0] != said[2]
    assert {line for line in said[0] if "DRAWN" in line} != {line for line in said[2] if "DRAWN" in line}
