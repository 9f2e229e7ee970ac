"""`firebolt data` and `firebolt train`: what they print, and what they say where they cannot."""

import json

import pytest
from commands import assert_refused
from conversations import BROKEN, broken_folder, picture, row, write_conversations, write_rows
from tiny_models import write_checkpoint


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


def test_data_check_of_preferences(firebolt, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row("a", "b", rejected="c"), row("a", "b")])
    assert firebolt("data", "check", "rows.jsonl").code == 0
    found = firebolt("data", "check", "rows.jsonl", "--preferences")
    assert found.code == 1
    assert "rows.jsonl:2: no rejected answer" in found.out


def test_data_check_of_good_rows(firebolt, tmp_path):
    picture().save(tmp_path / "0.png")
    write_rows(tmp_path / "rows.jsonl", [row("a", "b", image="0.png")])
    found = firebolt("data", "check", "rows.jsonl")
    assert (found.code, found.out, found.err) == (0, "1 rows, all good\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "check", "none.jsonl"], "firebolt: none.jsonl does not exist; check the path"),
        (
            ["data", "check", "a", "--max-length", 4],
            "--max-length is 4, but only a tokenizer can count tokens; name one with --checkpoint",
        ),
        (["data", "convert", "coco", "a", "b"], "FORMAT is coco; expected one of cc3m, llava-cot, mmpr"),
        (["data", "convert", "mmpr", "none.json", "b"], "none.json does not exist; check the path"),
        (["data", "convert", "mmpr", "a", "b", "--pattern", "x"], "--pattern is given with mmpr; only the table"),
        (
            ["train", "stage7"],
            "stage7 is no configuration that ships; expected one of dpo, foveated-stage1, ",
        ),
        (["train", "stage1", "lrr=1"], "lrr is not a known key; did you mean lr?"),
        (["train", "stage1"], "data: data/cc3m.jsonl does not exist; name the rows to train on (data=FILE)"),
        (
            ["train", "stage1", "decoder=null", "vision=null", "model=none", f"data={__file__}"],
            "firebolt: model: none",
        ),
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


SETTINGS = """
model: checkpoint
data: [data/rows.jsonl]
batch_size: 4
max_steps: 4
save_every: 2
workers: 0
warmup_steps: 0
"""


def test_train_writes_the_model_says_where_and_goes_on(firebolt, tmp_path):
    write_checkpoint(tmp_path / "checkpoint")
    write_conversations(tmp_path / "data", rows=9)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    first = firebolt("train", "run.yaml", "--out", "run", "max_steps=2")
    assert (first.code, first.out) == (0, "run/model.safetensors\n")
    assert "9 rows to train on, 0 held out; 18,689 of 78,769 parameters learn; 2 steps" in first.err
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*"))
    again = firebolt("train", "run.yaml", "--out", "run")
    assert again.code == 2
    assert "out is run, which holds a run; --resume goes on with it, another --out starts anew" in again.err
    on = firebolt("train", "run.yaml", "--out", "run", "--resume")
    assert on.code == 0
    assert "max_steps was 2 when this run began and is 4 now: it is another run from here on" in on.err
    assert [line["step"] for line in map(json.loads, (tmp_path / "run" / "history.jsonl").open())] == [1, 2, 3, 4]
    assert firebolt("ask", "data/0.png", "what?", "--checkpoint", "run", "--max-new-tokens", 2).code == 0


def test_train_stops_with_a_summary_where_too_many_rows_are_bad(firebolt, tmp_path):
    write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.jsonl", [*(row("a", "b") for _ in range(5)), row("a", ""), b"{"])
    (tmp_path / "run.yaml").write_text(SETTINGS)
    found = firebolt("train", "run.yaml", "--out", "run")
    assert found.code == 1
    assert "data/rows.jsonl:6: empty answer: turn 2 has no words" in found.err
    assert "2 of 7 rows cannot be used: 1 empty answer, 1 broken JSON; max_bad_share=0.01 allows 0" in found.err


def test_a_conversion_takes_the_place_of_a_file_only_where_that_is_asked_for(firebolt, tmp_path):
    picture().save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "b"}]
    write_rows(tmp_path / "in.jsonl", [{"image": "a.png", "conversations": turns}])
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    convert = ["data", "convert", "llava-cot", "in.jsonl"]
    assert firebolt(*convert, "link.jsonl").code == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_text("notes\n")
    for out in ("out.jsonl", "link.jsonl", "./out.jsonl"):
        assert_refused(firebolt(*convert, out), 2, "which exists already", "--overwrite")
    failed = firebolt("data", "convert", "mmpr", "in.jsonl", "out.jsonl", "--overwrite")
    assert (
        failed.code,
        "in.jsonl has 1 rows, none of which could be converted; out.jsonl is left as it is" in failed.err,
    ) == (1, True)
    assert (tmp_path / "out.jsonl").read_text() == "notes\n"
    for out in ("in.jsonl", f"../{tmp_path.name}/in.jsonl"):
        assert_refused(firebolt(*convert, out, "--overwrite"), 2, ", the file that is converted itself")
    assert firebolt(*convert, "link.jsonl", "--overwrite").code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert (tmp_path / "link.jsonl").is_symlink()


def test_a_full_disk_is_a_message(firebolt, tmp_path):
    resource = pytest.importorskip("resource")
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "b" * 90_000}]
    write_rows(tmp_path / "in.jsonl", [{"conversations": turns}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        result = firebolt("data", "convert", "llava-cot", "in.jsonl", "out.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.code == 1
    assert "out.jsonl: File too large; files may not grow that large here" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["bench", "kernels", "--op", "film_residual", "--quick", "--out", "."], "film_residual.png"),
        (["bench", "answer", "--only", "ours", "--out", "."], "answer.png"),
        (["bench", "answer", "--only", "ours", "--out", "."], "answer.csv"),
        (["ablate", "ssm", "--quick", "--out", "."], "ssm.md"),
        (["bench", "compile", "--quick", "--out", "README.md"], "README.md"),
        (["bench", "compile", "--quick", "--out", "data.json"], "data.json"),
    ],
)
def test_no_result_takes_the_place_of_a_file_of_the_users(firebolt, tmp_path, arguments, name):
    (tmp_path / name).write_text("mine\n")
    assert_refused(firebolt(*arguments), 2, name, "which exists already")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine\n")]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_checkpoint_is_no_place_for_a_run(firebolt, tmp_path, resume):
    """Not even for one that goes on from it: its weights would be written over."""
    write_checkpoint(tmp_path / "checkpoint")
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    write_rows(tmp_path / "rows.jsonl", [row("a", "b")])
    keys = ["decoder=null", "vision=null", "model=checkpoint", "data=rows.jsonl", "max_steps=1"]
    found = firebolt("train", "stage1", *keys, "--out", "checkpoint", *resume)
    assert found.code == 2
    assert "out is checkpoint, which holds " in found.err
    assert "config.json" in found.err
    assert "of no run; name a new or an empty folder" in found.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before


def test_adapters_are_trained_and_merged(firebolt, tmp_path):
    write_checkpoint(tmp_path / "checkpoint")
    write_conversations(tmp_path / "data", rows=4)
    (tmp_path / "own.toml").write_text(
        'model = "checkpoint"\ndata = ["data/rows.jsonl"]\ntrackers = []\nworkers = 0\nprecision = "float32"\n'
        "batch_size = 2\nmax_steps = 2\n[lora]\nrank = 2\n"
    )
    made = firebolt("train", "sft", "own.toml", "lr=1e-3", "--out", "run")
    assert (made.code, made.out) == (0, "run/model.safetensors\n")
    assert firebolt("train", "sft", "own.toml", "--out", "run").code == 2
    merged = firebolt("adapters", "merge", "run/adapters", "merged")
    assert (merged.code, merged.out) == (0, "merged/model.safetensors\n")
    assert (
        "firebolt: OUT is merged, which exists already" in firebolt("adapters", "merge", "run/adapters", "merged").err
    )
    asked = firebolt("ask", "data/0.png", "what is it?", "--checkpoint", "merged", "--max-new-tokens", 2)
    assert asked.code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["adapters", "merge", "none", "new"],
            "ADAPTERS is none, which is no folder; expected one with adapter_config",
        ),
        (["adapters", "merge", ".", "new"], "ADAPTERS is ., which has no adapter_config.json; expected a folder of"),
        (["adapters", "merge", "none", "no/new"], "OUT is no/new, but the folder no does not exist; make it first"),
        (["train", "sft", "data=none.jsonl"], "data: none.jsonl does not exist; name the rows to train on (data=FILE)"),
        (["train", "sft", "beta=0.1"], "beta is not a known key"),
        (["train", "dpo", "beta=0"], "beta is 0.0; expected more than 0: without the reference model a preference has"),
        (["train", "grpo", "rewards.exakt=1"], "rewards.exakt is unknown; the known keys are exact, number, words"),
        (["train", "grpo", "tiny"], "expected 'grpo', or no recipe"),
    ],
)
def test_what_cannot_be_trained_by_trl_is_one_line(firebolt, arguments, said):
    found = firebolt(*arguments)
    assert found.code > 0
    assert said in found.err
    assert found.err.count("\n") == 1
