"""How a newcomer can go wrong with `firebolt eval`: command lines, what the messages have to name, what lies there.

Cases of messages.py, as (command line, words, preparation of the folder).
"""

import json
from collections.abc import Callable
from pathlib import Path

Prepare = Callable[[Path], None]

ROW = {"id": "p1", "image": "a.png", "question": "Is there a cat?", "answer": "yes", "category": "random"}
SECOND = {**ROW, "id": "p2", "answer": "no"}
OWN = {"image": "a.png", "question": "which colour?", "answer": "red"}
PREDICTED = {
    **{"id": "p1", "question": "q", "wanted": "yes", "got": "yes", "parsed": "yes", "score": 1.0, "seconds": 1.0},
    **{"about": {"category": "random"}, "by": {"benchmark": "pope", "digest": "0"}},
}


def lines(*rows, name: str = "pope.jsonl") -> Prepare:
    """A file of these rows: objects, or lines as they stand."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return file(name, text)


def table(*rows: dict, name: str = "mmbench.tsv") -> Prepare:
    """A table of VLMEvalKit's."""
    text = "\n".join(["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]) + "\n"
    return file(name, text)


def both(*prepared: Prepare) -> Prepare:
    def write(folder: Path) -> None:
        for one in prepared:
            one(folder)

    return write


def parquet(name: str, cut: bool = False) -> Prepare:
    """A parquet file with the rows of POPE, or the first half of it."""

    def write(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet as parquets

        image = {"bytes": (folder / "a.png").read_bytes(), "path": None}
        (folder / name).parent.mkdir(exist_ok=True)
        parquets.write_table(
            pyarrow.Table.from_pylist([{**row, "image": image} for row in (ROW, SECOND)]), folder / name
        )
        if cut:
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 2])

    return write


def without(row: dict, column: str) -> dict:
    return {name: value for name, value in row.items() if name != column}


def foveated(folder: Path) -> None:
    """A folder whose config.json says that it is a foveated model."""
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "model_type": "foveated_vlm"}))


def file(name: str, text: str = "mine") -> Prepare:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


OPTIONS = {"index": "1", "question": "Which?", "A": "sun", "B": "moon", "answer": "A", "category": "x"}
POPE = "eval pope --data pope.jsonl --checkpoint model --max-new-tokens 2"
GOOD = lines(ROW, SECOND)
CASES: list[tuple] = [
    ("eval popee --data pope.jsonl", ("popee", "did you mean", "pope")),
    ("eval pope", ("--data is missing",)),
    ("eval own", ("FILE.jsonl is missing",)),
    ("eval score", ("FILE... is missing",)),
    ("eval mvbench --data rows.jsonl", ("--checkpoint is missing",)),
    ("eval screens", ("--checkpoint is missing",)),
    ("eval screens --checkpoint model --engine abby", ("--engine", "tesseract")),
    # data
    ("eval pope --data no.jsonl", ("--data", "no.jsonl does not exist")),
    ("eval pope --data nobody/nothing", ("nobody/nothing", "local path")),
    ("eval pope --data a.png", ("a.png", ".jsonl", ".tsv", ".parquet")),
    ("eval pope --data pope.json", ("pope.json", ".jsonl"), file("pope.json", "[]")),
    ("eval pope --data folder", ("folder", "parquet")),
    ("eval pope --data pope.jsonl", ("pope.jsonl has no rows",), file("pope.jsonl", "")),
    (
        "eval pope --data pope.jsonl",
        ("pope.jsonl:1", "no column answer", "image, question"),
        lines(without(ROW, "answer")),
    ),
    ("eval pope --data pope.jsonl", ("pope.jsonl:1", "no image"), lines({**ROW, "image": None})),
    (
        "eval pope --data pope.jsonl",
        ("pope.jsonl:1", "answer is not yes or no", "perhaps"),
        lines({**ROW, "answer": "perhaps"}),
    ),
    ("eval pope --data pope.jsonl", ("pope.jsonl:2", "id twice", "row 1"), lines(ROW, ROW)),
    ("eval pope --data pope.jsonl", ("pope.jsonl:2", "broken JSON", "column"), lines(ROW, "{not")),
    ("eval pope --data pope.jsonl", ("2 of 2 rows", "no row is left"), lines("[1]", "")),
    (POPE, ("pope.jsonl:1", "gone.png"), lines({**ROW, "image": "gone.png"})),
    (POPE, ("pope.jsonl:1", "text.png"), lines({**ROW, "image": "text.png"})),
    (POPE, ("pope.jsonl:2", "<|im_end|>", "control token"), lines(ROW, {**SECOND, "question": "<|im_end|>"})),
    ("eval pope --data pope.parquet", ("pope.parquet", "no whole parquet file"), parquet("pope.parquet", cut=True)),
    ("eval pope --data pope", ("pope has no split test, but train",), parquet("pope/train-0.parquet")),
    ("eval mmbench --data mmbench.tsv", ("mmbench.tsv:1", "no column image"), table(OPTIONS)),
    ("eval mmbench --data mmbench.tsv", ("mmbench.tsv:1", "row 7"), table({**OPTIONS, "image": "7"})),
    ("eval mmbench --data mmbench.tsv", ("mmbench.tsv:1", "base64"), table({**OPTIONS, "image": "?" * 99})),
    ("eval ai2d --data pope.jsonl", ("pope.jsonl:1", "no column options"), GOOD),
    ("eval all --data pope.jsonl", ("pope.jsonl", "folder"), GOOD),
    ("eval all --data folder", ("folder", "pope")),
    ("eval all --data data", ("data", "pope.jsonl", "pope.tsv"), both(file("data/pope.jsonl"), file("data/pope.tsv"))),
    # model
    ("eval pope --data pope.jsonl --checkpoint modle", ("modle", "did you mean model?"), GOOD),
    ("eval pope --data pope.jsonl --checkpoint folder", ("folder", "config.json"), GOOD),
    (POPE, ("foveated_vlm", "expected a Firebolt-VL"), both(GOOD, foveated)),
    (
        "eval mvbench --data pope.jsonl --checkpoint model",
        ("firebolt", "foveated model"),
        lines({"video": "a.mp4", "question": "?", "candidates": ["a"], "answer": "a"}),
    ),
    ("eval mvbench --data pope.jsonl --checkpoint model --video-root no", ("--video-root", "no"), GOOD),
    (
        "eval mvbench --data a/b --checkpoint model",
        ("--video-root", "a/b"),
    ),
    ("eval video-mme --data pope.jsonl --checkpoint model --frames 0", ("--frames", "1"), GOOD),
    # numbers
    ("eval pope --data pope.jsonl --shard 3/2", ("--shard is 3/2", "i/n"), GOOD),
    ("eval pope --data pope.jsonl --shard half", ("--shard is half", "i/n"), GOOD),
    ("eval pope --data pope.jsonl --limit 0", ("--limit is 0",), GOOD),
    ("eval pope --data pope.jsonl --batch-size 0", ("--batch-size is 0",), GOOD),
    ("eval pope --data pope.jsonl --max-new-tokens 0", ("--max-new-tokens is 0",), GOOD),
    ("eval pope --data pope.jsonl --max-bad-share 2", ("--max-bad-share is 2",), GOOD),
    ("eval pope --data pope.jsonl --device tpu", ("--device is tpu", "cuda"), GOOD),
    ("eval pope --data pope.jsonl --shard 3/3", ("pope.jsonl has no rows", "part 3 of 3"), GOOD),
    # results
    (f"{POPE} --out a.png", ("--out is a.png", "folder"), GOOD),
    (f"{POPE} --out a.png/out", ("--out is a.png/out", "folder"), GOOD),
    (f"{POPE} --out mine", ("mine/pope.json", "not written by this command"), both(GOOD, file("mine/pope.json", "{}"))),
    (
        f"{POPE} --out mine",
        ("mine/table.csv", "not written by this command"),
        both(GOOD, file("mine/table.csv", "a,b")),
    ),
    (
        f"{POPE} --out mine",
        ("mine/pope.predictions.jsonl", "line 1 is no prediction"),
        both(GOOD, file("mine/pope.predictions.jsonl", '{"id": 1}\n')),
    ),
    (
        f"{POPE} --out mine",
        ("mine/pope.predictions.jsonl", "digest", "another"),
        both(
            GOOD,
            lines(PREDICTED, name="mine/pope.predictions.jsonl"),
        ),
    ),
    (
        "eval pope --data mine/pope.predictions.jsonl --out mine --checkpoint model",
        ("the data itself",),
        file("mine/pope.predictions.jsonl", "{}\n"),
    ),
    # own questions
    ("eval own no.jsonl", ("no.jsonl does not exist",)),
    ("eval own a.png", ("a.png", ".jsonl")),
    ("eval own own.jsonl", ("own.jsonl:1", "no column answer"), lines(without(OWN, "answer"), name="own.jsonl")),
    ("eval own own.jsonl", ("own.jsonl:1", "no column question"), lines(without(OWN, "question"), name="own.jsonl")),
    (
        "eval own own.jsonl",
        ("own.jsonl:1", "box is no box", "x0, y0, x1, y1"),
        lines({**OWN, "box": [1, 2]}, name="own.jsonl"),
    ),
    (
        "eval own own.jsonl",
        ("own.jsonl:1", "box without an image"),
        lines(without({**OWN, "box": [1, 2, 3, 4]}, "image"), name="own.jsonl"),
    ),
    (
        "eval own own.jsonl",
        ("own.jsonl:1", "one turn of each"),
        lines({"image": "a.png", "conversations": [{"from": "human", "value": "q"}]}, name="own.jsonl"),
    ),
    (
        "eval own own.jsonl",
        ("own.jsonl:1", "img", "image"),
        lines({**without(OWN, "image"), "img": "a.png"}, name="own.jsonl"),
    ),
    ("eval own own.jsonl --worst 99", ("--worst is 99",), lines(OWN, name="own.jsonl")),
    # scores
    ("eval score no.jsonl", ("no.jsonl does not exist",)),
    ("eval score folder", ("folder", "no file of predictions")),
    ("eval score a.png", ("a.png:1", "no prediction")),
    ("eval score empty.jsonl", ("empty.jsonl is empty",), file("empty.jsonl", "")),
    ("eval score rows.jsonl", ("rows.jsonl:1 is no prediction", "firebolt eval")),
    (
        "eval score a.jsonl",
        ("a.jsonl:2 is cut off", "goes on"),
        file("a.jsonl", json.dumps(PREDICTED) + '\n{"id": "p2", "ques'),
    ),
    (
        "eval score a.jsonl",
        ("a.jsonl:1", "chess", "pope"),
        lines({**PREDICTED, "by": {"benchmark": "chess"}}, name="a.jsonl"),
    ),
    (
        "eval score a.jsonl b.jsonl",
        ("b.jsonl:1", '"p1"', "each part once"),
        both(lines(PREDICTED, name="a.jsonl"), lines({**PREDICTED, "got": "no"}, name="b.jsonl")),
    ),
    (
        "eval score a.jsonl b.jsonl",
        ("b.jsonl:1", "digest", "one model at a time"),
        both(
            lines(PREDICTED, name="a.jsonl"),
            lines({**PREDICTED, "id": 2, "by": {"benchmark": "pope", "digest": "1"}}, name="b.jsonl"),
        ),
    ),
]
