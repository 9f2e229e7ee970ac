"""The small foveated model's task: its clips as tensors, what a look is measured by, and a few steps of its recipe."""

import json

import pytest
import torch
from trainings import assert_finite, poisoned

from firebolt_vl.evaluate.digits import COLOURS
from firebolt_vl.model import FoveatedProcessor, FoveatedVLM
from firebolt_vl.train import loop
from firebolt_vl.train.foveated_tiny import recipe
from firebolt_vl.train.foveated_tiny.exam import centres_inside, coverage, every_question, look
from firebolt_vl.train.foveated_tiny.jobs import LookJob, TowerJob, of_patches
from firebolt_vl.train.foveated_tiny.pool import FRAMES, make_cards, make_clips, with_cards
from firebolt_vl.train.tiny.pool import NO_COLOUR, NO_DIGIT


@pytest.fixture(scope="module")
def clips():
    return make_clips(12, 0, 80, "validation", 1)


def test_clips_are_the_same_whatever_the_number_of_processes(clips, monkeypatch):
    monkeypatch.setattr("firebolt_vl.train.foveated_tiny.pool.CHUNK", 12)
    again = make_clips(12, 0, 80, "validation", 2)
    for name in ("pixels", "there", "labels", "sources", "boxes"):
        assert torch.equal(getattr(again, name), getattr(clips, name))


def test_a_still_clip_has_one_frame_and_a_moving_one_all(clips):
    assert clips.there.sum(1).tolist() == [1, FRAMES] * 6
    assert not clips.pixels[~clips.there].any()
    assert clips.pixels[clips.there].flatten(1).any(1).all()
    assert ((clips.labels >= 0) == (clips.sources >= 0)).all()
    assert ((clips.boxes[:, 0, :, 2] > 0) == (clips.labels >= 0)).all()


def test_a_card_comes_before_the_frames(clips):
    inks = make_cards(0)[:, 0]
    frames, mask = with_cards(clips.pixels[:6], clips.there[:6], inks)
    assert frames.shape == (6, 1 + FRAMES, 3, 80, 80)
    assert mask[:, 0].all()
    assert torch.equal(mask[:, 1:], clips.there[:6])
    images = FoveatedProcessor(recipe.new_processor().image_processor, recipe.new_processor().tokenizer).image_processor
    wanted = images([list(clips.pixels[1].permute(0, 2, 3, 1).numpy())], return_tensors="pt")["frames"]
    torch.testing.assert_close(frames[1:2, 1:], wanted)
    assert (frames[:, 0] == frames[:, 0, :, :1, :1]).all()


def test_boxes_cover_patches_by_their_area():
    box = torch.tensor([[0.1, 0.25, 0.5, 0.75]])
    covered = coverage(box, 4)
    assert covered.sum() / 16 == pytest.approx(0.4 * 0.5)
    assert covered[0].tolist() == [[0, pytest.approx(0.6), pytest.approx(0.6), 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert centres_inside(box, 4)[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert not coverage(torch.zeros(1, 4), 4).any()


def test_patches_are_told_what_they_are_part_of(clips):
    labels, colours, sources = of_patches(clips.labels, clips.sources, clips.boxes[:, 0], 10)
    inside = centres_inside(clips.boxes[:, 0], 10).flatten(-2)  # [N,6,100]
    for colour in range(len(COLOURS)):
        assert torch.equal(colours == colour, inside[:, colour])
        for clip in range(len(clips)):
            assert (labels[clip][inside[clip, colour]] == clips.labels[clip, colour]).all()
            assert (sources[clip][inside[clip, colour]] == clips.sources[clip, colour]).all()
    nothing = ~inside.any(1)
    assert (labels[nothing] == NO_DIGIT).all()
    assert (colours[nothing] == NO_COLOUR).all()
    assert (sources[nothing] == -1).all()


def test_a_wrong_card_has_the_colour_of_another_digit_of_the_clip(clips):
    right, wrong = every_question(clips, 0), every_question(clips, 0, wrong_card=True)
    assert len(right.clip) == int((clips.labels >= 0).sum())
    assert torch.equal(right.card, right.colour)
    assert (wrong.card != wrong.colour).all()
    assert (clips.labels[wrong.clip, wrong.card] >= 0).all()


def test_the_texts_are_questions_with_one_token_for_an_answer():
    processor = recipe.new_processor()
    texts = recipe.make_texts(processor)
    assert texts.ids.shape[0] == 60
    assert (texts.answer == texts.answer[0]).all()  # as long as one another
    assert int(texts.answer[0].sum()) == 2  # the digit, and the end
    text = processor.tokenizer.decode(texts.ids[10 * COLOURS.index("cyan") + 7])
    assert "what digit is cyan?" in text
    assert text.endswith("7<|im_end|>")


def test_the_query_of_a_frame_knows_the_frames_before_it_alone(clips):
    """Why there is a card: a look is chosen before the question is read."""
    processor = recipe.new_processor()
    torch.manual_seed(0)
    tower = FoveatedVLM(recipe.new_model_config(processor, "coarse_fine")).encoder.dino.state_dict()
    model = recipe.new_model(processor, tower, "coarse_fine", 0).eval()
    cards = make_cards(0)
    frames, mask = with_cards(clips.pixels[1:2], clips.there[1:2], cards[0, :1])
    other, _ = with_cards(clips.pixels[1:2], clips.there[1:2], cards[3, :1])
    with torch.no_grad():
        first, second = (model.get_visual_tokens(one, mask).queries[0] for one in (frames, other))
    assert torch.equal(first[0], second[0])
    assert not torch.isclose(first[1:], second[1:]).all(-1).any()


def run(folder, *more):
    recipe.main(["--quick", "--seeds", "0", "--out", str(folder / "out"), "--work", str(folder / "work"), *more])
    return json.loads((folder / "out" / "foveated.json").read_text())


def test_the_recipe_runs_and_a_finished_run_is_not_run_again(tmp_path, capsys):
    found = run(tmp_path)
    assert [one["mode"] for one in found["runs"]] == list(recipe.MODES)
    for one in found["runs"]:
        assert one["questions"] > 20
        assert 0.02 < one["attention"]["area"] < 0.06
        assert 0 <= one["attention"]["inside"] <= 1
    assert (tmp_path / "out" / "foveated.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert "| `coarse_fine` |" in table
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*") if file.is_file()}
    assert run(tmp_path) == found
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*") if file.is_file()}
    # The model that comes out is one that `firebolt watch` takes.
    folder = tmp_path / "work" / "coarse_fine-seed-0"
    model, processor = FoveatedVLM.from_pretrained(folder), FoveatedProcessor.from_pretrained(folder)
    assert model.config.mode == "coarse_fine"
    assert processor.image_processor.size["height"] == 80


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SAVE_EVERY", 1)
    monkeypatch.setattr(recipe, "MODES", ("coarse_fine",))
    whole = run(tmp_path / "whole", "--modes", "coarse_fine")
    told_of = loop.History.add

    class Stopped(BaseException):
        pass

    def add(history, line):
        told_of(history, line)
        if "coarse_fine" in str(history.file) and line["step"] == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop.History, "add", add)
        with pytest.raises(Stopped):
            run(tmp_path / "broken", "--modes", "coarse_fine")
    again = run(tmp_path / "broken", "--modes", "coarse_fine")
    assert [one["resumed"] for one in (*whole["runs"], *again["runs"])] == [False, True]
    for name in ("accuracy", "attention"):
        assert again["runs"][0][name] == whole["runs"][0][name]


def test_a_look_is_the_models_own(clips):
    """Answers by the visual tokens of the look are those of the whole model."""
    processor = recipe.new_processor()
    texts, cards = recipe.make_texts(processor), make_cards(0)
    model = FoveatedVLM(recipe.new_model_config(processor, "coarse_fine")).eval()
    asked = every_question(clips, 0)
    seen = look(model, clips, cards, texts, asked)
    frames, mask = with_cards(clips.pixels[asked.clip], clips.there[asked.clip], cards[asked.card, asked.ink])
    prompt = int(texts.answer[0].int().argmax())
    with torch.no_grad():
        logits = model(texts.ids[10 * asked.colour, :prompt], frames=frames, frame_mask=mask).logits
    assert torch.equal(seen.answers, logits[:, -1].argmax(-1))
    there = clips.there[asked.clip]
    assert seen.maps.shape == (len(asked.clip), FRAMES, 10, 10)
    torch.testing.assert_close(seen.maps.sum((-2, -1)), there.float())


def test_steps_that_are_not_finite_are_skipped_in_both_stages(tmp_path):
    with poisoned(TowerJob, 1), poisoned(LookJob, 0, 2):
        found = run(tmp_path, "--modes", "coarse_only")
    assert [one["skipped_steps"] for one in found["runs"]] == [2]
    assert_finite(tmp_path / "work" / "coarse_only-seed-0" / "model.safetensors")
    assert_finite(tmp_path / "work" / recipe.STAGE)
