"""The task that needs times: what it asks, and what can be known without them."""

import numpy as np
import pytest
import torch

from firebolt_vl.evaluate.clips import sample_visits
from firebolt_vl.train.times.__main__ import table
from firebolt_vl.train.times.runs import Sizes, study
from firebolt_vl.train.times.task import (
    AT,
    FIRST,
    KINDS,
    LAST,
    LONGER,
    QUARTER,
    TOLD,
    VIEWS,
    WORDS,
    Clips,
    every_row,
    mirrored,
    places_asked,
    rows_of,
    uneven_times,
)


def some_clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    return Clips(torch.randn(3, 4, VIEWS, 6, generator=generator), torch.tensor([[0, 1], [2, 3], [1, 2]]))


def test_a_digit_moves_in_one_quarter_and_then_in_another_and_no_border_cuts_it():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        clip = sample_visits(rng, "train", 6)
        digits = [scene.digits[0] for scene in clip.scenes]
        tiles = [digit.tile for digit in digits]
        assert tiles[0] != tiles[-1]
        assert tiles == [tiles[0]] * 3 + [tiles[-1]] * 3
        seen |= set(tiles)
        for half in (digits[:3], digits[3:]):
            steps = np.diff([(digit.y, digit.x) for digit in half], axis=0)
            np.testing.assert_allclose(steps[0], steps[1])
            assert abs(steps).sum() > 0
        corners = clip.boxes(digits[0].colour).reshape(-1, 2, 2)
        np.testing.assert_array_equal(corners[:, 0] // 0.5, corners[:, 1] // 0.5)
    assert seen == {0, 1, 2, 3}


def test_what_is_asked_is_read_off_the_times():
    """Four frames, two in each quarter."""
    times = torch.tensor([[0.0, 6.0, 7.0, 10.0], [0.0, 3.0, 4.0, 10.0]])
    for question, places in ((FIRST, [0, 0]), (LAST, [1, 1]), (LONGER, [0, 1]), (AT + 5, [0, 1]), (AT + 8, [1, 1])):
        assert places_asked(times, torch.full((2,), question)).tolist() == places
    assert mirrored(times).tolist() == [[0, 3, 4, 10], [0, 6, 7, 10]]


def test_times_are_uneven_and_begin_at_0():
    times, _ = uneven_times(200, 8, torch.Generator().manual_seed(0))
    gaps = times.diff(dim=1)
    assert (times[:, 0] == 0).all()
    assert (gaps > 0).all()
    assert (gaps.amax(1) > 2 * gaps.amin(1)).all()


def rows_with(told: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All rows of an exam of some clips, as a variant gets them, and the kinds of their questions."""
    clips = some_clips()
    chosen, questions, times = every_row(clips, torch.Generator().manual_seed(1))
    return rows_of(clips, chosen, questions, times, told), questions.clamp(max=AT)


@pytest.mark.parametrize("told", ["order", "even"])
def test_order_alone_tells_first_and_last_and_half_of_what_is_asked_of_times(told):
    """Each row has a partner that is the same to who knows no times: of two such answers one at most is right."""
    rows, kinds = rows_with(told)
    half = len(kinds) // 2
    answers = rows.pop("labels")[:, -1]
    rows["input_ids"] = rows["input_ids"][:, :2]
    for values in rows.values():
        assert torch.equal(values[:half], values[half:])
    for kind, name in KINDS.items():
        asked = kinds[:half] == kind
        assert asked.any()
        differ = answers[:half][asked] != answers[half:][asked]
        assert differ.all() if kind in (LONGER, AT) else not differ.any(), name


def test_times_tell_every_answer_and_differ_between_partners():
    rows, kinds = rows_with("times")
    half = len(kinds) // 2
    seconds = rows["grid_times"].view(len(kinds), -1, VIEWS)
    assert (seconds == seconds[..., :1]).all()
    times, questions = seconds[..., 0], rows["input_ids"][:, 1]
    assert (times[:half] != times[half:]).any(1).all()
    clips = some_clips()
    chosen = torch.arange(len(kinds)) % len(clips)
    places = clips.places[chosen].gather(1, places_asked(times, questions)[:, None])[:, 0]
    assert torch.equal(rows["labels"][:, -1], QUARTER + places)
    assert rows["input_ids"].max() < WORDS


def test_a_variant_gets_what_it_is_told_and_nothing_more():
    given = {told: {name for name in rows_with(told)[0] if name in ("grid_times", "grid_images")} for told in TOLD}
    assert given == {"times": {"grid_times"}, "even": {"grid_times"}, "order": {"grid_images"}}


def test_the_study_runs_and_its_table_has_a_line_for_each_variant():
    found = study(Sizes.quick(), lambda text: None)
    assert list(found) == list(TOLD)
    for seeds in found.values():
        assert [list(shares) for shares in seeds] == [list(KINDS)]
        assert all(0 <= share <= 1 for share in seeds[0].values())
    assert table(found).count("\n| ") == 1 + len(TOLD)
