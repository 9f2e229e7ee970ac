"""The task: a digit moves in one quarter of the picture, then in another, and its frames come at uneven times.

Asked is where it is first or last, which the order of the frames tells; where it is longer; where it is at a second.
Each clip is shown with the gaps between its frames in one order and in the other. The frames of the two and their order
are the same; where it is longer is not, nor where it is at the second that is asked for. So who knows no times is right
about half of these at best.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import SiglipVisionModel

from ...cmm.positions import default_boxes
from ...evaluate.clips import draw_clip, sample_visits
from ..tiny.models import IMAGE_SIDE
from ..tiny.tower import encode

# How long a clip is, in seconds; and, in shares of it, when the last frame of the first quarter comes, for how much of
# what is left then nobody sees the digit. The first share is over a half: there it is longer.
LENGTHS = (8.0, 16.0)
LEAVES = (0.6, 0.8)
UNSEEN = (0.1, 0.3)

# A token each: padding, the beginning, three questions and one for each second, the four quarters.
PAD, BEGIN, FIRST, LAST, LONGER, AT = range(6)
QUARTER = AT + int(LENGTHS[1])
WORDS = QUARTER + 4
KINDS = {FIRST: "first", LAST: "last", LONGER: "longer", AT: "at a second"}
IGNORED = -100
TOLD = ("times", "even", "order")
VIEWS = 5
"""Grids of a frame: the whole of it, and its quarters."""


@dataclass(frozen=True)
class Clips:
    """N clips of F frames: `grids` [N,F,5,D_v], and `places` [N,2], the quarters of the two halves of the frames."""

    grids: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)


def make_clips(tower: SiglipVisionModel, split: str, count: int, frames: int, seed: int) -> Clips:
    """Draw `count` clips with digits of a split, and encode their frames by a tower."""
    rng = np.random.default_rng(seed)
    grids, places = [], []
    for _ in range(count):
        clip = sample_visits(rng, split, frames)
        pixels = np.stack([np.asarray(frame) for frame in draw_clip(clip, IMAGE_SIDE)])
        grids.append(encode(tower, torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        places.append([scene.digits[0].tile for scene in (clip.scenes[0], clip.scenes[-1])])
    return Clips(torch.stack(grids), torch.tensor(places))


def uneven_times(count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times [B,F] of frames, from second 0, and a question [B] for a whole second.

    The first half of the frames takes more than half of the time. At the second of the question the digit is in the
    first quarter; with the gaps in the other order (`mirrored`) in the second one.
    """

    def uniform(least: float | Tensor, most: float | Tensor, *more: int) -> Tensor:
        return least + (most - least) * torch.rand(count, *more, generator=generator)

    length = uniform(*LENGTHS)
    leaves = length * uniform(*LEAVES)
    comes = leaves + (length - leaves) * uniform(*UNSEEN)
    inside = uniform(0.0, 1.0, frames - 4).view(count, 2, frames // 2 - 2).sort().values
    start, end = torch.stack([torch.zeros(count), comes], 1), torch.stack([leaves, length], 1)
    halves = start[..., None] + (end - start)[..., None] * inside
    times = torch.cat([start[..., None], halves, end[..., None]], -1).flatten(1)
    least, most = (length - leaves).floor() + 1, leaves.ceil() - 1
    return times, AT + uniform(least, most + 1).floor().minimum(most).long()


def mirrored(times: Tensor) -> Tensor:
    """Times [B,F] of as many frames with the gaps between them in the other order."""
    return times[:, -1:] - times.flip(1)


def places_asked(times: Tensor, questions: Tensor) -> Tensor:
    """The places, 0 or 1 of a clip's two, that questions [B] ask for, of frames at times [B,F]; [B]."""
    half = times.shape[1] // 2
    stays = times.view(len(times), 2, half)[..., -1] - times.view(len(times), 2, half)[..., 0]
    seen = (times <= (questions - AT)[:, None]).sum(1)
    at_second = (seen > half).long()
    found = torch.where(questions == LONGER, stays.argmax(1), at_second)
    return torch.where(questions == FIRST, 0, torch.where(questions == LAST, 1, found))


def rows_of(clips: Clips, chosen: Tensor, questions: Tensor, times: Tensor, told: str) -> dict[str, Tensor]:
    """The model's inputs for clips [B], with a question each and the times [B,F] of their frames.

    `told`, of the frames: "times", their times; "even", times as if they came a second apart; "order", that they are
    images one after another.
    """
    frames = clips.grids.shape[1]
    answers = QUARTER + clips.places[chosen].gather(1, places_asked(times, questions)[:, None])[:, 0]
    ids = torch.stack([torch.full_like(questions, BEGIN), questions, answers], 1)
    inputs = {
        "input_ids": ids,
        "labels": torch.where(torch.arange(3) == 2, ids, IGNORED),
        "grids": clips.grids[chosen].flatten(1, 2),
        "grid_boxes": default_boxes(VIEWS).repeat(frames, 1).expand(len(chosen), -1, -1),
    }
    order = torch.arange(frames).expand(len(chosen), -1)
    if told == "order":
        return {**inputs, "grid_images": order.repeat_interleave(VIEWS, 1)}
    return {**inputs, "grid_times": (times if told == "times" else order.float()).repeat_interleave(VIEWS, 1)}


def every_row(clips: Clips, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Clips, questions and times of [8N] rows: each clip with a question of each kind; then all again, mirrored."""
    count = len(clips)
    times, at_second = uneven_times(count, clips.grids.shape[1], generator)
    others = torch.tensor([FIRST, LAST, LONGER]).repeat_interleave(count)
    questions = torch.cat([others, at_second])
    return (
        torch.arange(count).repeat(8),
        questions.repeat(2),
        torch.cat([times.repeat(4, 1), mirrored(times).repeat(4, 1)]),
    )
