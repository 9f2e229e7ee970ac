"""Evaluation timed beside its bare loop: what is measured, at small sizes, and what the numbers are made of."""

import json

import pytest
import torch
from small_sizes import SMALL

from firebolt_vl import cli, evaluation_benchmark
from firebolt_vl.bench import evaluation as measuring
from firebolt_vl.bench.evaluation import Asked, Clock, Turn, Turns
from firebolt_vl.checkpoint import Loaded

SIZES = SMALL._replace(text={**SMALL.text, "vocab_size": 2000})


@pytest.fixture(scope="module")
def loaded():
    return Loaded(*measuring.build("float32", "cpu", SIZES))


def test_evaluation_and_the_bare_loop_say_the_same_in_turns(loaded, tmp_path):
    found = evaluation_benchmark.measure(loaded, tmp_path, rows=10, images=3, batch_size=2, new_tokens=3)
    assert (found.rows, found.images, found.batch_size, found.answers_that_differ) == (10, 3, 2, 0)
    assert found.bare_s > 0
    assert found.ours_s > 0
    assert found.overhead == pytest.approx(found.ours_s / found.bare_s - 1)
    rows = [json.loads(line) for line in (tmp_path / "measured" / "pope.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} == {"0.jpg", "1.jpg", "2.jpg"}
    assert len((tmp_path / "measured" / "pope.predictions.jsonl").read_text().splitlines()) == 10


def test_answers_that_differ_are_counted(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "answer", lambda model, processor, batch, new_tokens: ["?!"] * len(batch))
    found = evaluation_benchmark.measure(loaded, tmp_path, rows=4, images=4, batch_size=2, new_tokens=3)
    assert found.answers_that_differ == 4


def test_a_turn_is_the_same_batches_by_both(tmp_path):
    said = []
    turns = Turns(lambda batch: [said.append(one.id) or str(one.id) for one in batch], size=2)
    turns.begin()
    for number in range(3):
        turns.asked([Asked(number, tmp_path, "?")])
        turns.answered()
    turns.end()
    assert said == [0, 1, 2]
    assert turns.answers == {0: "0", 1: "1", 2: "2"}
    assert [turn.rows for turn in turns.found] == [2, 1]


def test_the_report_is_of_all_turns_and_its_slope_of_the_later_ones():
    turns = [Turn(10, Clock(1.1, 2.2), Clock(1.0, 2.0), 100.0 + (50 if number == 0 else number)) for number in range(8)]
    turns.append(Turn(0, Clock(0.08, 0.0), Clock(0.0, 0.0), 107.0))
    known = {"images": 80, "batch_size": 5, "new_tokens": 4, "dtype": "float32", "device": "cpu"}
    found = measuring.report(turns, answers_that_differ=0, **known)
    assert (found.rows, found.ours_s, found.bare_s) == (80, pytest.approx(0.111), pytest.approx(0.1))
    assert found.overhead == pytest.approx(0.11)
    assert found.quartiles == found.processor_quartiles == pytest.approx((0.1, 0.1, 0.1))
    assert found.processor_overhead == pytest.approx(0.1)
    assert (found.resident_mb, found.mb_per_100_rows) == (102.0, pytest.approx(10.0))
    page = measuring.page(found, "firebolt bench evaluation")
    shown = "11.0 % (10.0, 10.0, 10.0) | 10.0 % (10.0, 10.0, 10.0) | 0 | 102 MB | 10.0 MB |"
    assert f"| 80 | 80 | 0.111 | 0.100 | {shown}" in page


def test_the_command_writes_its_report(loaded, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "build", lambda dtype, device: loaded)
    arguments = ["--rows", "4", "--batch-size", "2", "--new-tokens", "2", "--device", "cpu"]
    out, threads = tmp_path / "report.md", torch.get_num_threads()
    assert cli.run(["bench", "evaluation", *arguments, "--threads", str(threads), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
    assert out.read_text().startswith("# Evaluation beside its bare loop\n\n| rows |")
    monkeypatch.setattr(measuring, "answer", lambda model, processor, batch, new_tokens: ["?!"] * len(batch))
    assert cli.run(["bench", "evaluation", *arguments]) == 1
    told = capsys.readouterr()
    assert "answers that differ" in told.out
    assert "4 of 4 answers are not those of the bare loop" in told.err
