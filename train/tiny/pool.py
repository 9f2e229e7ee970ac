"""What the embedded model learns from: a pool of scenes as the pixels of their views, and questions about them."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...evaluate.digits import COLOURS, LAYOUTS, POSITIONS, Scene, draw, handwriting, sample_scene
from ...evaluate.questions import KINDS, Question, sample_question

DRAWN_SIDE = 128
LAYOUT_SHARES = {"inside": 0.3, "empty": 0.15, "clutter": 0.15, "across": 0.4}
CHUNK = 500
NO_DIGIT, NO_COLOUR = 10, len(COLOURS)
ALL_OF_IT = ("what do you see?", "what is in the image?", "what is in the picture?", "tell me what is in the image.")


@dataclass
class Pool:
    """N scenes: `pixels` [N,3,S,S] uint8; of each quarter `labels`, `colours` and `sources` [N,4] (NO_DIGIT, NO_COLOUR
    and -1 where it is empty); the questions, and a caption of each scene, each with its scene's index."""

    pixels: Tensor
    labels: Tensor
    colours: Tensor
    sources: Tensor
    questions: list[tuple[int, Question]]
    captions: list[tuple[int, Question]]


def make_pool(scenes: int, seed: int, side: int, processes: int | None = None) -> Pool:
    """Scenes of training digits, of all layouts, each with a caption and, where it allows one, a question of each kind.

    The same pool for the same seed, whatever the number of processes.
    """
    sizes = [min(CHUNK, scenes - start) for start in range(0, scenes, CHUNK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    with ProcessPoolExecutor(processes or os.cpu_count()) as workers:
        chunks = list(workers.map(_make_chunk, seeds, sizes, [side] * len(sizes)))
    drawn = [scene for found, *_ in chunks for scene in found]
    questions, captions = (
        [(CHUNK * chunk + scene, question) for chunk, part in enumerate(parts) for scene, question in part]
        for parts in list(zip(*chunks))[2:]
    )
    pixels = torch.from_numpy(np.concatenate([pixels for _, pixels, *_ in chunks]))
    return Pool(pixels.permute(0, 3, 1, 2).contiguous(), *_quarters(drawn), questions, captions)


def _make_chunk(seed: np.random.SeedSequence, size: int, side: int):
    rng = np.random.default_rng(seed)
    pixels = np.empty((size, side, side, 3), dtype=np.uint8)
    scenes, questions, captions = [], [], []
    for i in range(size):
        scene = sample_scene(rng, str(rng.choice(LAYOUTS, p=[LAYOUT_SHARES[layout] for layout in LAYOUTS])), "train")
        scenes.append(scene)
        # What the processor's native tiling does to a square image: one resize gives the global view and the tiles.
        pixels[i] = np.asarray(draw(scene, DRAWN_SIDE).resize((side, side), Image.Resampling.BILINEAR))
        asked = (sample_question(rng, scene, kind) for kind in KINDS)
        questions.extend((i, question) for question in asked if question is not None)
        captions.append((i, caption(rng, scene)))
    return scenes, pixels, questions, captions


def caption(rng: np.random.Generator, scene: Scene) -> Question:
    """Asks for all of a scene: "top right red 7 bottom left blue 0", its digits in any order."""
    said = [f"{POSITIONS[digit.tile]} {digit.colour} {digit.label}" for digit in scene.digits]
    answer = " ".join(said[i] for i in rng.permutation(len(said)))
    return Question("caption", ALL_OF_IT[rng.integers(len(ALL_OF_IT))], answer, held_out=False)


def _quarters(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.full((len(scenes), 4), NO_DIGIT)
    colours = torch.full((len(scenes), 4), NO_COLOUR)
    sources = torch.full((len(scenes), 4), -1)
    for i, scene in enumerate(scenes):
        for digit in scene.digits:
            labels[i, digit.tile] = digit.label
            colours[i, digit.tile] = COLOURS.index(digit.colour)
            sources[i, digit.tile] = digit.source
    return labels, colours, sources


def glyphs() -> Tensor:
    """The handwriting itself, [1797,64] in 0..1."""
    pixels, _ = handwriting()
    return torch.from_numpy(pixels.astype(np.float32) / 255).flatten(1)


def global_views(pixels: Tensor) -> Tensor:
    """[N,3,S,S] uint8 -> float32 in -1..1, as the processor normalises."""
    return pixels.float() / 127.5 - 1


def tiles(views: Tensor) -> Tensor:
    """The 2 x 2 tiles of global views [N,3,S,S], in reading order: [4 N, 3, S/2, S/2]."""
    half = views.shape[-1] // 2
    rows = views.unflatten(-2, (2, half)).unflatten(-1, (2, half))  # [N,3,2,S/2,2,S/2]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
