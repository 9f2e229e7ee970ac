"""Command `firebolt ask` about several images, and about videos."""

import json

import pytest
from commands import assert_refused
from tiny_models import make_model, make_processor
from videos import write_video

QUESTION = "which of them?"


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """A checkpoint that knows times."""
    folder = tmp_path_factory.mktemp("timed")
    make_model(grid_times=True).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", seconds=3)


@pytest.fixture
def ask(firebolt, timed):
    def run(*asked, checkpoint=timed, question=QUESTION):
        return firebolt("ask", *asked, question, "--checkpoint", checkpoint, "--max-new-tokens", 3)

    return run


def answer_of(result) -> dict:
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_several_images_and_a_video_in_one_question(ask, image, clip):
    reply = answer_of(ask(image, clip, image, "--json"))
    assert reply["image"] == [
        {"path": str(image), "width": 64, "height": 48},
        {"path": str(clip), "width": 64, "height": 64, "frames": 3, "seconds": pytest.approx(3)},
        {"path": str(image), "width": 64, "height": 48},
    ]
    assert len(answer_of(ask(image, image, "--json"))["image"]) == 2
    result = ask(clip)
    assert result.out.startswith(QUESTION)
    assert result.err == ""


def test_what_a_video_is_is_told_by_its_bytes(ask, image, clip, tmp_path):
    clip.rename(tmp_path / "clip.png")
    image.rename(tmp_path / "image.mp4")
    assert answer_of(ask("clip.png", "--json"))["image"][0]["frames"] == 3
    assert answer_of(ask("image.mp4", "--json"))["image"]["width"] == 64


def test_frames_are_spread_over_a_video(ask, image, clip):
    assert answer_of(ask(clip, "--frames", 2, "--json"))["image"][0]["frames"] == 2
    assert_refused(ask(image, "--frames", 2), 2, "--frames is 2, but", "is an image")
    assert_refused(ask(clip, "--frames", 0), 2, "--frames is 0; expected at least 1")


def test_a_model_without_times_says_so(ask, checkpoint, clip):
    result = ask(clip, "--json", checkpoint=checkpoint)
    assert answer_of(result)["image"][0]["frames"] == 3
    assert "does not know times" in result.err


def test_what_cannot_be_asked_is_refused(ask, firebolt, image, clip, tmp_path):
    assert_refused(ask(image, clip, "--grounding", "out.png"), 2, "--grounding is given with several images or a video")
    assert_refused(ask(image, "none.mp4"), 2, "none.mp4 does not exist")
    assert_refused(ask(image, question=image), 2, "QUESTION is missing", "is a file")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    assert_refused(ask("cut.mp4"), 1, "cut.mp4 is not a video that can be read")
    assert_refused(firebolt("ask", "--frames", 2, "--batch", "q.jsonl"), 2, "--frames is given with --batch")


@pytest.mark.parametrize("knows", [True, False])
def test_a_batch_answers_rows_of_any_number_as_each_alone(ask, firebolt, timed, checkpoint, image, clip, knows):
    folder = timed if knows else checkpoint
    rows = [[str(image)], [str(clip), str(image)], [str(image), str(image)], []]
    lines = [{"question": QUESTION, **({"image": row} if row else {})} for row in rows]
    with open("q.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    options = ("--checkpoint", folder, "--max-new-tokens", 3)
    assert firebolt("ask", "--batch", "q.jsonl", "--out", "a.jsonl", *options).code == 0
    with open("a.jsonl", encoding="utf-8") as file:
        answers = {answer["id"]: answer for answer in map(json.loads, file)}
    for number, row in enumerate(rows[:3], start=1):
        alone = answer_of(ask(*row, "--json", checkpoint=folder))
        assert answers[number]["answer"] == alone["answer"]
        assert answers[number]["probability"] == pytest.approx(alone["probability"], abs=1e-3)
