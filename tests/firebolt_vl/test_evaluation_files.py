"""Files of `firebolt eval` that are not as they were: cut off, of another run, of somebody else, damaged."""

import json

import pytest
from commands import assert_refused
from exams import evaluator, pope_rows, read, timeless, write, write_images

from firebolt_vl import eval_results
from firebolt_vl.evaluate import rows as data_files


@pytest.fixture
def folder(tmp_path):
    """Four images."""
    write_images(tmp_path)
    return tmp_path


@pytest.fixture
def run(firebolt, checkpoint):
    return evaluator(firebolt, checkpoint, tokens=2)


def test_scores_are_those_of_the_rows_that_were_asked_for(run, folder):
    """With another limit, and with rows that are gone from the data, what else the file has is kept and not scored."""
    data = write(folder / "rows.jsonl", pope_rows(9))
    whole = json.loads(run("pope", data).out)
    fewer = run("pope", data, "--limit", 4)
    found = json.loads(fewer.out)
    assert (found["rows"], found["answered_before"], found["images_encoded"]) == (4, 4, 0)
    assert "has 5 predictions of other rows" in fewer.err
    assert found["accuracy"] == json.loads(run("pope", data, "--limit", 4, out="anew").out)["accuracy"]
    assert json.loads(run("pope", data).out)["rows"] == whole["rows"] == 9
    assert len(read(folder / "out" / "pope.predictions.jsonl")) == 9
    shorter = write(folder / "rows.jsonl", pope_rows(9)[3:])
    assert json.loads(run("pope", shorter).out)["rows"] == 6


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"question": "Is there a dog?"}, "question"), ({"answer": "no"}, "answer"), ({"image": "3.png"}, "image")],
)
def test_predictions_are_not_taken_for_those_of_another_row(run, folder, changed, what):
    data = write(folder / "rows.jsonl", pope_rows(3))
    assert run("pope", data).code == 0
    before = (folder / "out" / "pope.predictions.jsonl").read_bytes()
    rows = pope_rows(3)
    write(data, [{**rows[0], **changed}, *rows[1:]])
    assert_refused(
        run("pope", data), 2, f'--out has another {what} for id "p0" (line', "than row 1; name another folder"
    )
    assert (folder / "out" / "pope.predictions.jsonl").read_bytes() == before


def test_data_that_moved_with_their_images_go_on(run, folder):
    data = write(folder / "rows.jsonl", pope_rows(3))
    assert run("pope", data).code == 0
    (folder / "moved").mkdir()
    for file in [*folder.glob("*.png"), data]:
        file.rename(folder / "moved" / file.name)
    found = json.loads(run("pope", folder / "moved" / data.name).out)
    assert (found["rows"], found["answered_before"]) == (3, 3)


def test_all_bad_rows_are_told_before_the_run_stops(run, folder):
    good = pope_rows(8)
    data = write(folder / "rows.jsonl", [good[0], "{", *good[1:], "[]", {**good[0], "answer": 7, "id": "x"}])
    result = run("pope", data, "--max-bad-share", 0.1)
    assert result.code == 1
    assert all(f"rows.jsonl:{place}: " in result.err for place in (2, 10, 11))
    assert "3 of 11 rows cannot be used" in result.err
    assert not read(folder / "out" / "pope.predictions.jsonl")


def test_where_no_row_is_good_the_run_stops_whatever_share_may_be_bad(run, folder):
    data = write(folder / "rows.jsonl", [{**row, "image": "gone.png"} for row in pope_rows(3)])
    result = run("pope", data, "--max-bad-share", 1)
    assert result.code == 1
    assert "3 of 3 rows cannot be used: 3 not answered; no row is left" in result.err


def test_parquet_that_is_damaged_in_the_middle_is_named(run, folder, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "image": {"bytes": (folder / row["image"]).read_bytes(), "path": None}} for row in pope_rows(8)]
    file = folder / "pope.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), file, row_group_size=2, compression="zstd")
    monkeypatch.setattr(data_files, "ROWS_AT_ONCE", 2)
    start = parquet.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[start - 40 : start + 40] = bytes(80)
    file.write_bytes(content)
    result = run("pope", file)
    assert result.code == 1
    assert "pope.parquet is damaged after row " in result.err
    assert "unexpected" not in result.err


@pytest.mark.parametrize("name", ["pope.json", "table.md", "table.csv"])
def test_results_are_not_written_over_files_of_others(run, folder, name):
    data = write(folder / "rows.jsonl", pope_rows(2))
    (folder / "mine").mkdir()
    (folder / "mine" / name).write_text('{"rows": "mine"}')
    assert_refused(run("pope", data, out="mine"), 2, f"mine/{name}, which exists already")
    assert (folder / "mine" / name).read_text() == '{"rows": "mine"}'
    assert [run("pope", data).code for _ in range(2)] == [0, 0]


def test_results_may_lie_beside_the_data_of_all_benchmarks(run, folder):
    write(folder / "pope.jsonl", pope_rows(2))
    for _ in range(2):
        found = run("all", folder, out=folder)
        assert found.code == 0, found.err
        assert [one["rows"] for one in json.loads(found.out)] == [2]


def test_a_run_that_breaks_off_while_it_writes_its_table_leaves_the_old_one(run, folder, monkeypatch):
    data = write(folder / "rows.jsonl", pope_rows(3))
    assert run("pope", data, "--limit", 2).code == 0
    before = (folder / "out" / "table.md").read_text()

    def broken(columns, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(eval_results, "markdown_table", broken)
        assert run("pope", data).code == 130
    assert (folder / "out" / "table.md").read_text() == before
    found = json.loads(run("pope", data).out)
    assert (found["rows"], found["answered_before"]) == (3, 3)
    assert " 3 | 0 |" in (folder / "out" / "table.md").read_text()


def test_a_file_that_ends_in_half_a_line_is_completed_and_not_scored(run, firebolt, folder):
    data = write(folder / "rows.jsonl", pope_rows(4))
    assert run("pope", data).code == 0
    file = folder / "out" / "pope.predictions.jsonl"
    whole = read(file)
    file.write_bytes(file.read_bytes()[:-30])
    assert_refused(
        firebolt("eval", "score", file), 2, "pope.predictions.jsonl:4 is cut off", "the same command goes on"
    )
    assert json.loads(run("pope", data).out)["answered_before"] == 3
    assert timeless(read(file)) == timeless(whole)
    assert json.loads(firebolt("eval", "score", file, "--json").out)["rows"] == 4


def test_parts_that_are_missing_are_told(run, firebolt, folder):
    data = write(folder / "rows.jsonl", pope_rows(5))
    assert run("pope", data, "--shard", "2/3").code == 0
    result = firebolt("eval", "score", "out/pope.2-of-3.predictions.jsonl", "--json")
    assert json.loads(result.out)["rows"] == 2
    assert [line.split(" is not")[0] for line in result.err.splitlines()] == [
        f"pope.{part}-of-3.predictions.jsonl" for part in (1, 3)
    ]


def test_predictions_of_two_models_are_not_scored_as_one(run, firebolt, folder):
    data = write(folder / "rows.jsonl", pope_rows(4))
    assert run("pope", data, "--shard", "1/2").code == 0
    rows = read(folder / "out" / "pope.1-of-2.predictions.jsonl")
    other = [{**row, "id": f"{row['id']}-2", "by": {**row["by"], "digest": "another"}} for row in rows]
    write(folder / "other.jsonl", other)
    result = firebolt("eval", "score", "out/pope.1-of-2.predictions.jsonl", "other.jsonl")
    assert_refused(result, 2, "other.jsonl:1 was answered with digest", "score one model at a time")


def test_the_grounding_is_that_of_the_rows_that_were_asked_for(firebolt, checkpoint, folder):
    rows = [{"image": f"{i}.png", "question": "which?", "answer": "cat", "box": [4, 4, 20, 30]} for i in range(3)]
    write(folder / "own.jsonl", rows)
    given = ["--checkpoint", checkpoint, "--max-new-tokens", 2, "--out", "out", "--json"]
    assert json.loads(firebolt("eval", "own", "own.jsonl", *given).out)["grounding"]["weights"]["questions"] == 3
    fewer = json.loads(firebolt("eval", "own", "own.jsonl", *given, "--limit", 2).out)
    assert fewer["grounding"]["weights"]["questions"] == fewer["rows"] == 2


@pytest.mark.parametrize("row", [{"img": "0.png"}, {"image": ""}])
def test_a_row_that_means_an_image_is_not_asked_without_one(firebolt, checkpoint, folder, row):
    write(folder / "own.jsonl", [{**row, "question": "which?", "answer": "cat"}])
    result = firebolt("eval", "own", "own.jsonl", "--checkpoint", checkpoint)
    assert result.code == 1
    assert "own.jsonl:1: no image: " in result.err


def test_answers_without_a_truth_become_a_file_for_the_server(run, folder):
    rows = [
        {"image": f"{i}.png", "question": "What is it?", "question_id": 7 + i, "answers": [["cat"] * 10, None][i % 2]}
        for i in range(3)
    ]
    data = write(folder / "rows.jsonl", rows)
    for _ in range(2):
        result = run("vqav2", data)
        assert result.code == 0, result.err
    parsed = {row["id"]: row["parsed"] for row in read(folder / "out" / "vqav2.predictions.jsonl")}
    submitted = json.loads((folder / "out" / "vqav2.submission.json").read_text())
    assert submitted == [{"question_id": 8, "answer": parsed[8]}]
    (folder / "out" / "vqav2.submission.json").write_text('["mine"]')
    assert_refused(run("vqav2", data), 2, "vqav2.submission.json, which exists already")


def test_the_table_says_what_answered(run, checkpoint, folder):
    data = write(folder / "rows.jsonl", pope_rows(2))
    found = json.loads(run("pope", data).out)
    first, _, row, *_ = (folder / "out" / "table.md").read_text().splitlines()
    assert first.endswith("| dtype | model | versions | commit |")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    assert row.endswith(f"| float32 | {checkpoint} | {versions} | {(found['commit'] or '')[:12]} |")
