"""The task that needs times: what it asks, and what can be known without them."""

import numpy as np
import torch

from firebolt_vl.evaluate.clips import sample_journey
from firebolt_vl.train.times.__main__ import table
from firebolt_vl.train.times.runs import TOLD, Sizes, study
from firebolt_vl.train.times.task import FIRST, LAST, QUARTER, VIEWS, Clips, every_row, rows_of


def some_clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    return Clips(torch.randn(3, 4, VIEWS, 6, generator=generator), torch.tensor([[0, 1], [2, 3], [1, 2]]))


def test_a_digit_goes_from_one_quarter_to_another_and_is_whole_in_each_frame():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        clip = sample_journey(rng, "train", 5)
        digits = [scene.digits[0] for scene in clip.scenes]
        assert digits[0].tile != digits[-1].tile
        seen |= {digits[0].tile, digits[-1].tile}
        boxes = clip.boxes(digits[0].colour)
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        steps = np.diff([(digit.y, digit.x) for digit in digits], axis=0)
        np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape))
    assert seen == {0, 1, 2, 3}


def test_the_answer_is_the_quarter_of_the_frame_that_comes_first_or_last():
    clips = some_clips()
    chosen, forwards = torch.tensor([0, 0, 1, 1]), torch.tensor([False, True, False, True])
    questions = torch.tensor([FIRST, FIRST, LAST, LAST])
    rows = rows_of(clips, chosen, questions, forwards, "times")
    assert (rows["labels"][:, -1] - QUARTER).tolist() == [0, 1, 3, 2]
    seconds = rows["grid_times"].view(4, 4, VIEWS)[:, :, 0].tolist()
    assert seconds == [[0, 1, 2, 3], [3, 2, 1, 0]] * 2
    assert "grid_times" not in rows_of(clips, chosen, questions, forwards, "order")
    assert (rows_of(clips, chosen, questions, forwards, "order")["grid_images"] == rows["grid_times"]).all()


def test_who_is_told_nothing_sees_the_same_whichever_way_a_clip_runs():
    """Half of the answers are then the most that can be right."""
    clips = some_clips()
    clip, question, backwards = every_row(clips)
    rows = rows_of(clips, clip, question, backwards, "nothing")
    half = len(clip) // 2
    assert not backwards[:half].any()
    for name in ("grids", "grid_boxes"):
        assert torch.equal(rows[name][:half], rows[name][half:])
    assert torch.equal(rows["input_ids"][:half, :2], rows["input_ids"][half:, :2])
    assert (rows["labels"][:half, -1] != rows["labels"][half:, -1]).all()


def test_the_study_runs_and_its_table_has_a_line_for_each_variant():
    found = study(Sizes.quick(), lambda text: None)
    assert list(found) == list(TOLD)
    assert all(len(shares) == 1 and 0 <= shares[0] <= 1 for shares in found.values())
    assert table(found).count("\n| ") == 1 + len(TOLD)
