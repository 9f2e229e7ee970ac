"""`ask --batch` in several processes: a part each, joined at the end, every row once, whatever happens in between."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from batches import TOKENS, questions, read, write
from commands import assert_refused
from PIL import Image

from firebolt_vl import batch as batching
from firebolt_vl.answer_files import AnswerFile, Question
from firebolt_vl.errors import Misuse
from firebolt_vl.files.writing import is_locked, turn_at
from firebolt_vl.parts import dealt
from firebolt_vl.ranks import ALONE, Rank, this_rank

OF_AN_ANSWER = ("id", "image", "question", "answer", "complete", "prompt_tokens", "answer_tokens", "by")


@pytest.fixture
def ranked(batch, monkeypatch):
    """Run as one process of a launcher."""

    def run(number, count, *arguments, **how):
        with monkeypatch.context() as environment:
            for name, value in (("RANK", number), ("WORLD_SIZE", count), ("LOCAL_RANK", number)):
                environment.setenv(name, str(value))
            return batch(*arguments, **how)

    return run


def answers(path: Path) -> list[dict]:
    """Answers without probabilities, which the rows that are answered together may change in the last digit."""
    return [{name: row[name] for name in OF_AN_ANSWER} for row in read(path)]


def beside(folder: Path) -> list[str]:
    """The files of answers and problems, and what a run may have left."""
    return sorted(file.name for file in folder.iterdir() if "a." in file.name or file.name.startswith("."))


def test_ranks_are_what_a_launcher_says():
    assert this_rank({}) == this_rank({"RANK": "0", "WORLD_SIZE": "1"}) == this_rank({"MASTER_ADDR": "here"}) == ALONE
    assert this_rank({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Rank(3, 4, 1)
    assert this_rank({"RANK": "3", "WORLD_SIZE": "4"}) == Rank(3, 4, 0)  # a process for each machine
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    assert this_rank(dict(zip(names, "121"))) == Rank(1, 2, 1)
    assert [Rank(3, 4, 1).leads, Rank(2, 4, 0).leads, ALONE.leads] == [False, True, True]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is missing from the environment; expected the number of this process, from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 in the environment; expected"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is -1 in the environment; expected"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two in the environment; expected a number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0 in the environment; expected a number of processes"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK is x in the environment; expected"),
    ],
)
def test_an_environment_that_says_nothing_sensible_is_refused(environment, said):
    with pytest.raises(Misuse, match=said):
        this_rank(environment)


@pytest.mark.parametrize("rows", [0, 1, 7, 100, 5000])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_rows_are_dealt_once_evenly_and_in_neighbourhoods(rows, count):
    asked = [Question(line, line, "why?", []) for line in range(rows)]
    shares = [dealt(asked, Rank(number, count)) for number in range(count)]
    assert sorted(row.line for share in shares for row in share) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= max(1, min(64, rows // (4 * count)))
    assert dealt(asked, ALONE) == asked
    if rows == 5000:
        apart = sum(later.line - row.line > 1 for row, later in zip(shares[0], shares[0][1:]))
        assert apart < len(shares[0]) / 50


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_are_joined_by_the_last_in_the_order_of_the_questions(batch, ranked, images, order):
    asked = questions(17)
    assert batch(rows=asked).code == 0
    wanted = answers(images / "a.jsonl")
    (images / "a.jsonl").unlink()
    for number in order[:-1]:
        result = ranked(number, 3)
        assert (result.code, result.err) == (0, "")
        assert f"a.{number + 1}-of-3.jsonl: " in result.out
        assert not (images / "a.jsonl").exists()
    result = ranked(order[-1], 3, "--json")
    assert result.code == 0
    told = json.loads(result.out)
    assert (told["part"], told["joined"]) == (f"a.{order[-1] + 1}-of-3.jsonl", {"answers": 17, "bad": 0})
    assert answers(images / "a.jsonl") == wanted
    assert beside(images) == ["a.jsonl"]


def test_one_process_goes_on_with_the_parts_of_several(batch, ranked, images):
    asked = questions(12)
    batch(rows=asked[:2])
    write(images / "q.jsonl", asked)
    assert ranked(1, 2).code == 0
    part = read(images / "a.2-of-2.jsonl")
    result = batch("--json")
    assert result.code == 0
    told = json.loads(result.out)
    assert (told["part"], told["before"], told["joined"]) == (
        "a.1-of-1.jsonl",
        2 + len(part),
        {"answers": 12, "bad": 0},
    )
    found = read(images / "a.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in asked]
    assert all(row in found for row in part)
    assert beside(images) == ["a.jsonl"]
    assert batch(rows=questions(13)).code == 0  # and as ever afterwards
    assert [row["id"] for row in read(images / "a.jsonl")] == [row["id"] for row in questions(13)]


def test_answers_to_other_questions_are_kept(batch, ranked, images):
    batch(rows=questions(2))
    before = (images / "a.jsonl").read_bytes()
    write(images / "q.jsonl", [{"question": "why?", "id": name} for name in "xyz"])
    for number in range(2):
        assert ranked(number, 2).code == 0
    assert (images / "a.jsonl").read_bytes().startswith(before)
    assert [row["id"] for row in read(images / "a.jsonl")] == ["q0", "q1", "x", "y", "z"]


def test_bad_rows_stop_no_process_and_the_last_one_tells_of_all(ranked, images):
    (images / "text.png").write_text("no image")
    rows = [*questions(4), "{broken", {"image": "gone.png", "question": "what?"}, *questions(8)[4:]]
    rows.append({"image": "text.png", "question": "what?"})
    first, last = ranked(1, 2, rows=rows), ranked(0, 2)
    assert first.code == 0
    assert last.code == 1
    assert last.err.endswith("firebolt: 3 of 11 questions could not be answered; see a.errors.jsonl\n")
    said = first.err + last.err
    assert all(said.count(f"q.jsonl:{line}: ") == 1 for line in (5, 6, 11))
    assert [row["id"] for row in read(images / "a.jsonl")] == [f"q{i}" for i in range(8)]
    assert [row["line"] for row in read(images / "a.errors.jsonl")] == [5, 6, 11]
    assert beside(images) == ["a.errors.jsonl", "a.jsonl"]
    Image.new("RGB", (20, 20)).save(images / "gone.png")
    codes = [ranked(number, 2).code for number in (0, 1)]
    assert codes[-1] == 1
    assert [row["line"] for row in read(images / "a.errors.jsonl")] == [5, 11]
    ids = [6 if i == 4 else f"q{i - (i > 4)}" for i in range(9)]
    assert [row["id"] for row in read(images / "a.jsonl")] == ids
    assert beside(images) == ["a.errors.jsonl", "a.jsonl"]


def test_nothing_is_joined_while_another_process_is_at_work(ranked, images):
    """Even where all questions of its part were problems once: it tries them again."""
    write(images / "q.jsonl", questions(6))
    assert ranked(0, 2).code == 0
    with AnswerFile("a.2-of-2.jsonl", [], print):
        assert ranked(0, 2).code == 0
        assert not (images / "a.jsonl").exists()
    assert ranked(1, 2).code == 0
    assert len(read(images / "a.jsonl")) == 6


def test_another_number_of_processes_is_refused(ranked, images):
    assert ranked(0, 2, rows=questions(6)).code == 0
    before = beside(images)
    said = "has a part of 2 processes (a.1-of-2.jsonl) and this run has 3; start 2 again, or one alone"
    assert_refused(ranked(0, 3), 2, said)
    assert beside(images) == before


def test_two_runs_into_one_file_are_refused(batch, ranked, images):
    write(images / "q.jsonl", questions(6))
    with AnswerFile("a.1-of-2.jsonl", [], print):
        assert_refused(ranked(0, 2), 2, "a.1-of-2.jsonl, where another run is writing")
        assert_refused(batch(), 2, "--out is a.jsonl, where another run is writing")
        assert_refused(ranked(0, 3), 2, "has a part of 2 processes")
    with AnswerFile("a.jsonl", [], print):
        assert_refused(ranked(0, 2), 2, "--out is a.jsonl, where another run is writing")


def test_parts_of_other_questions_or_models_are_refused(batch, ranked, images):
    assert ranked(0, 2, rows=questions(6)).code == 0
    before = (images / "a.1-of-2.jsonl").read_bytes()
    others = [{**row, "id": f"other {row['id']}"} for row in questions(6)]
    said = 'whose part a.1-of-2.jsonl answers id "q0", and q.jsonl has no such row'
    assert_refused(ranked(1, 2, rows=others), 2, said)
    assert_refused(batch(), 2, said)
    changed = [{**row, "question": "where?"} for row in questions(6)]
    assert_refused(ranked(1, 2, rows=changed), 2, "a.1-of-2.jsonl, whose line 1 answers another question")
    write(images / "q.jsonl", questions(6))
    assert_refused(ranked(1, 2, "--seed", "1"), 2, "a.1-of-2.jsonl, whose line 1 was answered with seed null")
    assert (images / "a.1-of-2.jsonl").read_bytes() == before
    assert beside(images) == ["a.1-of-2.jsonl"]
    assert ranked(1, 2, "--seed", "1", "--mixed").code == 0
    assert {row["by"]["seed"] for row in read(images / "a.jsonl")} == {None, 1}


def test_no_file_of_the_users_is_touched(ranked, images):
    write(images / "q.jsonl", questions(4))
    (images / "a.1-of-2.jsonl").write_text("my own notes\n")
    assert_refused(ranked(0, 2), 2, "a.1-of-2.jsonl, whose line 1 is no answer of this command")
    assert_refused(ranked(1, 2), 2, "a.1-of-2.jsonl, whose line 1 is no answer of this command")
    (images / "a.1-of-2.jsonl").rename(images / "a.2-of-2.errors.jsonl")
    assert_refused(ranked(1, 2), 2, "a.2-of-2.errors.jsonl, which exists already and was not written by this command")
    assert (images / "a.2-of-2.errors.jsonl").read_text() == "my own notes\n"


def test_what_a_killed_process_left_half_is_no_answer(ranked, images):
    assert ranked(0, 2, rows=questions(8)).code == 0
    part = images / "a.1-of-2.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    assert ranked(1, 2).code == 0
    assert not (images / "a.jsonl").exists()
    assert ranked(0, 2).code == 0
    assert [row["id"] for row in read(images / "a.jsonl")] == [row["id"] for row in questions(8)]


def test_turns_are_taken_one_by_one(tmp_path):
    with turn_at(tmp_path / "a"):
        [gate] = tmp_path.iterdir()
        assert is_locked(gate)
    assert not list(tmp_path.iterdir())
    assert not is_locked(tmp_path / "a")


LAUNCH = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
LAUNCH += ("--dynamo_backend", "no", "--main_process_port", "0", "--module", "firebolt_vl")


def test_killed_under_a_launcher_and_started_again_every_row_is_there_once(batch, checkpoint, images):
    """Two processes by `accelerate launch`; one is killed in the middle."""
    asked = questions(24)
    assert batch("--batch-size", 2, rows=asked).code == 0
    wanted = answers(images / "a.jsonl")
    (images / "a.jsonl").unlink()
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "ask", "--batch", "q.jsonl"]
    command += ["--out", "a.jsonl", "--checkpoint", str(checkpoint), "--max-new-tokens", str(TOKENS)]
    command += ["--batch-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    part, deadline = images / "a.2-of-2.jsonl", time.monotonic() + 240
    with subprocess.Popen(command, cwd=images, env=environment, stderr=subprocess.DEVNULL) as running:
        while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b"\n") >= 2):
            assert running.poll() is None
            time.sleep(0.005)
        children = psutil.Process(running.pid).children()
        next(child for child in children if child.environ().get("RANK") == "1").kill()
        assert running.wait() != 0
    assert 2 <= part.read_bytes().count(b"\n") < 12
    assert not (images / "a.jsonl").exists()
    subprocess.run(command, cwd=images, env=environment, check=True, capture_output=True)
    assert answers(images / "a.jsonl") == wanted
    assert beside(images) == ["a.jsonl"]


def test_each_process_of_a_machine_takes_its_gpu(monkeypatch):
    import torch

    from firebolt_vl.checkpoint import choose_device

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [choose_device("auto", local) for local in (0, 1, 3)] == ["cuda"] * 3
    assert chosen == [1, 1]  # the first is the current one anyhow
    assert choose_device("cpu", 1) == "cpu"
    assert len(chosen) == 2
    assert batching.this_rank is this_rank
