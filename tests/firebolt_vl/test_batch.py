"""`firebolt ask --batch`: every question is answered once, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused
from PIL import Image
from tiny_models import write_checkpoint

from firebolt_vl import ask as asking
from firebolt_vl import batch as batching
from firebolt_vl.checkpoint import load

TOKENS = 6


@pytest.fixture
def images(tmp_path):
    """Four images of several sizes: their native tilings differ."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 40), (30, 70), (64, 20), (9, 90)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def batch(firebolt, checkpoint, tmp_path):
    def run(*arguments, rows=None, checkpoint=checkpoint):
        if rows is not None:
            write(tmp_path / "q.jsonl", rows)
        given = ["--checkpoint", checkpoint, "--max-new-tokens", TOKENS]
        return firebolt("ask", "--batch", "q.jsonl", "--out", "a.jsonl", *given, *arguments)

    return run


def write(path: Path, rows: list) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions(count: int) -> list[dict]:
    """About each image in turn, about two, about none; of several lengths."""
    asked = []
    for i in range(count):
        row = {"image": f"{i % 4}.png", "question": "why" + "?" * (1 + 5 * (i % 3)), "id": f"q{i}"}
        if i % 6 == 4:
            row["image"] = ["1.png", "3.png"]
        if i % 6 == 5:
            del row["image"]
        asked.append(row)
    return asked


@pytest.mark.parametrize("size", [1, 4, 50])
def test_each_answer_is_the_one_it_gets_alone(batch, images, checkpoint, size):
    asked = questions(13)
    result = batch("--batch-size", size, "--json", rows=asked)
    assert (result.code, result.err) == (0, "")
    summary = json.loads(result.out)
    found = read(images / "a.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in asked]
    assert (summary["answered"], summary["before"], summary["bad"], summary["questions"]) == (13, 0, 0, 13)
    assert summary["tokens"] == sum(row["answer_tokens"] for row in found)
    assert not (images / "a.errors.jsonl").exists()
    model, processor = load(checkpoint, "cpu")
    for row, answer in zip(asked, found):
        names = [row["image"]] if isinstance(row.get("image"), str) else row.get("image", [])
        text = asking.prompt(load(checkpoint, "cpu"), row["question"], len(names))
        pictures = [Image.open(images / name) for name in names]
        inputs = processor(images=[pictures] if names else None, text=[text], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["answer"] == processor.decode(tokens, skip_special_tokens=True).strip()
        assert (answer["image"], answer["question"]) == (names, row["question"])
        assert answer["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert answer["answer_tokens"] <= TOKENS


def test_an_answer_ends_where_the_model_ends_it(batch, images, tmp_path, monkeypatch):
    """In a batch the others go on; what comes after the end belongs to no answer."""
    folder, made = tmp_path / "stopping", []
    write_checkpoint(folder)
    read_tokens = batching.Answering._read
    keep = lambda self, row, count, tokens: (made.append(tokens), read_tokens(self, row, count, tokens))[1]  # noqa: E731
    monkeypatch.setattr(batching.Answering, "_read", keep)
    batch(rows=questions(9), checkpoint=folder)
    plain = list(made)
    end = plain[0][2]
    model, processor = load(folder, "cpu")
    model.generation_config.eos_token_id = end
    model.generation_config.save_pretrained(folder)
    (images / "a.jsonl").unlink()
    batch(checkpoint=folder)
    found = read(images / "a.jsonl")
    assert {row["complete"] for row in found} == {True, False}
    for row, tokens in zip(found, plain):
        tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert (row["complete"], row["answer_tokens"]) == (end in tokens, len(tokens))
        assert row["answer"] == processor.decode(tokens, skip_special_tokens=True).strip()


def test_an_image_asked_several_questions_is_encoded_once(batch, images, monkeypatch):
    encoded = []
    get_grids = batching.Answering._look_at

    def counted(self, rows):
        before = set(self.views)
        problems = get_grids(self, rows)
        encoded.extend(set(self.views) - before)
        return problems

    monkeypatch.setattr(batching.Answering, "_look_at", counted)
    assert batch("--batch-size", 2, rows=questions(12)).code == 0
    assert sorted(encoded) == ["0.png", "1.png", "2.png", "3.png"]


def test_what_is_remembered_of_images_is_bounded(batch, images, monkeypatch):
    monkeypatch.setattr(batching.Answering, "KEPT", 1)
    assert batch("--batch-size", 3, rows=questions(12)).code == 0
    assert len(read(images / "a.jsonl")) == 12


def test_bad_rows_are_reported_with_file_and_line_and_the_others_answered(batch, images):
    (images / "text.png").write_text("no image")
    rows = [
        {"image": "0.png", "question": "what?"},
        "{broken",
        {"image": "0.png", "question": ""},
        {"image": "gone.png", "question": "what?", "id": "lost"},
        "",
        {"image": ["1.png", "text.png"], "question": "what?"},
        {"image": 7, "question": "what?"},
        {"question": "x" * 3000},
        {"question": "what?", "id": 1},
        {"question": "what?", "id": [1]},
        "[1]",
        {"question": "what?"},
    ]
    result = batch(rows=rows)
    assert result.code == 1
    wanted = {
        2: "no JSON",
        3: "question: text that is not empty",
        4: "there is no such file",
        6: "is not an image",
        7: "image: a path, a list of paths",
        8: "at most 2,048",
        9: "id 1 is that of line 1 already",
        10: "id: text or an integer",
        11: "no JSON object",
    }
    for line, words in wanted.items():
        assert any(said.startswith(f"q.jsonl:{line}: ") and words in said for said in result.err.splitlines()), line
    assert "9 of 11 questions could not be answered; see a.errors.jsonl" in result.err
    assert [row["id"] for row in read(images / "a.jsonl")] == [1, 12]
    problems = read(images / "a.errors.jsonl")
    assert sorted(row["line"] for row in problems) == sorted(wanted)
    assert next(row for row in problems if row["line"] == 4)["id"] == "lost"


def test_a_second_run_answers_what_was_bad_and_is_good_now(batch, images):
    rows = [*questions(3), {"image": "late.png", "question": "what?", "id": "late"}]
    assert batch(rows=rows).code == 1
    Image.new("RGB", (20, 20)).save(images / "late.png")
    result = batch("--json")
    assert result.code == 0
    summary = json.loads(result.out)
    assert (summary["answered"], summary["before"], summary["bad"]) == (1, 3, 0)
    assert [row["id"] for row in read(images / "a.jsonl")] == ["q0", "q1", "q2", "late"]
    assert not (images / "a.errors.jsonl").exists()


@pytest.mark.parametrize("torn", ["", '{"id": "q4", "image": ["0.png"], "question": "why', "\0\0\0", "x"])
def test_what_an_interrupted_run_left_is_repaired(batch, images, torn):
    asked = questions(6)
    batch(rows=asked[:4])
    before = (images / "a.jsonl").read_bytes()
    (images / "a.jsonl").write_bytes(before + torn.encode())
    assert batch(rows=asked).code == 0
    assert (images / "a.jsonl").read_bytes().startswith(before)
    assert [row["id"] for row in read(images / "a.jsonl")] == [row["id"] for row in asked]


def test_nothing_is_loaded_where_all_is_answered(batch, images, monkeypatch):
    batch(rows=questions(3))
    monkeypatch.setattr(batching, "load", None)
    result = batch()
    assert (result.code, result.err) == (0, "")
    assert "0 answered" in result.out


def test_a_seed_gives_the_same_answers_in_whichever_run(batch, images):
    asked = questions(6)
    batch("--seed", 3, rows=asked)
    wanted = read(images / "a.jsonl")
    (images / "a.jsonl").unlink()
    batch("--seed", 3, rows=[*asked[:2], *["{}"] * 4])
    batch("--seed", 3, rows=asked)
    assert read(images / "a.jsonl") == wanted


def test_a_batch_that_is_too_much_is_answered_one_by_one(batch, images, monkeypatch):
    generate = batching.Answering._generate

    def short_of_memory(self, rows, texts):
        if len(rows) > 1 or rows[0].id == "q2":
            raise RuntimeError("not enough memory")
        return generate(self, rows, texts)

    monkeypatch.setattr(batching.Answering, "_generate", short_of_memory)
    result = batch(rows=questions(4))
    assert result.code == 1
    assert "q.jsonl:3: the model could not answer: not enough memory" in result.err
    assert [row["id"] for row in read(images / "a.jsonl")] == ["q0", "q1", "q3"]


def test_long_questions_leave_short_ones_their_room(batch, images):
    rows = [{"question": "x" * 2044}, {"question": "why?"}]
    batch(rows=rows)
    short = {row["id"]: row for row in read(images / "a.jsonl")}[2]
    assert short["complete"] or short["answer_tokens"] == TOKENS


def test_what_cannot_be_asked_is_refused(batch, firebolt, images, tmp_path):
    assert_refused(firebolt("ask", "--batch", "no.jsonl", "--out", "a.jsonl"), 2, "--batch no.jsonl cannot be read")
    write(tmp_path / "q.jsonl", questions(2))
    assert_refused(firebolt("ask", "--batch", "q.jsonl"), 2, "--batch needs --out")
    assert_refused(firebolt("ask", "0.png", "--batch", "q.jsonl"), 2, "IMAGE does not go with --batch")
    assert_refused(firebolt("ask", "0.png", "why?", "--out", "a.jsonl"), 2, "--out goes with --batch alone")
    assert_refused(firebolt("ask", "--batch", "q.jsonl", "--out", "q.jsonl"), 2, "is the file of questions itself")
    assert_refused(firebolt("ask", "--batch", "q.jsonl", "--out", "no/a.jsonl"), 2, "there is no directory")
    assert_refused(batch("--grounding", "x.png"), 2, "--grounding does not go with --batch")
    assert_refused(batch("--max-new-tokens", 0), 2, "at least 1")
    write(tmp_path / "a.jsonl", [{"id": "q0", "image": ["0.png"], "question": "another", "answer": "7"}])
    assert_refused(batch(), 2, "a.jsonl:1 answers another question")
    write(tmp_path / "a.jsonl", ["hello"])
    assert_refused(batch(), 2, "a.jsonl:1 is no answer of this command")
    assert (tmp_path / "a.jsonl").read_text() == "hello\n"


def test_two_runs_on_one_file_are_refused(batch, images):
    with batching.AnswerFile(str(images / "a.jsonl"), [], print):
        assert_refused(batch(rows=questions(1)), 2, "another run is writing there")


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "firebolt_vl", "ask", *map(str, arguments)]


def test_killed_in_the_middle_and_started_again_every_answer_is_there_once(checkpoint, images):
    asked = questions(40)
    write(images / "q.jsonl", asked)
    arguments = command("--batch", "q.jsonl", "--out", "a.jsonl", "--checkpoint", checkpoint, "--batch-size", 2)
    arguments += ["--max-new-tokens", "40"]
    out, deadline = images / "a.jsonl", time.monotonic() + 60
    running = subprocess.Popen(arguments, cwd=images)
    while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") >= 6):
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    there = out.read_bytes().count(b"\n")
    assert 6 <= there < 40
    subprocess.run(arguments, cwd=images, check=True, capture_output=True)
    assert [row["id"] for row in read(out)] == [row["id"] for row in asked]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_answers(checkpoint, tmp_path):
    """In a process of its own: 300 answers about 300 images of random sizes."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        height, width = rng.integers(8, 200, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.bmp")
        rows.append({"image": f"{i}.bmp", "question": "why?" * int(rng.integers(1, 9))})
    write(tmp_path / "q.jsonl", rows)
    code = (
        "import json, os, sys; from firebolt_vl.batch import answer_file; seen = []\n"
        "def look(done, total): seen.append((done, int(open('/proc/self/statm').read().split()[1])))\n"
        f"answer_file('q.jsonl', 'a.jsonl', checkpoint={str(checkpoint)!r}, max_new_tokens=8, progress=look)\n"
        "print(json.dumps(seen))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert seen[-1][0] == 300
    settled = max(pages for count, pages in seen if count <= 60)
    assert max(pages for _, pages in seen) <= 1.02 * settled


def test_an_answer_is_said_piece_by_piece():
    said = []
    image = Path(__file__).resolve().parents[2] / "examples" / "digits-1.png"
    reply = asking.ask(str(image), "where is the red digit?", say=said.append)
    assert "".join(said) == reply.answer
    assert len(said) > 1


def test_pieces_are_whole_characters_without_blank_ends():
    pieces = "  \n", "a", "\u00e9 \U0001f642", "  ", "\n", "b", " \n"
    encoded = "".join(pieces).encode()

    class Bytes:
        @staticmethod
        def decode(tokens, skip_special_tokens):
            assert skip_special_tokens
            return bytes(tokens).decode(errors="replace")

    said = []
    spoken = asking.SpokenText(Bytes, said.append)
    for token in encoded:
        spoken.put(token)
    spoken.end()
    assert "".join(said) == "".join(pieces).strip()
    assert all("\ufffd" not in piece for piece in said)
