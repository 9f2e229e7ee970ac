"""Training data of the small foveated model: a pool of clips as pixels, and where each colour's digit is in them."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...evaluate.clips import draw_clip, sample_card, sample_clip
from ...evaluate.digits import COLOURS
from ...model import FoveatedImageProcessor
from ..tensors import Wanted
from ..tiny.pool import NO_DIGIT, glyphs

FRAMES = 3
CHUNK = 250
CARDS = 200


@dataclass
class Clips:
    """N clips of FRAMES frames, of which the first alone is there in a still one.

    pixels    [N,T,3,S,S] uint8
    there     [N,T] bool
    labels    [N,6], of each of COLOURS the digit; -1 where the clip has none of it
    sources   [N,6], which handwriting it is; -1
    boxes     [N,T,6,4] float32: y0, x0, y1, x1 in sides of the frame; 0
    """

    pixels: Tensor
    there: Tensor
    labels: Tensor
    sources: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All of them, by name; `of_tensors` undoes it."""
        return {f"{prefix}.{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, file: Path) -> "Clips":
        """Undo `tensors`. Raises ValueError, which names file and tensor, for digits and handwritings out of range."""
        for name, end in (("labels", NO_DIGIT), ("sources", len(glyphs()))):
            values = tensors[f"{prefix}.{name}"]
            if not len(values) or values.min() < -1 or values.max() >= end:
                raise ValueError(f"{file}: {prefix}.{name} is out of range; expected numbers in -1..{end - 1}")
        return cls(*(tensors[f"{prefix}.{name}"] for name in cls.__dataclass_fields__))

    @staticmethod
    def wanted(prefix: str, clips: int) -> dict[str, Wanted]:
        """Return the dtypes and shapes that `check_tensors` holds so many clips to."""
        forms = {
            "pixels": (torch.uint8, (clips, FRAMES, 3, "side", "side")),
            "there": (torch.bool, (clips, FRAMES)),
            "labels": (torch.long, (clips, len(COLOURS))),
            "sources": (torch.long, (clips, len(COLOURS))),
            "boxes": (torch.float32, (clips, FRAMES, len(COLOURS), 4)),
        }
        return {f"{prefix}.{name}": form for name, form in forms.items()}


def make_clips(clips: int, seed: int, side: int, split: str, processes: int | None = None) -> Clips:
    """Clips of digits of a split, half of them still. The same ones for a seed, whatever the number of processes."""
    sizes = [min(CHUNK, clips - start) for start in range(0, clips, CHUNK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    with ProcessPoolExecutor(processes or os.cpu_count()) as workers:
        chunks = list(workers.map(partial(_make_chunk, side=side, split=split), seeds, sizes))
    return Clips(*(torch.from_numpy(np.concatenate(parts)) for parts in zip(*chunks)))


def _make_chunk(seed: np.random.SeedSequence, size: int, side: int, split: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size, FRAMES, 3, side, side), dtype=np.uint8)
    there = np.zeros((size, FRAMES), dtype=bool)
    labels, sources = (np.full((size, len(COLOURS)), -1) for _ in range(2))
    boxes = np.zeros((size, FRAMES, len(COLOURS), 4), dtype=np.float32)
    for i in range(size):
        moving = i % 2 == 1
        frames = FRAMES if moving else 1
        clip = sample_clip(rng, split, frames, moving)
        there[i, :frames] = True
        for frame, image in enumerate(draw_clip(clip, side)):
            pixels[i, frame] = np.asarray(image).transpose(2, 0, 1)
        for digit in clip.digits:
            colour = COLOURS.index(digit.colour)
            labels[i, colour], sources[i, colour] = digit.label, digit.source
            boxes[i, :frames, colour] = clip.boxes(digit.colour)
    return pixels, there, labels, sources, boxes


def make_cards(seed: int) -> Tensor:
    """[6,CARDS,3] uint8: inks of each of COLOURS, for the cards that say which digit is asked for."""
    rng = np.random.default_rng(seed)
    inks = [[sample_card(rng, colour) for _ in range(CARDS)] for colour in COLOURS]
    return torch.tensor(inks, dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """[...,3,S,S] uint8 -> float32, as the processor normalises."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (FoveatedImageProcessor.image_mean, FoveatedImageProcessor.image_std)
    )
    return (pixels.float() / 255 - mean) / std


def with_cards(pixels: Tensor, there: Tensor, inks: Tensor) -> tuple[Tensor, Tensor]:
    """`frames` and `frame_mask` of the model: a card of one ink [n,3] in front of each clip."""
    cards = inks[:, None, :, None, None].expand(-1, 1, -1, *pixels.shape[-2:])
    frames = normalised(torch.cat([cards, pixels], dim=1))
    return frames, torch.cat([torch.ones_like(there[:, :1]), there], dim=1)
