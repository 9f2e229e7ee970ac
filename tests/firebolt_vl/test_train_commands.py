"""`firebolt data` and `firebolt train`: what they print, and what they say where they cannot."""

import json

import pytest
from conversations import BROKEN, broken_folder, picture, row, write_rows
from tiny_models import write_checkpoint

from firebolt_vl import cli


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def firebolt(capfd, tmp_path, monkeypatch):
    """Run the command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> Result:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


def test_data_check_names_every_broken_row(firebolt, tmp_path):
    broken_folder(tmp_path)
    write_checkpoint(tmp_path / "checkpoint")
    write_rows(tmp_path / "rows.jsonl", [row("a", "b"), *(broken for _, broken in BROKEN)])
    found = firebolt("data", "check", "rows.jsonl", "--checkpoint", "checkpoint", "--max-length", 512)
    assert found.code == 1
    assert [line.split(": ")[:2] for line in found.out.splitlines()] == [
        [f"rows.jsonl:{line}", kind] for line, (kind, _) in enumerate(BROKEN, start=2)
    ]
    assert f"{len(BROKEN)} of {len(BROKEN) + 1} rows cannot be used: 4 unreadable image" in found.err
    listed = firebolt("data", "check", "rows.jsonl", "--json")
    assert listed.code == 1
    report = json.loads(listed.out)
    assert report["bad"] == len(report["problems"]) == len(BROKEN) - 2  # no tokenizer: no control tokens, no length


def test_data_check_of_good_rows(firebolt, tmp_path):
    picture().save(tmp_path / "0.png")
    write_rows(tmp_path / "rows.jsonl", [row("a", "b", image="0.png")])
    found = firebolt("data", "check", "rows.jsonl")
    assert (found.code, found.out, found.err) == (0, "1 rows, all good\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "check", "none.jsonl"], "none.jsonl: there is no such file"),
        (["data", "check", "a", "--max-length", 4], "--max-length 4: tokens are a tokenizer's"),
        (["data", "convert", "coco", "a", "b"], "coco: no such format; choose from cc3m, llava-cot, mmpr"),
        (["data", "convert", "mmpr", "none.json", "b"], "none.json: there is no such file"),
        (["data", "convert", "mmpr", "a", "b", "--pattern", "x"], "only the images of cc3m are named by one"),
    ],
)
def test_what_cannot_be_done_is_one_line(firebolt, arguments, said):
    found = firebolt(*arguments)
    assert found.code > 0
    assert said in found.err
    assert found.err.count("\n") == 1


def test_data_convert_writes_what_data_check_takes(firebolt, tmp_path):
    picture().save(tmp_path / "0.png")
    pair = {"image": "0.png", "question": "<image>\nhow many?", "chosen": "two", "rejected": "three"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n{}\n")
    found = firebolt("data", "convert", "mmpr", "pairs.jsonl", "out/rows.jsonl")
    assert found.code == 0
    assert found.out.splitlines()[-1] == "1 rows: out/rows.jsonl"
    assert "1 of 2 rows cannot be used: 1 value is no text" in found.err
    assert firebolt("data", "check", "out/rows.jsonl").code == 0
    (tmp_path / "meta.json").write_text('{"a": {}}')
    assert "meta.json is not in the format of mmpr" in firebolt("data", "convert", "mmpr", "meta.json", "o").err
