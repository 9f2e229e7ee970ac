"""The compile report: what it says of small kernels, of ops without kernels, and of a process that interprets."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firebolt_vl import cli, kernels
from firebolt_vl.bench import compile as compiling
from firebolt_vl.bench.cases import OPS as CASES
from firebolt_vl.bench.cases import inputs
from firebolt_vl.bench.compile import (
    CHIPS,
    TENSOR_CORE_INSTRUCTION,
    Row,
    find_problem,
    markdown,
    read_ptxas_log,
    wants_tensor_cores,
    worst,
)
from firebolt_vl.kernels.implementation import AMD_CHIPS, OPS

ROW = Row("op", "kernel", "B=1", "bfloat16", "sm_90", 100, 0, 1024, 8, True, 1.5)


@pytest.fixture(scope="module")
def toys():
    """The rows of tests/bench/compile_toys.py, (number of the launch, target) -> row."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_toys.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    return {(int(row["case"]), row["target"]): Row(**row) for row in json.loads(done.stdout)}


@pytest.mark.parametrize("target", CHIPS)
class TestToys:
    def test_a_kernel_compiles_for_every_target(self, toys, target):
        row = toys[0, target]
        assert row.problem is None
        assert (row.op, row.kernel, row.dtype, row.spilled) == ("toy", "scale", "bfloat16", 0)
        assert row.registers > 0
        assert row.seconds > 0

    def test_what_the_jit_would_not_tell_apart_is_compiled_once(self, toys, target):
        """333 and 334 are integers like any other, 336 is a multiple of 16."""
        assert (1, target) not in toys
        assert toys[2, target].problem is None

    def test_16_bit_products_are_seen_to_use_tensor_cores(self, toys, target):
        assert toys[3, target].wants_tensor_cores
        assert toys[3, target].tensor_core_instructions > 0
        assert toys[3, target].shared > 0

    def test_float32_products_in_ieee_arithmetic_need_none(self, toys, target):
        assert not toys[4, target].wants_tensor_cores
        assert toys[4, target].problem is None

    def test_a_kernel_that_does_not_compile_is_a_row_that_says_why(self, toys, target):
        assert toys[6, target].registers is None
        assert "power of 2" in toys[6, target].problem


def test_a_kernel_that_spills_is_found(toys):
    assert toys[5, "sm_90"].spilled > 0
    assert toys[5, "sm_90"].problem == f"spills {toys[5, 'sm_90'].spilled} bytes a thread"


def test_limits():
    assert find_problem(ROW) is None
    assert find_problem(replace(ROW, shared=CHIPS["sm_90"].shared_limit)) is None
    assert find_problem(replace(ROW, shared=2**18)) == "needs 262144 bytes of shared memory of 232448"
    assert find_problem(replace(ROW, tensor_core_instructions=0)) == "has a dot without tensor-core instructions"


def test_the_kernels_run_on_those_chips_of_amd_that_are_targets():
    assert tuple(name for name, chip in CHIPS.items() if chip.backend == "hip") == AMD_CHIPS


@pytest.mark.parametrize(
    ("assembly", "found"),
    [
        ("mma.sync.aligned.m16n8k16", 1),
        ("wgmma.mma_async.sync.aligned", 1),
        ("v_mfma_f32_32x32x8_bf16_1k a[0:15]\n v_smfmac_f32_16x16x32_bf16", 2),
        ("v_wmma_f32_16x16x16_bf16 v[0:7]\n v_swmmac_f32_16x16x32_f16", 2),
        ("v_fma_f32 v0, v1\n v_mul_f32 v2\n v_mac_f32 v1", 0),
    ],
)
def test_instructions_of_matrices_by_nvidia_and_amd(assembly, found):
    assert len(TENSOR_CORE_INSTRUCTION.findall(assembly)) == found


def test_spills_are_the_spill_stores_and_not_the_stack():
    log = (
        "64 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads\nptxas info : Used 255 registers, 1 barrier"
    )
    assert read_ptxas_log(log) == (255, 40)
    with pytest.raises(RuntimeError, match="ptxas wrote a log of another kind"):
        read_ptxas_log("")


def test_dots_that_belong_on_tensor_cores():
    start, end = "%c = tt.dot %a, %b, %z", ": tensor<16x16x{0}> * tensor<16x16x{0}> -> tensor<16x16xf32>"
    assert wants_tensor_cores(start + end.format("bf16"))
    assert wants_tensor_cores(start + ", inputPrecision = bf16x6 " + end.format("f32"))
    assert not wants_tensor_cores(start + end.format("f32"))
    assert not wants_tensor_cores("%c = tt.reduce")


def test_the_table_has_the_worst_of_each_kernel():
    rows = [ROW, replace(ROW, case="B=2", registers=120), replace(ROW, target="sm_80"), replace(ROW, case="B=3")]
    assert [(row.target, row.case) for row in worst(rows)] == [("sm_80", "B=1"), ("sm_90", "B=2")]
    text = markdown([*rows, replace(ROW, case="B=9", problem="spills")], "firebolt bench compile")
    assert "5 distinct compilations, 1 of them with a problem" in text
    assert "- op: kernel, B=9, bfloat16, sm_90: spills" in text


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_cases_that_it_accepts(op):
    assert any(case.quick for case in CASES[op].cases)
    small = [
        case._replace(sizes={name: min(size, 40 if name in "DTL" else 4) for name, size in case.sizes.items()})
        for case in CASES[op].cases
    ]
    for case in small:
        for dtype in CASES[op].dtypes:
            call = inputs(op, case, dtype)
            outputs = getattr(kernels, op)(*call.args, **call.kwargs)
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                assert torch.isfinite(output.abs()).all(), f"{case} {dtype}"


def test_an_op_that_starts_no_kernel_is_a_problem(monkeypatch):
    monkeypatch.setattr(kernels, "fft_conv", lambda u, *rest, **options: 2 * u)
    jobs, rows = compiling.plan(["fft_conv"], ["float32"], ["sm_90"], quick=True)
    assert jobs == []
    assert [row.problem for row in rows] == ["started no kernel"]


def test_in_turn_every_launch_is_compiled_for_a_chip_of_each_vendor(monkeypatch):
    """Twelve launches of three kernels, the same at every size."""

    def specialise(launch, op, case, dtype, target):
        return compiling.Job(op, case, dtype, target, "module", f"kernel {launch % 3}", {"x": launch}, {}, {}, {})

    monkeypatch.setattr(compiling, "record", lambda op, case, dtype: list(range(12)))
    monkeypatch.setattr(compiling, "specialise", specialise)
    jobs, rows = compiling.plan(["gated_scan"], ["float32"], list(CHIPS), quick=True, in_turn=True)
    assert rows == []
    for vendor in ("cuda", "hip"):
        assert sorted(job.signature["x"] for job in jobs if CHIPS[job.target].backend == vendor) == list(range(12))
    for kernel in ("kernel 0", "kernel 1", "kernel 2"):
        assert {job.target for job in jobs if job.kernel == kernel} == set(CHIPS)
    begun = [next(job.target for job in jobs if job.signature["x"] == launch) for launch in range(3)]
    assert begun == ["sm_80", "sm_90", "sm_100"]
    assert len(compiling.plan(["gated_scan"], ["float32"], list(CHIPS), quick=True)[0]) == 12 * len(CHIPS)


def test_an_op_that_raises_is_a_problem(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no such size")

    monkeypatch.setattr(kernels, "fft_conv", refuse)
    _, rows = compiling.plan(["fft_conv"], ["float32"], ["sm_90"], quick=True)
    assert rows[0].problem == "raises ValueError: no such size"


@pytest.fixture
def bench(capfd):
    def run(*arguments):
        code = cli.run(["bench", "compile", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def compiled(monkeypatch):
    """The command with rows that need no compiler."""
    rows = [ROW, replace(ROW, target="sm_80")]
    monkeypatch.setattr(compiling, "is_interpreting", lambda: False)
    monkeypatch.setattr(compiling, "report", lambda *arguments: list(rows))
    return rows


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--op", "fft"], "--op is fft; expected one of correlation_context, grounded_film"),
            (["--target", "sm_75"], "--target is sm_75; expected one of sm_80, sm_90, sm_100, sm_120, gfx942, gfx950"),
            (["--dtype", "float64"], "--dtype is float64; expected one of float32"),
            (["--quick", "--dtype", "float16"], "--dtype is float16; expected one of float32, bfloat16"),
            (["--out", "report.txt"], "--out is report.txt; expected a file that ends in .md or .json"),
            (
                ["--out", "nowhere/report.md"],
                "--out is nowhere/report.md, but the folder nowhere does not exist; make it first",
            ),
            (["--processes", "0"], "see firebolt bench compile --help"),
        ],
    )
    def test_arguments_that_cannot_be(self, bench, arguments, words):
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_a_process_that_interprets_compiles_nothing(self, bench, monkeypatch):
        monkeypatch.setattr(compiling, "is_interpreting", lambda: True)
        code, out, err = bench("--quick")
        assert (code, out) == (2, "")
        assert "TRITON_INTERPRET is set" in err

    def test_the_table(self, bench, compiled):
        code, out, err = bench()
        assert (code, err) == (0, "")
        assert "2 distinct compilations" in out
        assert "yes (8)" in out

    def test_json_and_the_file(self, bench, compiled, tmp_path):
        code, out, err = bench("--json", "--out", tmp_path / "report.md")
        assert (code, err) == (0, "")
        assert [row["target"] for row in json.loads(out)["rows"]] == ["sm_90", "sm_80"]
        assert "| op | kernel | sm_90 |" in (tmp_path / "report.md").read_text().replace("bfloat16 | ", "")

    def test_a_problem_is_one_line_and_the_exit_code(self, bench, compiled):
        compiled.append(replace(ROW, spilled=8, problem="spills 8 bytes a thread"))
        code, out, err = bench()
        assert code == 1
        assert "distinct compilations" in out
        assert err.splitlines() == [
            "op: kernel, B=1, bfloat16, sm_90: spills 8 bytes a thread",
            "firebolt: 1 of 3 compilations have a problem",
        ]
