"""Whole ops in the emulator, mistakes put into a kernel, and the command that reports of both."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from triton_kernels import INTERPRETED

from firebolt_vl import cli
from firebolt_vl.bench import compile as compiling
from firebolt_vl.bench.cases import OPS as BENCHMARKED
from firebolt_vl.bench.cases import inputs
from firebolt_vl.bench.emulate import mutate, report
from firebolt_vl.bench.emulate.cases import CASES, EACH_KERNEL
from firebolt_vl.bench.emulate.check import Row
from firebolt_vl.bench.emulate.mutate import WATCHED, WITHIN, Outcome
from firebolt_vl.bench.emulate.page import cells
from firebolt_vl.bench.emulate.run import emulating
from firebolt_vl.kernels.implementation import OPS

ROW = Row("op", "B=1", "bfloat16", "sm_80", ("kernel",), 4, 1000, (0.25, 0.5), (0.125,))
OUTCOME = Outcome("kernel", "barrier left out", 7, "triton_film.py:64", WATCHED)


@pytest.fixture(scope="module")
def emulated():
    """What tests/bench/emulate_ops.py prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("emulate_ops.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_ops_are_within_their_budgets_and_nothing_is_found(emulated):
    for row in emulated["rows"]:
        assert row["problems"] == [], row
        assert row["kernels"], row
        assert all(share <= 1 for share in (*row["values"], *row["gradients"])), row


def test_half_precision_has_the_errors_of_half_precision(emulated):
    """Where nothing is rounded nothing was emulated."""
    halves = [row for row in emulated["rows"] if row["dtype"] != "float32"]
    assert len(halves) == 5
    assert all(max(row["values"]) > 0.01 for row in halves)


def test_a_mistake_in_a_kernel_is_found(emulated):
    mistakes = emulated["mistakes"]
    kinds = {mistake["kind"] for mistake in mistakes}
    assert kinds == {
        "barrier left out",
        "operands of a product exchanged",
        "mask dropped",
        "address off by an element",
    }
    within = {mistake["kind"] for mistake in mistakes if mistake["result"] == WITHIN}
    assert within <= {"operands of a product exchanged"}, "the smallest terms of float32 products hardly count"
    for kind in kinds:
        found = [mistake for mistake in mistakes if mistake["kind"] == kind and mistake["result"].startswith("by ")]
        assert found, kind


def test_a_launch_has_its_tensors_and_nothing_beside_them(emulated):
    outside = "touches global memory outside of every tensor"
    assert emulated["toys"] == {
        "whole": [[], True],
        "beyond": [[outside], True],
        "unwritten": [["reads global memory that nothing wrote"], True],
    }


def test_mistakes_are_made_in_every_kernel(emulated):
    """In `firebolt bench emulate --mutate`; other targets than the first have the same cases."""
    assert emulated["left out"] == []


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_cases_that_can_be_made(op):
    assert any(case.quick for case in CASES[op])
    assert EACH_KERNEL[op]
    for case in CASES[op]:
        for dtype in BENCHMARKED[op].dtypes:
            assert inputs(op, case, dtype).leaves()


def test_a_plan_has_a_row_for_each_dtype_that_an_op_knows():
    jobs = report.plan(["vandermonde", "fft_conv"], ["float32", "bfloat16"], ["sm_80"], True, 3)
    assert {(op, dtype) for op, _, dtype, _, _ in jobs} == {
        ("vandermonde", "float32"),
        ("fft_conv", "float32"),
        ("fft_conv", "bfloat16"),
    }
    assert all(case.quick and seed == 3 for _, case, _, _, seed in jobs)


def test_targets_other_than_the_first_have_a_case_or_two_of_each_kernel():
    few, all_of_them = (report.plan(["fft_conv"], ["float32"], [target], False, 0) for target in ("sm_90", "sm_80"))
    assert 0 < len(few) < len(all_of_them) == len(CASES["fft_conv"])


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_a_process_that_interprets_emulates_nothing():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), emulating():
        pass


def test_a_row_that_failed_has_no_numbers():
    assert cells(ROW)[4:] == ["1", "4", "1000", "0.50", "0.12", "-"]
    assert cells(Row("op", "B=1", "bfloat16", "sm_80", problems=("UnknownPTX: no",)))[4:] == [*"-----", "1"]


@pytest.fixture
def bench(capfd, monkeypatch):
    """The command with rows and outcomes that need no compiler."""
    rows, outcomes = [ROW], [OUTCOME]
    monkeypatch.setattr(compiling, "is_interpreting", lambda: False)
    monkeypatch.setattr(report, "report", lambda *arguments: list(rows))
    monkeypatch.setattr(mutate, "report", lambda *arguments: list(outcomes))

    def run(*arguments):
        code = cli.run(["bench", "emulate", *map(str, arguments)])
        return code, *capfd.readouterr()

    run.rows, run.outcomes = rows, outcomes
    return run


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--op", "fft"], "--op is fft; expected one of correlation_context, grounded_film"),
            (["--target", "gfx942"], "--target is gfx942; expected one of sm_80, sm_90, sm_100"),
            (["--quick", "--dtype", "float16"], "--dtype is float16; expected one of float32, bfloat16"),
            (["--out", "report.txt"], "--out is report.txt; expected a file that ends in .md or .json"),
        ],
    )
    def test_arguments_that_cannot_be(self, bench, arguments, words):
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_a_process_that_interprets(self, bench, monkeypatch):
        monkeypatch.setattr(compiling, "is_interpreting", lambda: True)
        code, out, err = bench("--quick")
        assert (code, out) == (2, "")
        assert "TRITON_INTERPRET is set" in err

    def test_the_table(self, bench):
        code, out, err = bench()
        assert (code, err) == (0, "")
        assert "1 cases, 1,000 instructions" in out
        assert "barrier left out" not in out

    def test_the_page_and_the_data(self, bench, tmp_path):
        code, out, err = bench("--mutate", "--json", "--out", tmp_path / "emulation.md")
        assert (code, err) == (0, "")
        data = json.loads(out)
        assert (data["cases"][0]["instructions"], data["mistakes"][0]["result"]) == (1000, WATCHED)
        page = (tmp_path / "emulation.md").read_text()
        assert page.startswith("# Emulation\n")
        assert "| kernel | barrier left out | 1 | 1 | - |" in page
        assert bench("--out", tmp_path / "emulation.md")[0] == 0, "its own page is overwritten"

    def test_the_page_tells_of_barriers_that_are_not_found(self, bench, tmp_path):
        """Of eight, six are reached by a thread, four of these are found, and one kernel's warps share nothing."""
        results = [WATCHED] * 3 + [mutate.WRONG, mutate.BESIDE] + [mutate.UNREACHED] * 2
        bench.outcomes[:] = [OUTCOME._replace(result=result) for result in results]
        bench.outcomes += [OUTCOME._replace(kernel="alone", result=mutate.NO_EFFECT)]
        bench.outcomes += [OUTCOME._replace(kind="mask dropped", result=mutate.NO_EFFECT)]
        bench("--mutate", "--out", tmp_path / "emulation.md")
        told = " ".join((tmp_path / "emulation.md").read_text().split())
        assert "Of 8 barriers 4 are found to be missing, 67% of the 6 that a thread reaches; 1 stand beside" in told
        assert "across 1 no byte passes from a warp to another. Warps share nothing at all" in told
        assert "between them, in alone (1)." in told

    def test_what_is_found_is_a_line_and_the_exit_code(self, bench):
        bench.rows.append(replace(ROW, problems=("kernel: reads it",)))
        code, _, err = bench()
        assert code == 1
        assert err.splitlines() == [
            "op: B=1, bfloat16, sm_80: kernel: reads it",
            "firebolt: 1 problems in 2 cases",
        ]
