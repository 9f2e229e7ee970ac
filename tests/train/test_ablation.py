"""The ablations: what is compared, that a finished run is not run again, and the tables."""

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from numerics import assert_close
from PIL import Image
from trainings import poisoned

pytest.importorskip("sklearn")

from firebolt_vl import cli, embedded_checkpoint
from firebolt_vl.evaluate.digits import draw
from firebolt_vl.evaluate.exam import pose
from firebolt_vl.evaluate.questions import KINDS
from firebolt_vl.train.ablation import pool, report, runs, training
from firebolt_vl.train.ablation.boards.variants import TABLES as BOARDS_TABLES
from firebolt_vl.train.ablation.task import COARSE, FINE, Settings, boxes, features, keep_task, load_task, shown
from firebolt_vl.train.ablation.variants import BASE, TABLES, VARIANTS, learning, make_model, matched_width, variants_of
from firebolt_vl.train.errors import Stopped
from firebolt_vl.train.tiny.fusion import FusionJob
from firebolt_vl.train.tiny.pool import DRAWN_SIDE, centres_of
from firebolt_vl.train.tiny.tokenizer import make_tokenizer

EMBEDDED = embedded_checkpoint()
SMALL = Settings(scenes=8, steps=3, test_scenes=4)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    keep_task(folder / runs.WORK / runs.TASK, EMBEDDED, SMALL, processes=1)
    return folder


@pytest.fixture(scope="module")
def task(out):
    return load_task(out / runs.WORK / runs.TASK, EMBEDDED, SMALL)


@pytest.fixture(scope="module")
def rows(out):
    return {name: runs.do_run(out, name, 0, SMALL, EMBEDDED) for name in (BASE, "prepend")}


def test_the_pool_is_what_the_tables_hold():
    assert set(VARIANTS) == {name for table in TABLES.values() for name in table}
    assert variants_of(["ssm"]) == [BASE, "s4d", "mamba", "liquid"]
    assert len(variants_of(list(TABLES))) == 26
    assert all(BASE in table for table in TABLES.values())


def test_every_variant_has_as_many_parameters_that_learn_within_5_percent():
    tokenizer = make_tokenizer()
    from firebolt_vl.model import FireboltForConditionalGeneration
    from firebolt_vl.train.ablation.variants import make_config

    counts = {}
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            counts[name] = learning(
                FireboltForConditionalGeneration(make_config(variant, tokenizer, matched_width(variant, tokenizer)))
            )
    assert all(abs(count / counts[BASE] - 1) <= 0.05 for count in counts.values()), counts
    assert max(counts[name] for name in TABLES["connector"]) / min(counts[name] for name in TABLES["connector"]) < 1.05


def test_a_scene_is_seen_at_three_scales(task):
    drawn, _ = pose(SMALL.test_scenes, 12, SMALL.split, SMALL.scale)
    found = task.exam.features[0]
    sides = {1: COARSE, 2: COARSE, 3: FINE}
    for grid, (y0, x0, y1, x1) in enumerate(boxes().tolist()):
        n = round(1 / (y1 - y0))
        side = sides[n]
        image = draw(drawn[0], DRAWN_SIDE).resize((side, side), Image.Resampling.BILINEAR)
        box = tuple(round(side * edge) for edge in (x0, y0, x1, y1))
        pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1).float() / 127.5 - 1
        with torch.no_grad():
            view = task.tower(pixel_values=pixels[None], interpolate_pos_encoding=True).pooler_output[0]
        assert_close(found[grid], view, relative=1e-4)


def test_digits_are_small_and_a_grid_shows_one_quarter_at_most(task):
    drawn, _ = pose(40, 0, "train", SMALL.scale)
    assert max(digit.size for scene in drawn for digit in scene.digits) < 0.3
    seen = shown(centres_of(drawn))
    assert not seen[:, :, 0].any()
    assert seen.sum(1).max() == 1
    for i, scene in enumerate(drawn):
        for digit in scene.digits:
            for y0, x0, y1, x1 in boxes()[seen[i, digit.tile]].tolist():
                assert y0 <= digit.y <= y1
                assert x0 <= digit.x <= x1
        assert all(seen[i, quarter, 1 + quarter] for quarter in range(4))


def test_a_run_is_a_row_with_everything_that_the_tables_tell(out, rows):
    row = rows[BASE]
    assert row["perplexity"] > 1
    assert 1 < row["first_steps_loss"] < math.inf
    assert set(row["accuracy"]["inside"]) == {*KINDS, "all"}
    assert set(row["grounding"]["inside"]) == {"questions", "weights", "occlusion"}
    assert "weights" not in rows["prepend"]["grounding"]["inside"]  # it has none
    assert json.loads(runs.POOL.row_file(out, BASE, 0).read_text())["settings"] == SMALL.to_dict()
    assert [path.name for path in (out / runs.WORK).iterdir()] == [runs.TASK]


def test_what_is_there_is_not_run_again(out, rows):
    told = []
    assert runs.POOL.missing(out, [BASE, "prepend"], 1, SMALL) == []
    runs.fill_pool(out, [BASE, "prepend"], 1, SMALL, EMBEDDED, 1, lambda *row: told.append(row))
    assert told == []
    assert runs.POOL.missing(out, [BASE, "pool"], 2, SMALL) == [("pool", 0), (BASE, 1), ("pool", 1)]
    assert runs.POOL.missing(out, [BASE], 1, replace(SMALL, steps=4)) == [(BASE, 0)]
    half = runs.POOL.row_file(out, "pool", 0)
    half.write_text('{"settings"')
    assert runs.POOL.missing(out, ["pool"], 1, SMALL) == [("pool", 0)]
    half.unlink()


def test_a_row_of_what_a_name_stood_for_before_counts_for_nothing(out, rows, monkeypatch):
    variant = VARIANTS["prepend"]
    monkeypatch.setitem(VARIANTS, "prepend", replace(variant, says="another word for it"))
    assert runs.POOL.missing(out, ["prepend"], 1, SMALL) == []
    for changed in (replace(variant, grounding_loss=0.5), replace(variant, cmm={"dropout": 0.25})):
        monkeypatch.setitem(VARIANTS, "prepend", changed)
        assert runs.POOL.missing(out, ["prepend"], 1, SMALL) == [("prepend", 0)]


def test_a_run_that_was_stopped_goes_on(out, rows, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(model, task):
        raise Stopped

    monkeypatch.setattr(runs, "examine", stop)
    with pytest.raises(Stopped):
        runs.do_run(out, "top-1", 1, SMALL, EMBEDDED)
    monkeypatch.undo()
    monkeypatch.setattr(FusionJob, "step", stop)  # all steps are done
    row = runs.do_run(out, "top-1", 1, SMALL, EMBEDDED)
    assert row["resumed"]
    runs.POOL.row_file(out, "top-1", 1).unlink()


def test_a_step_that_is_not_finite_is_skipped_and_told(out, rows):
    with poisoned(FusionJob, 1):
        row = runs.do_run(out, "top-2", 1, SMALL, EMBEDDED)
    assert row["skipped_steps"] == 1
    assert math.isfinite(row["perplexity"])
    assert rows[BASE]["skipped_steps"] == 0
    runs.POOL.row_file(out, "top-2", 1).unlink()


def test_tables_tell_means_and_spread_and_what_is_missing(out, rows):
    # Another seed of the base, with a perplexity that is told apart.
    other = {
        **json.loads(runs.POOL.row_file(out, BASE, 0).read_text()),
        "seed": 1,
        "perplexity": rows[BASE]["perplexity"] + 2,
    }
    runs.POOL.row_file(out, BASE, 1).write_text(json.dumps(other))
    page = report.write_report(out, ["connector", "ssm"], 2, SMALL, "firebolt ablate")
    runs.POOL.row_file(out, BASE, 1).unlink()
    low = rows[BASE]["perplexity"]
    assert f"| {low + 1:,.3f} ({low:,.3f} to {low + 2:,.3f}) |" in page
    assert "Not all 2 seeds are there yet: prepend, cross-attend." in page
    assert "Not all 2 seeds are there yet: Mamba, S4D, Liquid-S4." in page
    assert page.count("`firebolt ablate`") == 2
    majority = report.layouts_mean(rows[BASE], ["baselines", "majority"], "how many")
    assert any(line.startswith("| *majority* |") and f"| {majority:.1f} |" in line for line in page.splitlines())
    for name in ("connector.md", "connector.csv", "connector.png", "ssm.md"):
        assert (out / name).stat().st_size > 100
    found = list(csv.DictReader(io.StringIO((out / "connector.csv").read_text())))
    assert [(line["variant"], line["seeds"]) for line in found] == [("prepend", "1"), (BASE, "2")]
    assert float(found[1]["perplexity mean"]) == pytest.approx(low + 1, rel=1e-4)
    assert found[0]["grounding by weights mean"] == ""


def test_the_loss_of_the_first_steps_is_their_mean_without_what_was_skipped(tmp_path):
    lines = [{"step": step, "loss": loss, "skipped": loss is None} for step, loss in enumerate([3.0, None, 2.0], 1)]
    lines += [{"step": step, "loss": 1.0} for step in range(4, training.FIRST_STEPS + 50)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = (5 + training.FIRST_STEPS - 3) / (training.FIRST_STEPS - 1)
    assert training.first_steps_loss(tmp_path / "history.jsonl") == pytest.approx(wanted)
    assert report.MEASURES[report.FIRST_LOSS]({}) is None


def test_the_mean_is_that_of_the_two_kinds_of_layouts():
    row = {
        "accuracy": {"inside": {"all": 0.5}, "harder": {"all": 1.0}},
        "other": {"inside": {}, "harder": {"all": 0.25}},
    }
    assert report.layouts_mean(row, ["accuracy"], "all") == 75
    assert report.layouts_mean(row, ["other"], "all") == 25
    assert report.layouts_mean(row, ["other"], "how many") is None
    assert report.cell([97.0, 98.0]) == "97.5 (97.0 to 98.0)"
    assert report.cell([1234.0], 0) == "1,234"
    assert report.cell([]) == "-"


def test_variants_differ_in_what_they_say(task):
    made = {
        name: make_model(VARIANTS[name], task.processor.tokenizer, task.tower, 0) for name in ("concat", "no-positions")
    }
    assert made["concat"].config.fusion == "concat"
    assert made["no-positions"].model.connector.positions is None


def test_the_command_fills_the_pool_and_prints_the_tables(out, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Settings, "quick", classmethod(lambda cls: SMALL))
    monkeypatch.setitem(TABLES, "fusion", {BASE: "replace"})
    (tmp_path / "out" / runs.WORK).mkdir(parents=True)
    shutil.copy(out / runs.WORK / runs.TASK, tmp_path / "out" / runs.WORK)
    assert cli.run(["ablate", "fusion", "--quick", "--out", str(tmp_path / "out"), "--processes", "1"]) == 0
    told = capfd.readouterr()
    assert "1 configurations x 1 seeds: 1 runs to do" in told.err
    assert "| fusion |" in told.out
    assert cli.run(["ablate", "fusion", "--quick", "--out", str(tmp_path / "out")]) == 0
    assert "0 runs to do" in capfd.readouterr().err
    assert cli.run(["ablate", "ssn"]) == 2
    tables = [*TABLES, *BOARDS_TABLES]
    assert f"ssn; expected one of {', '.join(tables)}" in capfd.readouterr().err


def test_a_pool_that_is_stopped_leaves_tables_of_what_is_there(out, rows, monkeypatch, capfd):
    def stop_after_one(folder, names, seeds, settings, checkpoint, processes, report):
        report("prepend", 0, rows["prepend"])
        raise OSError("no space left")

    monkeypatch.setattr(Settings, "quick", classmethod(lambda cls: SMALL))
    monkeypatch.setattr(runs, "fill_pool", stop_after_one)
    (out / "connector.md").unlink(missing_ok=True)
    assert cli.run(["ablate", "connector", "--quick", "--out", str(out)]) == 1
    assert "no space left; the finished runs are kept" in capfd.readouterr().err
    page = (out / "connector.md").read_text()
    assert "| prepend |" in page
    assert "Not all 1 seeds are there yet: cross-attend." in page


SMALL_RUNS = """
import sys
from firebolt_vl import cli
from firebolt_vl.train.ablation.task import Settings
if __name__ == "__main__":
    Settings.quick = classmethod(lambda cls: Settings(scenes=8, steps=int(sys.argv[1]), test_scenes=4))
    cli.main()
"""


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(tmp_path):
    """Of a terminal it reaches the processes that train too."""
    (tmp_path / "run.py").write_text(SMALL_RUNS.replace("cli.main()", "sys.exit(cli.run(sys.argv[2:]))"))
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "run.py"), "4000", "ablate", "positions", "--quick", "--out", str(out)]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(out.glob("work/*/history.jsonl")):
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130, said
    last = "firebolt: stopped; the finished runs in --out are kept; the same command goes on with the others"
    assert said.splitlines()[-1] == last
    assert "Traceback" not in said
    assert list(out.glob("work/*/checkpoints/step-*"))


@pytest.mark.parametrize("end", [Stopped("stopped after step 2"), KeyboardInterrupt()], ids=["step", "at once"])
def test_a_process_that_was_stopped_begins_no_other_run(monkeypatch, end):
    """Else it takes the run of a process that is slow to start, and the command does not end."""
    begun = []

    def do_run(name, seed):
        begun.append(name)
        raise end

    monkeypatch.setattr(pool, "_stopped", False)
    with pytest.raises(type(end)):
        pool.heard(do_run, "first", 0)
    with pytest.raises(Stopped):
        pool.heard(do_run, "second", 0)
    assert begun == ["first"]


def test_features_come_in_batches(task):
    pixels = [torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8) for side in (COARSE, FINE)]
    assert_close(features(task.tower, *pixels, batch=2), features(task.tower, *pixels), relative=1e-4)
