"""`firebolt eval mvbench` and `video-mme`: a foveated model over videos, by letter and by loss."""

import json

import pytest
from commands import assert_refused
from foveated import write_foveated
from videos import write_video

from firebolt_vl import video_evaluation
from firebolt_vl.evaluate.benchmarks import BENCHMARKS, CHOSEN
from firebolt_vl.evaluate.choices import choose
from firebolt_vl.video_evaluation import VideoExaminee
from firebolt_vl.watch import load_foveated, open_source


@pytest.fixture(scope="module")
def foveated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveated")
    write_foveated(folder)
    return folder


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        write_video(folder / f"{number}.mp4", 2 + number, 5)
    return folder


def mvbench(videos, count: int) -> list[dict]:
    rows = [
        {"id": i, "video": f"{i % 2}.mp4", "question": f"What falls{'?' * (i + 1)}", "candidates": ["a cup", "a ball"]}
        for i in range(count)
    ]
    return [{**row, "answer": row["candidates"][row["id"] % 2], "task": "count"} for row in rows]


def test_a_foveated_model_answers_by_letter_and_by_loss(firebolt, foveated, videos, tmp_path):
    rows = mvbench(videos, 4)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--checkpoint", foveated, "--video-root", videos, "--frames", 3, "--max-new-tokens", 4, "--json"]
    result = firebolt("eval", "mvbench", "--data", "rows.jsonl", *given)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    lines = [json.loads(line) for line in (tmp_path / "out/eval/mvbench.predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2, 3]
    assert found["images_encoded"] == 2
    loaded = load_foveated(foveated, "cpu")
    chosen = {}
    for row in rows:
        frames = open_source(str(videos / row["video"]), 3).frames
        best, _ = choose(loaded.model, loaded.processor, row["question"], row["candidates"], videos=[frames])
        chosen[row["id"]] = "AB"[best]
    assert {line["id"]: line["about"]["chosen"] for line in lines} == chosen
    assert found["loss_score"] == pytest.approx(sum(chosen[i] == "AB"[i % 2] for i in range(4)) / 4)
    assert found["score"] == pytest.approx(sum(line["score"] for line in lines) / 4)
    again = json.loads(firebolt("eval", "score", "out/eval/mvbench.predictions.jsonl", "--json").out)
    assert (again["score"], again["loss_score"]) == (found["score"], found["loss_score"])


def test_a_video_is_looked_at_once_for_both_answers(foveated, videos):
    looked = []
    examinee = VideoExaminee(videos, 3, checkpoint=str(foveated), device="cpu", max_new_tokens=4)
    asking = examinee.asking(print)
    asking.loaded.model.encoder.dino.embeddings.register_forward_pre_hook(lambda _, args: looked.append(len(args[0])))
    item = BENCHMARKS["mvbench"].read(mvbench(videos, 1)[0])
    [(place, answered, got, _), (_, again, same, _)] = asking.ask([(1, item), (2, item)])
    assert looked == [3]
    assert (place, got, answered.about) == (1, same, again.about)
    assert answered.about[CHOSEN] in "AB"
    assert got


def test_videos_that_were_not_asked_about_lately_are_looked_at_again(foveated, videos, monkeypatch):
    monkeypatch.setattr(video_evaluation, "REMEMBERED", 1)
    asking = VideoExaminee(videos, 3, checkpoint=str(foveated), device="cpu", max_new_tokens=4).asking(print)
    items = [BENCHMARKS["mvbench"].read(row) for row in mvbench(videos, 4)]
    found = asking.ask([*enumerate(items), *enumerate(items[2:])])
    assert asking.encoded == 6
    assert [got for _, _, got, _ in found[2:4]] == [got for _, _, got, _ in found[4:]]


def test_videos_that_are_not_there_are_told(firebolt, foveated, videos, tmp_path):
    row = {"question_id": "1-1", "videoID": "0", "question": "Who?", "options": ["A. a cat", "B. a dog"], "answer": "B"}
    rows = [row, {**row, "question_id": "1-2", "videoID": "gone"}]
    data = videos / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--checkpoint", foveated, "--max-new-tokens", 3, "--json"]
    assert_refused_late(firebolt("eval", "video-mme", "--data", data, *given))
    found = firebolt("eval", "video-mme", "--data", data, *given, "--max-bad-share", 0.5)
    assert json.loads(found.out)["rows"] == 1
    assert "gone.mp4" in found.err
    assert_refused(firebolt("eval", "video-mme", "--data", data), 2, "--checkpoint")


def assert_refused_late(result) -> None:
    """The run ends with an error after its rows were tried."""
    assert result.code == 1
    assert "1 of 2 rows cannot be used" in result.err
