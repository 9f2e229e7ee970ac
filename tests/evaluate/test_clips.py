"""Clips of digits: whole in every frame, none over another, still or moving, of the digits of their split."""

import numpy as np
import pytest

from firebolt_vl.evaluate.clips import FASTEST, LEAST_DIGITS, draw_clip, sample_card, sample_clip
from firebolt_vl.evaluate.digits import COLOURS, HUES, sources


def clips(count=40, **told):
    rng = np.random.default_rng(0)
    return [sample_clip(rng, **{"split": "validation", "frames": 3, "moving": True, **told}) for _ in range(count)]


def test_digits_are_whole_in_every_frame_and_none_lies_over_another():
    crowded = 0
    for clip in clips():
        boxes = np.stack([clip.boxes(digit.colour) for digit in clip.digits])  # [D,T,4]
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        for one in range(len(boxes)):
            for other in range(one):
                apart = (boxes[one, :, :2] >= boxes[other, :, 2:]) | (boxes[other, :, :2] >= boxes[one, :, 2:])
                assert apart.any(-1).all()
        crowded += len(boxes) >= LEAST_DIGITS
    assert crowded > 30


def test_each_digit_has_a_colour_of_its_own_and_comes_from_its_split():
    own = {index for indices in sources("validation") for index in indices}
    for clip in clips():
        colours = [digit.colour for digit in clip.digits]
        assert len(set(colours)) == len(colours)
        assert {digit.source for digit in clip.digits} <= own
        for digit in clip.digits:
            assert digit.source in sources("validation")[digit.label]


def test_digits_move_along_lines_or_not_at_all():
    for clip in clips():
        for number in range(len(clip.digits)):
            path = np.array([(scene.digits[number].y, scene.digits[number].x) for scene in clip.scenes])
            steps = np.diff(path, axis=0)
            assert np.allclose(steps[0], steps[1])
            assert np.linalg.norm(steps[0]) <= FASTEST + 1e-9
    assert any(clip.scenes[0].digits != clip.scenes[-1].digits for clip in clips())
    for clip in clips(moving=False):
        assert clip.scenes[0] == clip.scenes[1] == clip.scenes[2]


def test_a_digit_is_drawn_in_its_box_in_its_colour():
    differs = 0
    for clip in clips(10):
        frames = [np.asarray(image).astype(int) for image in draw_clip(clip, 80)]
        assert [frame.shape for frame in frames] == [(80, 80, 3)] * 3
        for digit in clip.digits:
            for frame, box in zip(frames, clip.boxes(digit.colour)):
                top, left, bottom, right = (round(80 * end) for end in box)
                near = abs(frame[top:bottom, left:right] - np.array(digit.ink)).sum(-1) < 60
                differs += near.mean() > 0.03
    total = 3 * sum(len(clip.digits) for clip in clips(10))
    assert differs > 0.95 * total


def test_the_same_seed_is_the_same_clip():
    assert clips(5) == clips(5)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_card_has_the_colour_that_it_is_for(colour):
    import colorsys

    rng = np.random.default_rng(0)
    for _ in range(20):
        ink = sample_card(rng, colour)
        hue = 360 * colorsys.rgb_to_hsv(*(level / 255 for level in ink))[0]
        nearest = min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))
        assert nearest == colour
