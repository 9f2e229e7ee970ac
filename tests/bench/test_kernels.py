"""Microbenchmarks: what is checked, counted, written and told; how long anything takes is not tested."""

import json
import re

import pytest
import torch

from firebolt_vl import cli, kernels
from firebolt_vl.bench import kernels as measuring
from firebolt_vl.bench import modulator, packing
from firebolt_vl.bench.cases import OPS as CASES
from firebolt_vl.bench.cases import Case, inputs
from firebolt_vl.bench.kernels import check, cmm_subject, from_csv, measure, op_subject, runs_of, to_csv
from firebolt_vl.bench.timing import Run, peak_bytes
from firebolt_vl.files.writing import write_whole
from firebolt_vl.kernels import reference

SMALL = Case({"B": 1, "T": 8, "G": 3, "D": 16}, (), True)
TINY = {"B": 2, "T": 6, "G": 5, "K": 2, "D": 16, "D_v": 12, "H": 2, "D_h": 4}
TINY_CASES = (("film part", TINY), ("whole layer", TINY), ("S4 block", {"B": 2, "T": 6, "D": 16, "N": 8}))


@pytest.fixture
def small(monkeypatch):
    """The benchmarks with one small size, and torch.compile by its quick backend."""
    op = CASES["film_residual"]._replace(cases=(SMALL,))
    monkeypatch.setitem(measuring.OPS, "film_residual", op)
    monkeypatch.setattr(measuring.modulator, "CASES", TINY_CASES)
    monkeypatch.setattr(measuring, "QUICK_SECONDS", 0.001)
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend="eager", **options))


@pytest.fixture
def bench(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.run(["bench", "kernels", "--quick", *map(str, arguments)])
        out, err = capfd.readouterr()
        # The command keeps torch's profiler quiet by variables that only count before torch is imported.
        return code, out, "".join(line for line in err.splitlines(True) if not line.startswith(("USDT:", "[W")))

    return run


@pytest.mark.parametrize("op", CASES)
def test_what_the_check_says_of_the_public_functions(op):
    case = next(case for case in CASES[op].cases if case.quick)
    case = case._replace(sizes={name: min(size, 24 if name in "DTL" else 4) for name, size in case.sizes.items()})
    for seed in range(2):
        assert check(*measuring.functions(op), inputs(op, case, "float32", seed=seed)) is None


def test_the_check_finds_a_wrong_value_and_a_wrong_gradient():
    call = inputs("film_residual", SMALL, "float32")

    def wrong_value(*args):
        r, normed = reference.film_residual(*args)
        return r, normed + 1e-3

    def wrong_gradient(y, *args):
        return reference.film_residual(1.001 * y - 0.001 * y.detach(), *args)

    assert "output 1" in check(wrong_value, reference.film_residual, call)
    assert "gradient 0" in check(wrong_gradient, reference.film_residual, call)


def test_a_size_that_is_not_to_be_timed_is_left_out(small, monkeypatch):
    op = measuring.OPS["film_residual"]._replace(cases=(SMALL, SMALL._replace(timed=False)))
    monkeypatch.setitem(measuring.OPS, "film_residual", op)
    for quick in (False, True):
        assert measuring.count_subjects("film_residual", "float32", quick) == 1
        assert len(list(measuring.subjects("film_residual", "float32", "cpu", quick))) == 1
    assert not any(case.timed for case in CASES["fft_conv"].cases if {"fast", "spectrum"} & set(case.options))


def test_the_floor_is_every_tensor_once():
    subject = op_subject("film_residual", SMALL, "float32", "cpu")
    read = 8 * 16 * 2 + 8 * 3 + 3 * 32 + 32 + 1 + 2 * 16
    written = 2 * 8 * 16
    assert runs_of(subject, "forward")[1] == 4 * (read + written)
    assert runs_of(subject, "backward")[1] == 4 * (read + written + read)
    assert runs_of(subject, "both")[1] == 4 * (3 * read + 2 * written)


def test_peak_memory_is_what_was_held_at_once():
    def work(_):
        a = torch.empty(1000)
        del a
        b = torch.empty(1000)
        return torch.cat([b, b])

    assert 12000 <= peak_bytes(Run(work), "cpu") < 13000


@pytest.mark.parametrize(("part", "sizes"), TINY_CASES, ids=[part for part, _ in TINY_CASES])
def test_a_layer_from_its_equations_is_the_layer(part, sizes):
    torch.manual_seed(0)
    layer = modulator.make_layer(part, sizes, torch.float64)
    given = [torch.randn(2, 6, 16, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)]
    given = given if "G" in sizes else given[:1]
    by_equations = modulator.by_equations(layer, 6)
    torch.testing.assert_close(by_equations(*given), layer(*given), rtol=1e-9, atol=1e-11)
    assert cmm_subject(part, sizes, "float32", "cpu").check() is None


def test_points_come_back_from_their_file(small):
    points = measure(op_subject("film_residual", SMALL, "float32", "cpu"), ["both"], "cpu", 0.001)
    assert [point.provider for point in points] == ["eager", "compiled", "ours"]
    assert from_csv(to_csv(points)) == points


def test_a_provider_that_cannot_run_is_left_out(small, monkeypatch):
    def no_compiler(function, **options):
        def fail(*args, **kwargs):
            raise RuntimeError("no C++ compiler\nand pages more")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    notes = []
    points = measure(op_subject("film_residual", SMALL, "float32", "cpu"), ["forward"], "cpu", 0.001, notes.append)
    assert [point.provider for point in points] == ["eager", "ours"]
    assert notes == [f"film_residual {SMALL} forward: compiled is left out: RuntimeError: no C++ compiler"]


def test_half_a_file_is_never_there(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("old")

    def stop_half_way(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, stop_half_way)
    assert [file.name for file in tmp_path.iterdir()] == ["points.csv"]
    assert path.read_text() == "old"


class TestCommand:
    def test_table_csv_and_plots(self, bench, small, tmp_path):
        code, out, err = bench("--op", "film_residual", "--op", "cmm", "--out", "figures")
        assert (code, err) == (0, "")
        assert "x compiled" in out
        assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
            "cmm.png",
            "film_residual.png",
            "kernels.csv",
        ]
        points = from_csv((tmp_path / "figures" / "kernels.csv").read_text())
        assert len(points) == 3 * (3 + 2 + 3 + 2)
        assert {point.check for point in points} == {"green"}

    def test_lines_of_other_ops_and_modes_stay(self, bench, small, tmp_path):
        table = tmp_path / "figures" / "kernels.csv"
        for arguments in (["--op", "film_residual"], ["--op", "grounded_film", "--mode", "forward"]):
            assert bench(*arguments, "--out", "figures")[0] == 0
        before = from_csv(table.read_text())
        assert bench("--op", "film_residual", "--mode", "both", "--out", "figures")[0] == 0
        after = from_csv(table.read_text())
        kept = [point for point in before if (point.op, point.mode) != ("film_residual", "both")]
        assert after[: len(kept)] == kept
        anew = [(point.op, point.mode, point.provider) for point in after[len(kept) :]]
        assert sorted(anew) == [("film_residual", "both", name) for name in ("compiled", "eager", "ours")]
        table.write_text("time,flies\n1,2\n")
        code, _, err = bench("--op", "film_residual", "--mode", "forward", "--out", "figures")
        assert code == 2
        assert "which exists already and was not written by this command" in err
        assert table.read_text() == "time,flies\n1,2\n"

    def test_json(self, bench, small):
        code, out, err = bench("--op", "film_residual", "--mode", "forward", "--json")
        assert (code, err) == (0, "")
        points = json.loads(out)["points"]
        assert [point["mode"] for point in points] == ["forward"] * 3
        assert all(point["median_ms"] > 0 for point in points)

    def test_no_speed_up_is_told_where_the_check_is_red(self, bench, small, monkeypatch):
        right = kernels.film_residual
        monkeypatch.setattr(kernels, "film_residual", lambda *args: tuple(1.01 * r for r in right(*args)))
        code, out, err = bench("--op", "film_residual", "--mode", "forward")
        assert code == 1
        assert out.count("red") == 2
        assert "red: output 0 is" in err
        assert err.splitlines()[-1] == "firebolt: 1 sizes have a red check; no speed-up is shown for them"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--op", "fft"], "--op is fft; expected one of correlation_context"),
            (["--mode", "sideways"], "--mode is sideways; expected one of forward, backward, both"),
            (["--dtype", "float64"], "--dtype is float64; expected one of float32"),
            (
                ["--op", "vandermonde", "--dtype", "float16"],
                "--dtype is float16, in which none of vandermonde is measured",
            ),
            (["--threads", "0"], "see firebolt bench kernels --help"),
            (["--out", "a file"], "--out is a file, a file; expected a folder"),
        ],
    )
    def test_arguments_that_cannot_be(self, bench, tmp_path, arguments, words):
        (tmp_path / "a file").touch()
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_packed_and_padded_rows(self, capfd, monkeypatch):
        assert cli.run(["bench", "packing", "--size", "large"]) == 2
        assert "--size is large; expected one of small, lfm2-350m" in capfd.readouterr().err
        tiny = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "vocab_size": 64, "hidden_size": 32}
        monkeypatch.setitem(packing.SIZES, "small", {**packing.SIZES["small"], **tiny, "intermediate_size": 32})
        few = ["--batch-size", "2", "--median", "6", "--batches", "1", "--seconds", "0"]
        assert cli.run(["bench", "packing", *few]) == 0
        assert re.search(r"as they come +\d+ +\d+\.\d% +[\d,]+ +[\d,]+ +\d+\.\d\d", capfd.readouterr().out)

    def test_the_crossover_of_convolutions(self, capfd):
        assert cli.run(["bench", "crossover", "--dtype", "float16"]) == 2
        assert "expected one of float32, float64" in capfd.readouterr().err
