"""What a driver that launches nothing sees: every launch, and how often kernels are compiled as sizes vary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from firebolt_vl import cli
from firebolt_vl.bench import host, silent
from firebolt_vl.bench.cases import OPS

# Compilations, with gradients, while lengths, batch sizes and numbers of grids vary: those of today, which may shrink
# but not grow. They are choices of tiles, each compiled for at most MOST_LAYOUTS.
TODAY = {
    "correlation_context": 29,
    "grounded_film": 36,
    "film_residual": 14,
    "vandermonde": 7,
    "cauchy": 3,
    "fft_conv": 11,
    "diagonal_scan": 15,
    "selective_scan": 7,
    "selective_state_update": 1,
    "gated_scan": 7,
}
# Rows that begin at multiples of 16, or not.
MOST_LAYOUTS = 2
# Functions, of Python and of C, that a repeated call enters: 10 for itself and the kernel's start, the others for
# tensors. As it is written it enters 355 and more.
MOST_ENTERED = 100
ROW = host.Row("film_residual", "float16", 3, 12, "film_residual_kernel", 5, 1, 60.0, 40.0, 90.0)


@pytest.fixture(scope="module")
def found():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("host_counts.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", OPS)
def test_no_op_compiles_more_often_than_it_did(found, op):
    assert 0 < found["counts"][op] <= TODAY[op]


@pytest.mark.parametrize("op", OPS)
def test_a_choice_of_tiles_is_compiled_for_few_layouts(found, op):
    assert 0 < found["layouts"][op] <= MOST_LAYOUTS


@pytest.mark.parametrize("op", OPS)
def test_a_call_done_again_is_the_one_that_is_written_in_a_fraction_of_the_steps(found, op):
    same, entered, as_written = found["repeated"][op]
    assert same
    assert entered <= min(MOST_ENTERED, as_written / 4)


def test_a_call_with_many_grids_is_done_again_too(found):
    assert found["many grids"].keys() == {"correlation_context", "grounded_film", "film_residual"}
    for op, calls in found["many grids"].items():
        for same, entered, as_written in calls:
            assert same, op
            assert entered < as_written / 2


def test_every_launch_is_seen_and_the_same_sizes_compile_once(found):
    assert found["same"] == [1, ["few_grids_residual_kernel"] * 2]
    assert found["anew"] == [1, 1]


def test_what_is_recorded_is_not_launched(found):
    assert found["recorded"] == 2


def test_afterwards_a_kernel_needs_its_device_again(found):
    assert "runs on a GPU" in found["afterwards"]


def test_sizes_vary_one_at_a_time():
    cases = host.varied("grounded_film")
    assert len(cases) == len(host.LENGTHS) + len(host.BATCHES) + len(host.GRIDS) == 25 + 10 + 31
    assert all(case.sizes["K"] <= case.sizes["G"] for case in cases)
    base = host.base("grounded_film").sizes
    changed = [[name for name in base if case.sizes[name] != base[name]] for case in cases]
    assert all(names in ([], ["T"], ["B"], ["G"], ["G", "K"]) for names in changed)
    assert len(host.varied("vandermonde")) == len(host.LENGTHS)


def test_a_triton_that_was_not_tried_is_refused(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "4.0.1")
    with pytest.raises(silent.Unsupported, match=r"Triton is 4\.0\.1"), silent.silent_driver():
        pass


class TestCommand:
    @pytest.fixture
    def bench(self, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def run(*arguments):
            code = cli.run(["bench", "host", *map(str, arguments)])
            return code, *capfd.readouterr()

        return run

    def test_interpreted_kernels_have_no_host_cost(self, bench):
        code, out, err = bench("--op", "film_residual")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "TRITON_INTERPRET is set" in err

    def test_table_and_file(self, bench, tmp_path, monkeypatch):
        monkeypatch.setattr(host, "measure", lambda op, dtype: ROW)
        code, out, err = bench("--op", "film_residual", "--dtype", "float16", "--out", "host.md")
        assert (code, err) == (0, "")
        assert "film_residual_kernel" in out
        text = (tmp_path / "host.md").read_text()
        assert (
            text.count("| film_residual | float16 | 3 | 12 | film_residual_kernel | 5 | 1 | 60.0 | 40.0 | 90.0 |") == 1
        )
        code, out, err = bench("--op", "film_residual", "--dtype", "float16", "--out", "host.md", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["host"][0]["both"] == 12

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--op", "fft"], "--op is fft; expected one of correlation_context"),
            (["--op", "cauchy", "--dtype", "float16"], "in which none of cauchy is there"),
            (["--out", "host.txt"], "--out is host.txt; expected a file that ends in .md or .json"),
        ],
    )
    def test_arguments_that_cannot_be(self, bench, arguments, words):
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err
