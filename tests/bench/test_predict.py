"""Predictions: how code, IR and launches are read, and what the model makes of them; all but one without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from firebolt_vl import cli, kernels
from firebolt_vl.bench import compile as compiling
from firebolt_vl.bench.cases import Case
from firebolt_vl.bench.predict import around, beside, ptx, report, sass, trips, ttir
from firebolt_vl.bench.predict import compiled as compiled_kernels
from firebolt_vl.bench.predict.accesses import bytes_of_sectors
from firebolt_vl.bench.predict.chips import CHIPS, H100, MI300X, NAMES, chip_of, chip_of_device
from firebolt_vl.bench.predict.compiled import Compiled
from firebolt_vl.bench.predict.goals import GOALS
from firebolt_vl.bench.predict.integers import Evaluation
from firebolt_vl.bench.predict.matched import Turning, executed, match
from firebolt_vl.bench.predict.model import bytes_of, occupancy
from firebolt_vl.bench.predict.recorded import distinct_bytes, record_modes
from firebolt_vl.bench.predict.sass import Instruction, Loop, Place
from firebolt_vl.bench.predict.warp import clocks_of, time_alone
from firebolt_vl.bench.sweep import Trial, winners
from firebolt_vl.kernels.configurations import read_table

SASS = """
        //## File "/somewhere/kernels/toy.py", line 4
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_2:
        //## File "/somewhere/kernels/toy.py", line 6
        /*0020*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
.L_x_1:
        /*0030*/                   FFMA R8, R4, R5, R8 ;
        /*0040*/                   HMMA.16816.F32.BF16 R12, R4, R6, R12 ;
        //## File "/somewhere/kernels/toy.py", line 7
        /*0050*/               @P1 BRA `(.L_x_1) ;
        //## File "/somewhere/kernels/toy.py", line 5
        /*0060*/               @P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
        /*0090*/                   NOP;
"""

PTX = """
$L__BB0_2:
	ld.global.v4.b32 	{ %r4, %r5, %r6, %r7 }, [ %rd2 + 0 ];
$L__BB0_1:
	fma.rn.f32 	%r8, %r4, %r5, %r8;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 	{ %r12 }, { %r4 }, { %r6 }, { %r12 };
	@%p1 bra 	$L__BB0_1;
	@%p0 bra 	$L__BB0_2;
	ret;
"""

TTIR = """
#loc = loc("/somewhere/kernels/toy.py":3:0)
#loc1 = loc(unknown)
#loc5 = loc("/somewhere/kernels/toy.py":5:11)
#loc7 = loc("/somewhere/kernels/toy.py":7:15)
#loc8 = loc("acc"(#loc5))
#loc9 = loc(callsite(#loc7 at #loc8))
module {
  tt.func public @toy(%x_ptr: !tt.ptr<f32> loc("x_ptr"(#loc)), %ends.ptr: !tt.ptr<i32> loc("e"(#loc)), %n: i32 loc("n"(#loc))) attributes {noinline = false} {
    %c0_i32 = arith.constant 0 : i32 loc(#loc1)
    %c1_i32 = arith.constant 1 : i32 loc(#loc1)
    %c4_i32 = arith.constant 4 : i32 loc(#loc1)
    %cst = arith.constant dense<2> : tensor<8xi32> loc(#loc1)
    %zero = arith.constant 0.000000e+00 : f32 loc(#loc1)
    %pid = tt.get_program_id x : i32 loc(#loc)
    %range = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32> loc(#loc)
    %splat = tt.splat %pid : i32 -> tensor<8xi32> loc(#loc)
    %sum = arith.addi %splat, %range : tensor<8xi32> loc(#loc)
    %half = arith.divsi %sum, %cst : tensor<8xi32> loc(#loc)
    %most = "tt.reduce"(%half) <{axis = 0 : i32}> ({
    ^bb0(%a: i32 loc(callsite(#loc1 at #loc5)), %b: i32 loc(callsite(#loc1 at #loc5))):
      %max = arith.maxsi %a, %b : i32 loc(#loc)
      tt.reduce.return %max : i32 loc(#loc)
    }) : (tensor<8xi32>) -> i32 loc(#loc)
    %acc:2 = scf.for %i = %c0_i32 to %most step %c1_i32 iter_args(%s = %zero, %left = %n) -> (f32, i32)  : i32 {
      %inner = scf.for %j = %i to %left step %c4_i32 iter_args(%r = %s) -> (f32)  : i32 {
        scf.yield %r : f32 loc(#loc)
      } loc(#loc9)
      %less = arith.subi %left, %c1_i32 : i32 loc(#loc)
      scf.yield %inner, %less : f32, i32 loc(#loc)
    } loc(#loc8)
    %at = tt.addptr %ends.ptr, %pid : !tt.ptr<i32>, i32 loc(#loc)
    %end = tt.load %at : !tt.ptr<i32> loc(#loc)
    %some = arith.cmpi sgt, %end, %c1_i32 : i32 loc(#loc)
    scf.if %some {
      scf.for %k = %c0_i32 to %end step %c1_i32  : i32 {
      } loc(#loc7)
    } loc(#loc)
    %fraction = tt.load %x_ptr : !tt.ptr<f32> loc(#loc)
    %whole = arith.fptosi %fraction : f32 to i32 loc(#loc)
    scf.for %k = %c0_i32 to %whole step %c1_i32  : i32 {
    } loc(#loc5)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""  # noqa: E501
OUTER, INNER = Place("toy.py", 5), Place("toy.py", 7)


class TestCode:
    def test_loops_are_branches_backwards_with_the_line_of_the_branch(self):
        code = sass.parse(SASS)
        outer = code[2]
        assert [item.opcode for item in code if isinstance(item, Instruction)] == ["LDC", "BRA", "EXIT", "BRA", "NOP"]
        assert outer.place == OUTER
        assert [item.place for item in outer.body if isinstance(item, Loop)] == [INNER]
        assert [item.opcode for item in outer.body[1].body] == ["FFMA", "HMMA", "BRA"]

    def test_what_an_instruction_does(self):
        load, fma, product, store, narrow = (
            sass.parse(f"        /*0000*/                   {text} ;")[0]
            for text in (
                "LDG.E.128 R4, desc[UR6][R2.64+0x10]",
                "FFMA R8, R4, R5.reuse, R8",
                "HGMMA.64x32x16.F32.BF16 R24, R48, gdesc[UR16], R24",
                "STS.U16 [R9], R3",
                "LDSM.16.MT88.4 R4, [R7]",
            )
        )
        assert (load.bytes_of_a_lane, store.bytes_of_a_lane, narrow.bytes_of_a_lane) == (16, 2, 16)
        assert (load.written(), load.read()) == (["R4", "R5", "R6", "R7"], ["R2", "R3"])
        assert (fma.written(), fma.read()) == (["R8"], ["R4", "R5", "R8"])
        assert (store.written(), "R3" in store.read()) == ([], True)
        # 64 x 32 x 16 multiplications and additions, of which a warp does a fourth
        assert product.tensor_operations() == 2 * 64 * 32 * 16 / 4
        assert clocks_of(product, H100) == 64 * 32 * 16 / 2 / 4096
        assert clocks_of(load, H100) == 4 * clocks_of(store, H100)

    def test_no_opcode_is_of_two_pipes(self):
        listed = [opcode for opcodes in sass._OF_PIPE.values() for opcode in opcodes.split()]
        assert len(listed) == len(set(listed))


def found_runs(**changed):
    arguments = {"x_ptr": torch.ones(4), "ends.ptr": torch.tensor([0, 7, 1, 3], dtype=torch.int32), "n": 9, **changed}
    return trips.runs(Evaluation(ttir.parse(TTIR), arguments, trips.sample_of_programs((4,))))


class TestRuns:
    def test_a_loop_runs_as_often_as_its_bounds_say_in_each_program(self):
        outer, _, _ = found_runs()
        assert outer.place == OUTER
        # max over i of (program + i) / 2, i = 0 .. 7
        np.testing.assert_array_equal(outer.count, [3, 4, 4, 5])

    def test_turns_that_differ_are_added(self):
        [inner] = found_runs()[0].inner
        turns = [len(range(i, 9 - i, 4)) for i in range(5)]
        np.testing.assert_array_equal(inner.count, [sum(turns[:count]) for count in (3, 4, 4, 5)])
        assert inner.place == INNER

    def test_integers_in_memory_count_and_conditions_too(self):
        np.testing.assert_array_equal(found_runs()[1].count, [0, 7, 0, 3])

    def test_what_a_fraction_decides_is_unknown(self):
        assert found_runs()[2].count is None

    def test_an_argument_that_is_not_given_is_unknown(self):
        outer, _, _ = found_runs(n=None)
        assert outer.count is not None
        assert outer.inner[0].count is None

    def test_programs_are_looked_at_evenly(self):
        assert trips.sample_of_programs((3, 2)).tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], [0] * 6]
        many = trips.sample_of_programs((1000, 3, 5))
        assert many.shape == (3, trips.MOST_PROGRAMS)
        assert (many[:, 0].tolist(), many[:, -1].tolist()) == ([0, 0, 0], [999, 2, 4])


STRIDED = """
module {
  tt.func public @toy(%x_ptr: !tt.ptr<bf16> loc("x"(#loc)), %stride: i32 loc("s"(#loc)), %n: i32 loc("n"(#loc))) {
    %c0 = arith.constant 0 : i32 loc(#loc)
    %c1 = arith.constant 1 : i32 loc(#loc)
    %range = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32> loc(#loc)
    %by = tt.splat %stride : i32 -> tensor<64xi32> loc(#loc)
    %to = tt.splat %n : i32 -> tensor<64xi32> loc(#loc)
    %at = arith.muli %range, %by : tensor<64xi32> loc(#loc)
    %inside = arith.cmpi slt, %range, %to : tensor<64xi32> loc(#loc)
    %base = tt.splat %x_ptr : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>> loc(#loc)
    %p = tt.addptr %base, %at : tensor<64x!tt.ptr<bf16>>, tensor<64xi32> loc(#loc)
    scf.for %i = %c0 to %n step %c1  : i32 {
      %q = tt.addptr %base, %at : tensor<64x!tt.ptr<bf16>>, tensor<64xi32> loc(#loc)
      %v = tt.load %q, %inside : tensor<64x!tt.ptr<bf16>> loc(#loc)
    } loc(#loc)
    scf.for %i = %c0 to %c1 step %c1  : i32 {
      %q = tt.splat %i : i32 -> tensor<64xi32> loc(#loc)
    } loc(#loc)
    %w = tt.load %p : tensor<64x!tt.ptr<bf16>> loc(#loc)
    %far = tt.int_to_ptr %w : tensor<64xi64> -> tensor<64x!tt.ptr<f32>> loc(#loc)
    tt.store %far, %v, %inside : tensor<64x!tt.ptr<f32>> loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""


@pytest.mark.parametrize(
    ("stride", "n", "sectors"),
    [
        (1, 2, 2 * 1 + 4 + 8),  # twice two numbers; 64 of two bytes; 64 of four bytes at addresses that nobody knows
        (1, 64, 64 * 4 + 4 + 8),
        (16, 3, 3 * 3 + 64 + 8),
        (0, 3, 3 * 1 + 1 + 8),
    ],
)
def test_sectors_that_a_program_touches(stride, n, sectors):
    arguments = {"x_ptr": torch.empty(2000, dtype=torch.bfloat16), "stride": stride, "n": n}
    evaluation = Evaluation(ttir.parse(STRIDED), arguments, trips.sample_of_programs((3,)))
    assert bytes_of_sectors(evaluation) == 32 * sectors


class TestMatching:
    def times(self, code, *known):
        matched = match(code, ptx.loops(PTX), known, 2)
        counted = {}
        for instruction, times in executed(matched.code, np.ones(2)):
            counted[instruction.opcode] = counted.get(instruction.opcode, 0) + times
        return {name: times.tolist() for name, times in counted.items()}, matched.unknown

    def test_loops_of_the_ir_are_found_by_their_lines(self):
        inner = trips.Runs(INNER, np.array([6, 8]), ())
        counted, unknown = self.times(sass.parse(SASS), trips.Runs(OUTER, np.array([2, 3]), (inner,)))
        assert unknown == 0
        assert (counted["EXIT"], counted["LDG"], counted["FFMA"]) == ([1, 1], [2, 3], [6, 8])
        assert "NOP" not in counted

    def test_a_loop_of_the_ir_that_the_code_has_not_is_passed_over(self):
        inner = trips.Runs(INNER, np.array([6, 8]), ())
        gone = trips.Runs(Place("toy.py", 1), np.array([9, 9]), ())
        counted, unknown = self.times(sass.parse(SASS), gone, trips.Runs(OUTER, np.array([2, 3]), (gone, inner)))
        assert (counted["LDG"], counted["FFMA"], unknown) == ([2, 3], [6, 8], 0)

    def test_a_loop_that_nobody_knows_runs_once_and_is_counted(self):
        counted, unknown = self.times(sass.parse(SASS), trips.Runs(OUTER, np.array([2, 3]), ()))
        assert (counted["LDG"], counted["FFMA"], unknown) == ([2, 3], [2, 3], 1)

    def test_a_first_turn_before_the_loop_and_a_branch_with_a_line_of_the_body(self):
        first = (
            '        //## File "/somewhere/kernels/toy.py", line 7\n'
            ".L_x_8:\n        /*0010*/                   FADD R8, R4, R8 ;\n"
            "        /*0010*/               @P1 BRA `(.L_x_8) ;\n.L_x_2:\n"
        )
        code = sass.parse(SASS.replace(".L_x_2:\n", first).replace('toy.py", line 5', 'toy.py", line 6'))
        inner = trips.Runs(INNER, np.array([6, 9]), ())
        counted, unknown = self.times(code, trips.Runs(OUTER, np.array([2, 3]), (inner,)))
        assert (counted["FADD"], counted["LDG"], counted["FFMA"], unknown) == ([3, 3], [1, 2], [3, 6], 0)

    def test_a_loop_that_was_unrolled_runs_less_often_and_its_rest_takes_what_is_left(self):
        product = "        /*0040*/                   HMMA.16816.F32.BF16 R12, R4, R6, R12 ;\n"
        rest = (
            '        //## File "/somewhere/kernels/toy.py", line 7\n'
            f".L_x_9:\n{product}        /*0050*/                   BRA `(.L_x_9) ;\n"
        )
        end = '        //## File "/somewhere/kernels/toy.py", line 5\n'
        unrolled = SASS.replace(product, 4 * product).replace(end, rest + end)
        inner = trips.Runs(INNER, np.array([11, 8]), ())
        counted, unknown = self.times(sass.parse(unrolled), trips.Runs(OUTER, np.array([2, 3]), (inner,)))
        assert (counted["FFMA"], counted["HMMA"], unknown) == ([2, 2], [11, 8], 0)


def instructions(*lines):
    return [sass.parse(f"        /*0000*/                   {line} ;")[0] for line in lines]


class TestModel:
    def test_loads_that_wait_for_each_other_take_the_latency_of_memory_each(self):
        apart = instructions("LDG.E R4, desc[UR6][R2.64]", "LDG.E R5, desc[UR6][R2.64]", "FADD R6, R4, R5")
        chained = instructions("LDG.E R4, desc[UR6][R2.64]", "LDG.E R6, desc[UR6][R4.64]", "FADD R7, R6, R6")
        assert H100.memory_latency < time_alone(apart, H100) < 1.1 * H100.memory_latency
        assert 2 * H100.memory_latency < time_alone(chained, H100) < 2.1 * H100.memory_latency

    def test_a_loop_takes_its_turns(self):
        body = tuple(instructions("LDG.E R4, desc[UR6][R4.64]"))
        once, often = (time_alone([Turning(np.array([count]), body)], H100) for count in (1.0, 100.0))
        assert often == pytest.approx(100 * once, rel=0.02)
        assert time_alone([Turning(np.array([0.0]), body)], H100) == 0

    def test_copies_that_are_under_way_are_waited_for_only_where_it_says_so(self):
        copy = ("LDGSTS.E [R10], desc[UR8][R22.64]", "LDGDEPBAR")
        at_once = time_alone(instructions(*copy, *copy, "DEPBAR.LE SB0, 0x0"), H100)
        later = time_alone(instructions(*copy, "DEPBAR.LE SB0, 0x1"), H100)
        assert later < 10 < H100.memory_latency < at_once

    @pytest.mark.parametrize(
        ("registers", "shared", "warps", "programs"),
        [(64, 0, 4, 8), (128, 0, 4, 4), (255, 0, 8, 1), (32, 100 * 1024, 4, 2), (16, 0, 1, 32), (255, 0, 16, 1)],
    )
    def test_programs_that_a_processor_holds(self, registers, shared, warps, programs):
        code = Compiled((), (), ttir.Module((), (), {}), registers, shared, warps)
        assert occupancy(code, H100) == programs

    @pytest.mark.parametrize(("name", "single", "half"), [("a100", 19.5, 312), ("rtx4090", 82.6, 165.2)])
    def test_rates_make_the_published_peaks(self, name, single, half):
        """TFLOP/s of float32, and of 16-bit operands by tensor cores."""
        chip = chip_of(name)
        clocks = chip.processors * chip.clock_ghz / 1000
        assert round(2 * chip.single * clocks, 1) == single
        assert chip.tensor * clocks == pytest.approx(half, rel=0.002)

    def test_a_faster_memory_is_no_slower(self):
        assert chip_of("h200").memory_tb_per_s > H100.memory_tb_per_s
        assert {chip_of(name).target for name in CHIPS} <= set(compiling.CHIPS)
        assert chip_of("mi300x") is MI300X
        assert chip_of_device("NVIDIA H100 80GB HBM3") is H100
        assert chip_of_device("a toaster") is None
        assert {chip_of(name) for name in NAMES} == {*CHIPS.values(), MI300X}


class TestRecorded:
    SMALL = Case({"B": 2, "T": 8, "G": 3, "D": 16})

    def test_launches_and_what_pytorch_starts_beside_them(self):
        modes, floor = record_modes("film_residual", self.SMALL, "float32")
        assert [len(modes[mode].launches) for mode in ("forward", "backward", "both")] == [1, 3, 4]
        assert modes["forward"].others == modes["backward"].others == []
        assert floor["forward"] == 4 * (2 * 8 * 16 * 2 + 2 * 8 * 3 + 2 * 3 * 32 + 32 + 1 + 2 * 16 + 2 * 2 * 8 * 16)

    def test_bytes_of_what_pytorch_starts(self):
        """Both gradients of vandermonde [D,N] complex64 are conjugated: D N 8 bytes each."""
        modes, _ = record_modes("vandermonde", Case({"D": 2, "N": 4, "L": 16}), "float32")
        assert [len(modes[mode].launches) for mode in ("forward", "backward")] == [1, 1]
        assert modes["backward"].others == modes["both"].others == [2 * 2 * 4 * 8] * 2

    def test_what_an_op_changes_is_read_and_written(self):
        """The state [B,D,N] float32; there is no backward pass."""
        modes, _ = record_modes("selective_state_update", Case({"B": 2, "D": 8, "N": 4}), "float32")
        [launch] = modes["forward"].launches
        assert bytes_of(launch, modes["forward"].changed) - bytes_of(launch) == 4 * 2 * 8 * 4
        assert modes["backward"].launches == []

    def test_expanded_axes_are_in_memory_once(self):
        assert distinct_bytes(torch.empty(3, 1, 5).expand(3, 4, 5)) == 4 * 15
        assert distinct_bytes(torch.empty(2, 6, dtype=torch.float16)[:, :3]) == 2 * 6


def test_a_compiled_kernel_is_read():
    """The mean of 3, 0, 5 and 100 blocks, ten times, a square root each; whatever the compiler unrolls."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("predict_toys.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["unknown"] == 0
    assert 270 <= found["instructions"]["function"] <= 1.2 * 270
    assert found["programs"] == 4
    assert found["us"]["latency"] > 27 * found["us"]["memory"]


@pytest.fixture
def clockwork(monkeypatch):
    """Predictions by tiles alone: 64 nodes are best for cauchy, and 8 warps spill."""
    compiled = Compiled((), (), ttir.Module((), (), {}), 32, 0, 4)

    def specialise(launch, op, case, dtype, target):
        key = launch.kernel.fn.__name__, str(launch.arguments["BLOCK_L"]), str(launch.options["num_warps"])
        return SimpleNamespace(key=lambda: key, target=target)

    def us(launch, compiled, chip):
        return SimpleNamespace(total_us=10 + abs(launch.arguments["BLOCK_L"] - 64) / 64)

    monkeypatch.setattr(around, "specialise", specialise)
    monkeypatch.setattr(
        around, "compile_for_prediction", lambda job: compiled._replace(spilled=int(job.key()[2] == "8"))
    )
    monkeypatch.setattr(around, "predict", us)


def test_configurations_around_the_default_are_tried_by_prediction(clockwork):
    trials = around.trials_of("cauchy", Case({"D": 3, "N": 4, "L": 300}), "float32", H100)
    assert {(trial.kernel, trial.mode) for trial in trials} == {
        ("cauchy_kernel", "forward"),
        ("cauchy_backward_kernel", "backward"),
        ("cauchy_backward_nodes_kernel", "backward"),
    }
    best = {trial.kernel: json.loads(trial.configuration)["BLOCK_L"] for trial in winners(trials)}
    assert best == {"cauchy_kernel": 64, "cauchy_backward_nodes_kernel": 64}
    spilled = [trial for trial in trials if "spills 1 bytes" in trial.problem]
    assert {json.loads(trial.configuration)["num_warps"] for trial in spilled} == {8}


def test_configurations_are_printed_as_a_file_of_the_chip(bench, monkeypatch):
    trial = Trial("cauchy", "D=3", "forward", "cauchy_kernel", "float32", "L=64", '{"BLOCK_L": 64}', 5.0, 10.0)
    monkeypatch.setattr(around, "trials", lambda subjects, chip, processes: [[trial] for _ in subjects])
    code, out, err = bench("--op", "cauchy", "--quick", "--around")
    assert (code, err) == (0, "")
    assert read_table(out, "out") == {("cauchy_kernel", "float32", "L=64"): {"BLOCK_L": 64}}
    assert json.loads(out)["configurations"][0]["us"] == [10.0, 5.0]
    assert "--chip is mi300x; expected one of h100, h200, a100, rtx4090" in bench("--around", "--chip", "mi300x")[2]


@pytest.fixture
def bench(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiling, "is_interpreting", lambda: False)

    def run(*arguments):
        code = cli.run(["bench", "predict", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--op", "fft"], "--op is fft; expected one of correlation_context, grounded_film"),
            (["--chip", "b200"], "--chip is b200; expected one of h100, h200, a100, rtx4090, mi300x"),
            (["--dtype", "float64"], "--dtype is float64; expected one of"),
            (["--out", "table.txt"], "--out is table.txt; expected a file that ends in .md or .json"),
            (["--goals", "--op", "cauchy"], "--op is cauchy, which has no goal in float32"),
        ],
    )
    def test_arguments_that_cannot_be(self, bench, arguments, words):
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_bytes_alone_where_no_code_can_be_read(self, bench, tmp_path):
        """Which compiles nothing: the table of a whole op."""
        code, out, err = bench("--chip", "mi300x", "--quick", "--op", "film_residual", "--out", "table.md", "--json")
        assert (code, err) == (0, "")
        rows = json.loads(out)["predictions"]
        assert {row["mode"] for row in rows} == {"forward", "backward"}
        assert all(row["launches"] and row["us"] > row["copy_us"] for row in rows)
        text = (tmp_path / "table.md").read_text()
        assert text.startswith("# Predictions: MI300X\n")
        assert text.count("| film_residual |") == len(rows)

    def test_an_op_that_raises_is_a_row_that_says_why(self, bench, monkeypatch):
        def refuse(*args, **kwargs):
            raise ValueError("no such size")

        monkeypatch.setattr(kernels, "vandermonde", refuse)
        code, out, err = bench("--chip", "mi300x", "--quick", "--op", "vandermonde")
        assert (code, out.count("vandermonde")) == (1, 2)
        assert err.splitlines()[0].endswith("float32, forward: raises ValueError: no such size")
        assert err.splitlines()[-1] == "firebolt: 2 of 2 could not be predicted"

    def test_no_disassembler(self, bench, monkeypatch):
        monkeypatch.setattr(compiled_kernels, "disassembler", lambda: None)
        code, _, err = bench("--quick", "--op", "vandermonde")
        assert (code, err.count("\n")) == (1, 1)
        assert "needs nvdisasm" in err


def test_beside_a_measurement_a_prediction_may_be_missing(monkeypatch):
    assert beside.predicted_ms("film_residual", "float32", ["both"], True, "cpu") == ({}, [])
    monkeypatch.setattr(beside, "device_name", lambda device: "a toaster")
    missing = ["film_residual: nothing is predicted without the numbers of a toaster"]
    assert beside.predicted_ms("film_residual", "float32", ["both"], True, "cuda") == ({}, missing)
    monkeypatch.setattr(beside, "device_name", lambda device: "AMD Instinct MI300X")
    predicted, missing = beside.predicted_ms("film_residual", "float32", ["both"], True, "cuda")
    assert missing == []
    assert {mode for _, mode in predicted} == {"both"}


def test_goals_are_of_ops_that_there_are():
    for goal in GOALS:
        assert goal.us(10**8) > 0
        assert report.subjects_of_goals([goal.op], [goal.dtype])
