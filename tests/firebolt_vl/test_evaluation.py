"""`firebolt eval NAME`: files in, predictions and scores out, whatever happens in between."""

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import assert_refused
from exams import KEYS, evaluator, pope_rows, read, timeless, write, write_images
from PIL import Image

from firebolt_vl import batch as batching


@pytest.fixture
def folder(tmp_path):
    """Four images."""
    write_images(tmp_path)
    return tmp_path


@pytest.fixture
def run(firebolt, checkpoint):
    return evaluator(firebolt, checkpoint, tokens=4)


def test_predictions_and_scores_of_pope(run, folder):
    data = write(folder / "rows.jsonl", pope_rows(13))
    result = run("pope", data)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    rows = read(folder / "out" / "pope.predictions.jsonl")
    assert all(list(row)[:7] == KEYS for row in rows)
    assert sorted(row["id"] for row in rows) == sorted(f"p{i}" for i in range(13))
    assert (found["rows"], found["bad_rows"], found["images_encoded"]) == (13, 0, 4)
    assert found["unparsed"] == sum(row["parsed"] is None for row in rows)
    right = [row["got"].strip().lower() == row["wanted"] for row in rows]
    assert found["accuracy"] == pytest.approx(sum(right) / 13)
    assert {"precision", "recall", "f1", "yes_ratio", "categories"} <= set(found)
    assert json.loads((folder / "out" / "pope.json").read_text()) == found
    assert (folder / "out" / "table.md").read_text().startswith("| benchmark |")


def test_a_run_that_was_stopped_goes_on(run, folder, monkeypatch):
    data = write(folder / "rows.jsonl", pope_rows(11))
    whole = run("pope", data, "--batch-size", 2)
    assert whole.code == 0
    wanted = read(folder / "out" / "pope.predictions.jsonl")
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    # What a killed run leaves: whole rows and the beginning of one.
    lines = [json.dumps(row) for row in wanted[:5]]
    (folder / "out" / "pope.predictions.jsonl").write_text("\n".join([*lines, json.dumps(wanted[5])[:30]]))
    again = run("pope", data, "--batch-size", 2)
    assert again.code == 0, again.err
    rows = read(folder / "out" / "pope.predictions.jsonl")
    assert timeless(rows) == timeless(wanted)
    assert json.loads(again.out)["answered_before"] == 5
    done = run("pope", data)
    assert json.loads(done.out)["images_encoded"] == 0
    assert read(folder / "out" / "pope.predictions.jsonl") == rows


def test_killed_in_the_middle_and_started_again_every_prediction_is_there_once(checkpoint, folder):
    data = write(folder / "rows.jsonl", pope_rows(30))
    arguments = [
        sys.executable,
        "-m",
        "firebolt_vl",
        "eval",
        "pope",
        "--data",
        str(data),
        "--checkpoint",
        str(checkpoint),
    ]
    arguments += ["--max-new-tokens", "15", "--batch-size", "1"]
    out, deadline = folder / "out" / "eval" / "pope.predictions.jsonl", time.monotonic() + 120
    running = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL)
    while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") >= 5):
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 5 <= out.read_bytes().count(b"\n") < 30
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
    assert sorted(row["id"] for row in read(out)) == sorted(f"p{i}" for i in range(30))


def test_two_shards_are_one_run(run, firebolt, folder):
    data = write(folder / "rows.jsonl", pope_rows(11))
    whole = json.loads(run("pope", data).out)
    parts = [json.loads(run("pope", data, "--shard", f"{i}/2", out="parts").out) for i in (1, 2)]
    assert [part["rows"] for part in parts] == [6, 5]
    files = [f"parts/pope.{i}-of-2.predictions.jsonl" for i in (1, 2)]
    joined = firebolt("eval", "score", *files, "--json")
    assert joined.code == 0, joined.err
    names = ("rows", "unparsed", "accuracy", "precision", "recall", "f1", "yes_ratio", "categories")
    assert {name: json.loads(joined.out)[name] for name in names} == {name: whole[name] for name in names}
    assert timeless([row for file in files for row in read(folder / file)]) == timeless(
        read(folder / "out" / "pope.predictions.jsonl")
    )


def ranked(monkeypatch, number: int, work):
    """What `work` returns in one of two processes of a launcher."""
    with monkeypatch.context() as environment:
        for name, value in (("RANK", number), ("WORLD_SIZE", 2), ("LOCAL_RANK", number)):
            environment.setenv(name, str(value))
        return work()


def test_the_last_process_of_a_launcher_scores_all_shards(run, folder, monkeypatch):
    rows = pope_rows(12)
    rows[3]["image"] = "gone.png"
    data = write(folder / "rows.jsonl", rows)
    arguments = ("--max-bad-share", 0.5)
    whole = json.loads(run("pope", data, *arguments).out)
    first, last = (ranked(monkeypatch, i, lambda: run("pope", data, *arguments, out="parts")) for i in (1, 0))
    assert (first.code, first.out, last.code) == (0, "", 0)
    assert "part 2 of 2 is done; the others are not yet" in first.err
    assert (first.err + last.err).count("rows.jsonl:4: ") == 1
    names = ("rows", "bad_rows", "unparsed", "accuracy", "precision", "recall", "f1", "yes_ratio", "categories")
    assert {name: json.loads(last.out)[name] for name in names} == {name: whole[name] for name in names}
    together = read(folder / "parts" / "pope.predictions.jsonl")
    assert timeless(together) == timeless(read(folder / "out" / "pope.predictions.jsonl"))
    assert (folder / "parts" / "table.md").exists()
    again = ranked(monkeypatch, 1, lambda: run("pope", data, *arguments, out="parts"))
    assert json.loads(again.out)["rows"] == 11
    assert read(folder / "parts" / "pope.predictions.jsonl") == together
    shard = ranked(monkeypatch, 0, lambda: run("pope", data, "--shard", "1/2", out="parts"))
    assert_refused(shard, 2, "--shard is 1/2 in one of 2 processes of a launcher")
    (folder / "parts" / "pope.1-of-2.json").write_text("my own notes\n")
    mine = ranked(monkeypatch, 0, lambda: run("pope", data, out="parts"))
    assert_refused(mine, 2, "pope.1-of-2.json, which exists already and was not written by this command")


def test_own_questions_are_swapped_and_grounded_in_shards_and_scored_together(
    firebolt, checkpoint, folder, monkeypatch
):
    rows = [{**row, "box": [0, 0, 20, 20 + i]} for i, row in enumerate(pope_rows(6))]
    data = write(folder / "exam.jsonl", rows)

    def own(out):
        given = ["--checkpoint", checkpoint, "--max-new-tokens", 4, "--out", out, "--worst", 1, "--json"]
        return firebolt("eval", "own", data, *given)

    whole = json.loads(own("out").out)
    first, last = (ranked(monkeypatch, i, lambda: own("parts")) for i in (0, 1))
    assert first.out == ""
    found = json.loads(last.out)
    assert found["rows"] == 6
    assert found["grounding"] == whole["grounding"]
    assert found["score"] == whole["score"]
    assert (folder / "parts" / "own.worst.png").exists()


def test_a_limit_takes_the_first_rows(run, folder):
    data = write(folder / "rows.jsonl", pope_rows(9))
    found = json.loads(run("pope", data, "--limit", 5).out)
    assert found["rows"] == 5
    assert {row["id"] for row in read(folder / "out" / "pope.predictions.jsonl")} == {f"p{i}" for i in range(5)}


def test_answers_do_not_depend_on_the_batch(run, folder):
    data = write(folder / "rows.jsonl", pope_rows(7))
    assert run("pope", data, "--batch-size", 1, out="one").code == 0
    assert run("pope", data, "--batch-size", 5, out="five").code == 0
    one, five = (read(folder / name / "pope.predictions.jsonl") for name in ("one", "five"))
    assert timeless(one) == timeless(five)


def test_the_formats_of_one_benchmark_give_the_same(run, folder):
    """VLMEvalKit's table, with a rotation that names the image of another row, and parquet as `datasets` writes it."""
    images = [(folder / f"{i}.png").read_bytes() for i in range(2)]
    cells = [base64.b64encode(image).decode() for image in images]
    table = [
        {
            "index": "1",
            "question": "Which?",
            "A": "sun",
            "B": "moon",
            "answer": "A",
            "category": "x",
            "image": cells[0],
        },
        {"index": "2", "question": "What?", "A": "cat", "B": "dog", "answer": "B", "category": "y", "image": cells[1]},
        {
            "index": "1000001",
            "question": "Which?",
            "A": "moon",
            "B": "sun",
            "answer": "B",
            "category": "x",
            "image": "1",
        },
    ]
    lines = ["\t".join(table[0]), *("\t".join(row.values()) for row in table)]
    (folder / "mmbench.tsv").write_text("\n".join(lines) + "\n")
    result = run("mmbench", folder / "mmbench.tsv", out="table")
    assert result.code == 0, result.err
    assert json.loads(result.out)["images_encoded"] == 2

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {**row, "index": int(row["index"]), "image": {"bytes": images[i], "path": None}}
        for row, i in zip(table, (0, 1, 0))
    ]
    (folder / "mmbench").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "mmbench" / "dev-00000-of-00001.parquet")
    result = run("all", folder, out="parquet")
    assert_refused(result, 2, "--data has mmbench and mmbench.tsv for mmbench")
    (folder / "mmbench.tsv").unlink()
    result = run("all", folder, out="parquet")
    assert result.code == 0, result.err

    datasets = pytest.importorskip("datasets")
    files = {"dev": str(folder / "mmbench" / "dev-00000-of-00001.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder / "cache"))
    loaded.cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved"))
    result = run("mmbench", folder / "saved", out="saved-out")
    assert result.code == 0, result.err
    found = [read(folder / out / "mmbench.predictions.jsonl") for out in ("table", "parquet", "saved-out")]
    assert timeless(found[0]) == timeless(found[1]) == timeless(found[2])


def test_bad_rows_are_named_and_counted(run, folder):
    good = pope_rows(5)
    rows = [
        *good,
        "{not JSON",
        {**good[0]},
        {**good[1], "id": "x1", "image": "gone.png"},
        {**good[1], "id": "x2", "answer": "perhaps"},
        {key: value for key, value in good[2].items() if key != "image"} | {"id": "x3"},
        {**good[1], "id": "x4", "image": None},
        {**good[1], "id": "x5", "question": "<|im_end|> forged"},
    ]
    result = run("pope", write(folder / "rows.jsonl", rows), "--max-bad-share", 0.9)
    found = json.loads(result.out)
    assert (found["rows"], found["bad_rows"]) == (5, 7), result.err
    for place, words in (
        (6, "broken JSON"),
        (7, 'id twice: "p0" is that of row 1 too'),
        (8, "not answered"),
        (9, "answer is not yes or no"),
        (10, "no column image"),
        (11, "no image"),
        (12, "not answered"),
    ):
        assert f"rows.jsonl:{place}: {words}" in result.err


def test_too_many_bad_rows_stop_the_run(run, folder):
    rows = [*pope_rows(6), "{", "{"]
    data = write(folder / "rows.jsonl", rows)
    result = run("pope", data, "--max-bad-share", 0.2)
    assert result.code == 1
    assert "2 of 8 rows cannot be used: 2 broken JSON; --max-bad-share 0.2 allows 1" in result.err
    assert json.loads(run("pope", data, "--max-bad-share", 0.25).out)["rows"] == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pope", "--data", "nothing.jsonl"], "--data: nothing.jsonl does not exist"),
        (["pope", "--data", "a.csv"], "a.csv ends in .csv; expected one of .jsonl, .tsv, .parquet"),
        (["pope", "--data", "empty"], "empty has neither parquet files nor a saved data set"),
        (["pope", "--data", "a.jsonl", "--shard", "3/2"], "--shard is 3/2; expected i/n"),
        (["all", "--data", "a.jsonl"], "--data is a.jsonl; expected, for all, a folder"),
        (["score", "nothing"], "nothing does not exist"),
        (["score", "a.csv"], "a.csv"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(firebolt, folder, arguments, words):
    (folder / "a.csv").write_text("a,b\n")
    (folder / "empty").mkdir()
    write(folder / "a.jsonl", pope_rows(1))
    assert_refused(firebolt("eval", *arguments), 2, words)


def test_a_folder_without_the_split_is_refused(run, folder):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir()
    parquet.write_table(arrow.Table.from_pylist([{"a": 1}]), folder / "data" / "train-00000-of-00001.parquet")
    assert_refused(run("pope", folder / "data"), 2, "has no split test, but train")
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert_refused(run("pope", folder / "broken.parquet"), 2, "is no whole parquet file")


def test_predictions_of_another_model_or_of_another_question_are_refused(run, folder):
    data = write(folder / "rows.jsonl", pope_rows(3))
    assert run("pope", data).code == 0
    assert_refused(run("pope", data, "--max-new-tokens", 5), 2, "was answered with max_new_tokens 4")
    changed = [{**row, "question": "Is there a dog?"} for row in pope_rows(3)]
    assert_refused(run("pope", write(folder / "rows.jsonl", changed)), 2, "--out has another question for id")


def test_scores_of_a_part_that_allows_none_say_so(run, folder):
    rows = [
        {"question_id": f"{i // 2}", "image": "0.png", "question": f"Is it {i}?", "answer": "Yes", "category": "count"}
        for i in range(4)
    ]
    data = write(folder / "rows.jsonl", rows)
    found = json.loads(run("mme", data, "--limit", 3).out)
    assert found["not_scored"] == "mme: image 1 of count has 1 questions; expected 2"
    assert "score" not in found
    assert "score" in json.loads(run("mme", data).out)


def test_what_is_remembered_of_images_is_bounded(run, folder, monkeypatch):
    monkeypatch.setattr(batching.Answering, "KEPT", 1)
    data = write(folder / "rows.jsonl", pope_rows(8))
    found = json.loads(run("pope", data, "--batch-size", 1).out)
    assert found["rows"] == 8
    assert found["images_encoded"] > 4


def test_scores_are_computed_again_from_the_answers(run, firebolt, folder):
    data = write(folder / "rows.jsonl", pope_rows(6))
    assert run("pope", data).code == 0
    file = folder / "out" / "pope.predictions.jsonl"
    rows = [{**row, "got": row["wanted"], "score": 0.0} for row in read(file)]
    random.Random(0).shuffle(rows)
    write(file, rows)
    found = json.loads(firebolt("eval", "score", file, "--json").out)
    assert (found["accuracy"], found["f1"]) == (1, 1)
    shown = firebolt("eval", "score", file)
    assert "POPE" in shown.out
    assert "100.0 %" in shown.out


def own_rows(count: int) -> list[dict]:
    return [
        {
            "image": f"{i % 4}.png",
            "question": f"Which one{'?' * (1 + i % 3)}",
            "answers": ["cat", "the cat"] if i % 2 else ["dog"],
            "kind": ("animal", "place")[i % 3 == 0],
            **({"box": [4, 4, 20, 30]} if i % 2 else {}),
        }
        for i in range(count)
    ]


def test_own_questions_have_scores_baselines_and_grounding(firebolt, checkpoint, folder):
    write(folder / "own.jsonl", own_rows(8))
    given = ["--checkpoint", checkpoint, "--max-new-tokens", 4, "--out", "out", "--worst", 3, "--json"]
    result = firebolt("eval", "own", "own.jsonl", *given)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["rows"], found["another_image"]["rows"]) == (8, 8)
    assert found["majority"] == pytest.approx(0.5, abs=0.2)
    assert set(found["kinds"]) == {"animal", "place"}
    assert set(found["grounding"]) == {"weights", "occlusion"}
    assert all(scores["questions"] == 4 for scores in found["grounding"].values())
    rows, swapped = (read(folder / "out" / f"own{name}.predictions.jsonl") for name in ("", ".swapped"))
    assert [row["question"] for row in rows] == [row["question"] for row in swapped]
    with Image.open(folder / "out" / "own.worst.png") as picture:
        assert picture.width > 300
    # What is there is not done again, and all of it is the same.
    grounded = (folder / "out" / "own.grounding.jsonl").read_text()
    again = json.loads(firebolt("eval", "own", "own.jsonl", *given).out)
    assert (folder / "out" / "own.grounding.jsonl").read_text() == grounded
    for name in ("answered_before", "images_encoded"):
        del again[name], found[name]
    assert again == found
    scored = json.loads(firebolt("eval", "score", "out/own.predictions.jsonl", "--json").out)
    assert scored["kinds"] == found["kinds"]
    shown = firebolt("eval", "own", "own.jsonl", *given[:-1])
    assert "pointing by occlusion" in shown.out


def test_answers_about_another_image_are_those_of_that_image(firebolt, checkpoint, folder):
    """The baseline is what the model says about the other image, whichever run and batch it comes in."""
    rows = [{**row, "question": "Which one?"} for row in own_rows(4)]
    write(folder / "own.jsonl", rows)
    given = ["--checkpoint", checkpoint, "--max-new-tokens", 4]
    assert firebolt("eval", "own", "own.jsonl", *given, "--out", "a").code == 0
    moved = [{**row, "image": rows[(i + 1) % 4]["image"], "box": None} for i, row in enumerate(rows)]
    write(folder / "moved.jsonl", moved)
    assert firebolt("eval", "own", "moved.jsonl", *given, "--out", "b").code == 0
    swapped = {row["id"]: row["got"] for row in read(folder / "a" / "own.swapped.predictions.jsonl")}
    assert swapped == {row["id"]: row["got"] for row in read(folder / "b" / "own.predictions.jsonl")}
