"""The day a GPU is there, rehearsed without one: the whole command, killed and gone on with, and each of its parts."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from firebolt_vl import cli, kernels
from firebolt_vl.bench import compile as compiling
from firebolt_vl.bench import kernels as measuring
from firebolt_vl.bench.budget import over_budget
from firebolt_vl.bench.cases import OPS, Case, inputs
from firebolt_vl.bench.day import run as day
from firebolt_vl.bench.day import work
from firebolt_vl.bench.day.others import by_vendor_fft, others
from firebolt_vl.bench.day.page import page
from firebolt_vl.bench.day.steps import SCALES, Step, steps
from firebolt_vl.bench.day.work import read_result, target_of
from firebolt_vl.bench.day.worker import Worker
from firebolt_vl.bench.sweep import asked, climb, neighbours, replacing, table_of, winners
from firebolt_vl.kernels import reference, use_implementation
from firebolt_vl.kernels.configurations import Question, read_table
from firebolt_vl.kernels.launch import recording

COMMAND = [Path(sys.executable).with_name("firebolt"), "bench", "gpu-day", "--rehearse", "--seconds", "7200", "--out"]
REHEARSAL = SCALES["rehearsal"]
NAMES = [step.name for step in steps(REHEARSAL)]
BEGUN = 4
"""Steps that are finished before the command is killed."""


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"FIREBOLT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def finished(folder: Path) -> dict[str, bytes]:
    """The files of the finished steps by their names."""
    files = {file.stem: file.read_bytes() for file in (folder / "steps").glob("*.json")}
    return {name: content for name, content in files.items() if json.loads(content)["finished"]}


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A rehearsal that is killed midway and gone on with: its folder, what was finished before, and what is told."""
    place = tmp_path_factory.mktemp("day")
    folder = place / "results"
    command = subprocess.Popen([*COMMAND, folder], env=environment(place), stdout=subprocess.PIPE, text=True)
    told = [command.stdout.readline() for _ in range(BEGUN)]
    [worker] = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()[-1:]
    command.kill()
    command.wait()
    for _ in range(600):  # a killed parent is noticed by a thread of the worker
        if not alive(int(worker)):
            break
        time.sleep(0.1)
    assert not alive(int(worker))
    before = finished(folder)
    again = subprocess.run([*COMMAND, folder], env=environment(place), capture_output=True, text=True)
    return SimpleNamespace(folder=folder, told=told, before=before, again=again, cache=place / "cache")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the worker is found in /proc")
class TestRehearsal:
    def test_what_is_finished_outlives_a_kill(self, rehearsed):
        assert [line.partition(":")[0] for line in rehearsed.told] == NAMES[:BEGUN]
        assert set(rehearsed.before) >= set(NAMES[:BEGUN])
        assert len(rehearsed.before) < len(NAMES)

    def test_the_same_command_goes_on_with_the_rest(self, rehearsed):
        assert (rehearsed.again.returncode, rehearsed.again.stderr) == (0, "")
        told = dict(line.split(": ", 1) for line in rehearsed.again.stdout.splitlines()[:-1])
        assert list(told) == NAMES
        for name in NAMES:
            assert (told[name] == "is there already") == (name in rehearsed.before)
        after = finished(rehearsed.folder)
        assert set(after) == set(NAMES)
        assert {name: after[name] for name in rehearsed.before} == rehearsed.before

    def test_every_op_is_timed_in_every_dtype(self, rehearsed):
        points = measuring.from_csv((rehearsed.folder / "times.csv").read_text())
        assert {(point.op, point.dtype) for point in points} == {
            (op, dtype) for op in OPS for dtype in REHEARSAL.dtypes(op)
        }
        assert {point.provider for point in points} >= {"ours", "eager", "cuFFT", "taps + cuFFT"}
        assert {point.mode for point in points} == {"forward", "backward"}
        assert {point.mode for point in points if OPS[point.op].in_place} == {"forward"}
        assert {point.check for point in points} == {"green"}

    def test_the_pages_are_written(self, rehearsed):
        text = (rehearsed.folder / "README.md").read_text()
        for words in ("in a rehearsal", "## Steps", "skipped", "## Whole answers", "## Configurations", "not known"):
            assert words in text
        for name in ("fft_conv-bfloat16.png", "answers.png"):
            with Image.open(rehearsed.folder / name) as picture:
                assert picture.format == "PNG"
        assert len((rehearsed.folder / "answers.csv").read_text().splitlines()) == 1 + len(REHEARSAL.batches)

    def test_configurations_of_a_rehearsal_are_kept_in_its_folder_alone(self, rehearsed):
        read_table((rehearsed.folder / "configurations.json").read_text(), "configurations.json")
        assert not (rehearsed.cache / "configurations").exists()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no groups of processes")
def test_a_worker_that_dies_or_takes_too_long_costs_its_step_alone():
    worker, rows = Worker("rehearsal"), []
    step = Step("sweep", "sweep", "cauchy", 60, 0)

    def kill(row):
        rows.append(row)
        os.kill(worker.process.pid, signal.SIGKILL)

    try:
        assert worker.do(Step("none", "none", "", 60, 0), 60, rows.append) == "KeyError: 'none'"
        assert worker.do(Step("gpu", "tests", "gpu", 60, 0), 60, kill) == "the process that did it died"
        assert rows
        assert worker.do(step, 0, rows.append) == "it was broken off after 0 s"
        assert worker.process is None
    finally:
        worker.stop()


class Instant:
    """A worker that is done at once."""

    def __init__(self, scale):
        self.stopped = False

    def do(self, step, seconds, keep):
        keep({"note": f"at most {seconds <= step.most}"})
        return "broken" if step.name == NAMES[2] else ""

    def stop(self):
        self.stopped = True


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.setattr(day, "Worker", Instant)


def test_a_step_without_time_is_not_begun_and_one_that_broke_is_done_again(instant, tmp_path):
    told = []
    known = day.run(tmp_path, "rehearsal", day.RESERVE + 25, told.append)
    least = {step.name: step.least for step in steps(REHEARSAL)}
    for name, line in zip(NAMES, told, strict=True):
        assert line.startswith(f"{name}: ")
        assert line.endswith("no time is left for it") == (least[name] > 25)
    assert (known[NAMES[2]]["finished"], known[NAMES[2]]["problem"]) == (False, "broken")
    assert "| broken |" in (tmp_path / "README.md").read_text()
    day.run(tmp_path, "rehearsal", 1000, told.append)
    assert told[len(NAMES) + 1] == f"{NAMES[1]}: is there already"
    assert told[len(NAMES) + 2] == f"{NAMES[2]}: broken"


def test_a_folder_of_another_day_is_left_alone(instant, tmp_path, monkeypatch):
    day.run(tmp_path, "rehearsal", 1000, lambda line: None)
    monkeypatch.setattr(measuring, "commit", lambda: "another")
    with pytest.raises(day.OtherDay, match="not another; name another folder"):
        day.run(tmp_path, "rehearsal", 1000, lambda line: None)


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("tests/kernels/test_gpu.py::test_a[G5-float32] PASSED   [ 12%]", ("test_a[G5-float32]", "passed")),
        ("[gw3] [  7%] FAILED tests/kernels/test_gpu.py::test_a[1] ", ("test_a[1]", "failed")),
        ("tests/kernels/test_gpu.py::test_a SKIPPED (make test-gpu)", ("test_a", "skipped")),
        ("tests/kernels/test_gpu.py::test_a ERROR", ("test_a", "error")),
        ("tests/kernels/test_gpu.py::test_a", None),
        ("FAILED tests/kernels/test_gpu.py::test_a - assert 0", ("test_a", "failed")),
        ("collected 3 items", None),
    ],
)
def test_results_are_read_from_what_pytest_prints(line, row):
    found = read_result(line)
    assert found == (row and {"test": f"tests/kernels/test_gpu.py::{row[0]}", "result": row[1]})


QUESTION = Question("kernel", "float32", "L=64", {"BLOCK": 64, "num_warps": 4, "num_stages": 2})


def test_neighbours_change_one_value():
    found = neighbours(QUESTION.default)
    assert {"BLOCK": 32, "num_warps": 4, "num_stages": 2} in found
    assert {"BLOCK": 64, "num_warps": 4, "num_stages": 3} in found
    assert len(found) == 6
    assert neighbours({"num_warps": 16}) == [{"num_warps": 8}]
    assert neighbours({"BLOCK": 1}) == [{"BLOCK": 2}]


def clock_of(us):
    """A clock on which a configuration takes us(BLOCK, num_warps)."""

    def clock(mode, answer):
        default, other = QUESTION.default, answer(QUESTION)
        return tuple(us(values["BLOCK"], values["num_warps"]) for values in (default, other))

    return clock


def test_a_sweep_climbs_to_what_is_quickest():
    def us(block, warps):
        if block > 256:
            raise RuntimeError("out of resource: shared memory")
        return 100 + abs(block.bit_length() - 9) * 10 + abs(warps.bit_length() - 2) * 7  # 256, 2

    trials = list(climb("op", "L=64", "forward", QUESTION, clock_of(us)))
    [best] = winners(trials)
    assert json.loads(best.configuration) == {"BLOCK": 256, "num_warps": 2, "num_stages": 2}
    assert [trial.problem for trial in trials if json.loads(trial.configuration)["BLOCK"] == 512] == [
        "RuntimeError: out of resource: shared memory"
    ] * 2
    table = read_table(table_of(trials, "a chip", "a test"), "table")
    assert table == {("kernel", "float32", "L=64"): json.loads(best.configuration)}
    wrong = replace(best, problem="gradient 0 is over the budget")
    assert wrong not in winners([*(trial for trial in trials if trial != best), wrong])


def test_what_is_hardly_quicker_is_not_kept():
    trials = list(climb("op", "L=64", "forward", QUESTION, clock_of(lambda block, warps: 100 - block / 64)))
    assert winners(trials) == []
    assert read_table(table_of(trials, "a chip", "a test"), "table") == {}


def test_kernels_are_asked_and_answered_one_by_one():
    c = torch.ones(3, 20, dtype=torch.complex64)
    with recording() as launches, use_implementation("triton"):
        [question] = asked(lambda: kernels.vandermonde(c, c, 40))
    assert question.kernel == launches[0].kernel.fn.__name__
    assert replacing(question.kernel, {"ROWS": 1}, question) == {"ROWS": 1}
    assert replacing("another", {"ROWS": 1}, question) == question.default


@pytest.mark.parametrize("options", [(), ("gate",)])
def test_the_vendors_fft_is_the_same_convolution(options):
    call = inputs("fft_conv", Case({"B": 2, "D": 3, "L": 50}, options), "float32")
    gate = [call.kwargs["gate"]] if options else []
    found = by_vendor_fft(*call.args, *gate)

    def defined(tensors):
        return [reference.fft_conv(*tensors[:3], gate=tensors[3] if options else None)]

    assert over_budget([found], defined, [*call.args, *gate], names=["y"]) is None


def test_a_scan_by_taps_is_the_same_scan():
    case = Case({"B": 2, "D": 3, "L": 50, "N": 4})
    call = inputs("diagonal_scan", case, "float32")
    call = call.map(lambda tensor: tensor.to(torch.complex128 if tensor.is_complex() else torch.float64))
    [run] = others("diagonal_scan", call).values()
    torch.testing.assert_close(run(), reference.diagonal_scan(*call.args)[0])
    with_state = inputs("diagonal_scan", case._replace(options=("state",)), "float32")
    assert others("diagonal_scan", with_state) == {}


def test_libraries_are_taken_where_they_are_installed(monkeypatch):
    call = inputs("selective_scan", Case({"B": 2, "D": 3, "L": 5, "N": 4}), "float32")
    name = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setitem(sys.modules, name, None)
    assert others("selective_scan", call) == {}
    theirs = ModuleType(name)
    theirs.selective_scan_fn = lambda *args, **kwargs: (len(args), sorted(kwargs))
    for package in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, name, theirs)
    assert others("selective_scan", call)["mamba_ssm"]() == (5, ["D", "delta_bias", "delta_softplus", "z"])
    step = inputs("selective_state_update", Case({"B": 2, "D": 3, "N": 4}), "float32")
    assert others("selective_state_update", step) == {}
    name = "mamba_ssm.ops.triton.selective_state_update"
    theirs = ModuleType(name)
    theirs.selective_state_update = reference.selective_state_update
    for module in ("mamba_ssm.ops.triton", name):
        monkeypatch.setitem(sys.modules, module, theirs)
    wanted = reference.selective_state_update(step.args[0].clone(), *step.args[1:], **step.kwargs)
    torch.testing.assert_close(others("selective_state_update", step)["mamba_ssm"](), wanted)


def test_the_target_is_that_of_the_gpu(monkeypatch):
    assert target_of("cpu") is None
    for major, minor, target in ((9, 0, "sm_90"), (12, 0, "sm_120"), (8, 9, None)):
        card = SimpleNamespace(major=major, minor=minor)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, card=card: card)
        assert target_of("cuda") == target
    monkeypatch.setattr(torch.version, "hip", "7.0")
    card = SimpleNamespace(gcnArchName="gfx950:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert target_of("cuda") == "gfx950"


def test_what_is_compiled_beforehand_is_what_a_launch_looks_up(tmp_path):
    script = Path(__file__).with_name("cached_keys.py")
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert list(found) == list(OPS)
    for op, (count, different) in found.items():
        assert count > (0 if OPS[op].in_place else 1)
        assert different == []


def test_what_was_predicted_stands_beside_what_was_measured(monkeypatch):
    scale = REHEARSAL
    [first, *_] = work.time_op("film_residual float32", scale)
    forecast = {**{name: first[name] for name in ("op", "sizes", "dtype", "mode")}, "bound": "memory", "problem": ""}
    ours = next(row for row in work.time_op("film_residual float32", scale) if row.get("provider") == "ours")
    known = {
        "times": {"step": "times", "kind": "times", "finished": True, "problem": "", "rows": [ours]},
        "predict": {
            "step": "predict",
            "kind": "predict",
            "finished": True,
            "problem": "",
            "rows": [{**forecast, "predicted_us": 500 * ours["median_ms"]}],
        },
    }
    about = {"scale": "full", "device": "A GPU", "torch": "2", "triton": "3", "commit": "abc"}
    [line] = [line for line in page(about, known).splitlines() if line.startswith("| film_residual")]
    assert f"| {500 * ours['median_ms']:.1f} | memory | 2.00 |" in line


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "is_interpreting", lambda: False)

    def run(*arguments):
        code = cli.run(["bench", "gpu-day", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


FAILED = {"test": "t", "result": "failed"}


class TestCommand:
    def test_it_needs_a_gpu(self, command, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        code, out, err = command()
        assert (code, out) == (1, "")
        assert err == "firebolt: bench gpu-day needs a GPU, and this PyTorch sees none; --rehearse does without\n"

    def test_folders_that_cannot_be(self, command, tmp_path):
        (tmp_path / "file").touch()
        assert "a file; expected a folder" in command("--rehearse", "--out", tmp_path / "file")[2]
        code, _, err = command("--rehearse", "--out", tmp_path)
        assert (code, "has files that this command did not write" in err) == (2, True)

    def test_a_failed_test_is_the_exit_code(self, command, instant, monkeypatch, tmp_path):
        monkeypatch.setattr(Instant, "do", lambda self, step, seconds, keep: keep(FAILED) or "")
        monkeypatch.setattr(day, "steps", lambda scale: [Step("tests-of-gpu", "tests", "gpu", 60, 0)])
        code, _, err = command("--rehearse", "--out", tmp_path / "results")
        assert code == 1
        assert "1 tests failed" in err
        assert "- t: failed" in (tmp_path / "results" / "README.md").read_text()
