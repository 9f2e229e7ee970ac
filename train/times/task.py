"""The task: a digit goes from one quarter of the picture to another; where is it first, and where last?

Each clip is shown forwards and backwards. The frames of the two are the same, and so is what can be known without their
order: who has no times is right about half of them at best.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import SiglipVisionModel

from ...cmm.positions import default_boxes
from ...evaluate.clips import draw_clip, sample_journey
from ..tiny.models import IMAGE_SIDE
from ..tiny.tower import encode

# A token each: padding, the beginning, the two questions, the four quarters.
PAD, BEGIN, FIRST, LAST, QUARTER = 0, 1, 2, 3, 4
WORDS = QUARTER + 4
QUESTIONS = (FIRST, LAST)
IGNORED = -100
VIEWS = 5
"""Grids of a frame: the whole of it, and its quarters."""


@dataclass(frozen=True)
class Clips:
    """N clips of F frames: `grids` [N,F,5,D_v], and `ends` [N,2], the quarters that the digit is in first and last."""

    grids: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)


def make_clips(tower: SiglipVisionModel, split: str, count: int, frames: int, seed: int) -> Clips:
    """Draw `count` clips with digits of a split, and encode their frames by a tower."""
    rng = np.random.default_rng(seed)
    grids, ends = [], []
    for _ in range(count):
        clip = sample_journey(rng, split, frames)
        pixels = np.stack([np.asarray(frame) for frame in draw_clip(clip, IMAGE_SIDE)])
        grids.append(encode(tower, torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        ends.append([scene.digits[0].tile for scene in (clip.scenes[0], clip.scenes[-1])])
    return Clips(torch.stack(grids), torch.tensor(ends))


def rows_of(clips: Clips, chosen: Tensor, questions: Tensor, backwards: Tensor, told: str) -> dict[str, Tensor]:
    """The model's inputs for clips [B], with a question each, of QUESTIONS, and those that run `backwards` [B] bool.

    `told`, of the frames, a second apart: "times"; "order", that they are images one after another; or "nothing".
    """
    frames = clips.grids.shape[1]
    second = torch.arange(frames)
    times = torch.where(backwards[:, None], frames - 1 - second, second).repeat_interleave(VIEWS, 1)
    ends = torch.where(backwards[:, None], clips.ends[chosen].flip(1), clips.ends[chosen])
    answers = QUARTER + ends.gather(1, (questions == LAST).long()[:, None])[:, 0]
    ids = torch.stack([torch.full_like(questions, BEGIN), questions, answers], 1)
    inputs = {
        "input_ids": ids,
        "labels": torch.where(torch.arange(3) == 2, ids, IGNORED),
        "grids": clips.grids[chosen].flatten(1, 2),
        "grid_boxes": default_boxes(VIEWS).repeat(frames, 1).expand(len(chosen), -1, -1),
    }
    if told == "times":
        inputs["grid_times"] = times.float()
    if told == "order":
        inputs["grid_images"] = times
    return inputs


def every_row(clips: Clips) -> tuple[Tensor, Tensor, Tensor]:
    """Clips, questions and directions [4N]: each clip with both questions, in both directions."""
    clip = torch.arange(len(clips)).repeat(4)
    question = torch.tensor(QUESTIONS).repeat_interleave(len(clips)).repeat(2)
    return clip, question, torch.arange(4 * len(clips)) >= 2 * len(clips)
