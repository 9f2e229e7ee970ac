"""Training data of the embedded model: a pool of scenes as the pixels of their views, and questions about them."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

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
    """N scenes: `pixels` [N,3,S,S] uint8, and `finer` for each further side; of each quarter `labels`, `colours` and
    `sources` [N,4] (NO_DIGIT, NO_COLOUR and -1 where it is empty) and the digit's centre, `centres` [N,4,2] (y, x; that
    of the quarter where it is empty); the questions, and a caption of each scene, each with its scene's index."""

    pixels: Tensor
    finer: list[Tensor]
    labels: Tensor
    colours: Tensor
    sources: Tensor
    centres: Tensor
    questions: list[tuple[int, Question]]
    captions: list[tuple[int, Question]]


def make_pool(
    scenes: int,
    seed: int,
    side: int,
    processes: int | None = None,
    *,
    finer: Sequence[int] = (),
    scale: float = 1.0,
) -> Pool:
    """Scenes of training digits, of all layouts, each with a caption and, where it allows one, a question of each kind.
    `scale` multiplies the digits' sizes; further pixels are made for each side in `finer`.

    The same pool for the same seed, whatever the number of processes.
    """
    sizes = [min(CHUNK, scenes - start) for start in range(0, scenes, CHUNK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    with ProcessPoolExecutor(processes or os.cpu_count()) as workers:
        chunks = list(workers.map(partial(_make_chunk, sides=(side, *finer), scale=scale), seeds, sizes))
    drawn = [scene for found, *_ in chunks for scene in found]
    questions, captions = (
        [(CHUNK * chunk + scene, question) for chunk, part in enumerate(parts) for scene, question in part]
        for parts in list(zip(*chunks))[2:]
    )
    pixels, *rest = (
        torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
        for parts in zip(*(pixels for _, pixels, *_ in chunks))
    )
    return Pool(pixels, rest, *_quarters(drawn), questions, captions)


def _make_chunk(seed: np.random.SeedSequence, size: int, sides: Sequence[int], scale: float):
    rng = np.random.default_rng(seed)
    pixels = [np.empty((size, side, side, 3), dtype=np.uint8) for side in sides]
    scenes, questions, captions = [], [], []
    for i in range(size):
        layout = str(rng.choice(LAYOUTS, p=[LAYOUT_SHARES[layout] for layout in LAYOUTS]))
        scene = sample_scene(rng, layout, "train", scale)
        scenes.append(scene)
        # What the processor's native tiling does to a square image: one resize gives the global view and the tiles.
        image = draw(scene, DRAWN_SIDE)
        for side, views in zip(sides, pixels):
            views[i] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        asked = (sample_question(rng, scene, kind) for kind in KINDS)
        questions.extend((i, question) for question in asked if question is not None)
        captions.append((i, caption(rng, scene)))
    return scenes, pixels, questions, captions


def caption(rng: np.random.Generator, scene: Scene) -> Question:
    """Asks for all of a scene: "top right red 7 bottom left blue 0", its digits in any order."""
    said = [f"{POSITIONS[digit.tile]} {digit.colour} {digit.label}" for digit in scene.digits]
    answer = " ".join(said[i] for i in rng.permutation(len(said)))
    return Question("caption", ALL_OF_IT[rng.integers(len(ALL_OF_IT))], answer, held_out=False)


def _quarters(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.full((len(scenes), 4), NO_DIGIT)
    colours = torch.full((len(scenes), 4), NO_COLOUR)
    sources = torch.full((len(scenes), 4), -1)
    for i, scene in enumerate(scenes):
        for digit in scene.digits:
            labels[i, digit.tile] = digit.label
            colours[i, digit.tile] = COLOURS.index(digit.colour)
            sources[i, digit.tile] = digit.source
    return labels, colours, sources, centres_of(scenes)


def centres_of(scenes: Sequence[Scene]) -> Tensor:
    """Find each quarter's centre of its digit, of an empty one its own: [N,4,2], y and x in 0..1."""
    centres = torch.tensor([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]).repeat(len(scenes), 1, 1)
    for i, scene in enumerate(scenes):
        for digit in scene.digits:
            centres[i, digit.tile] = torch.tensor([digit.y, digit.x])
    return centres


def glyphs() -> Tensor:
    """The handwriting itself, [1797,64] in 0..1."""
    pixels, _ = handwriting()
    return torch.from_numpy(pixels.astype(np.float32) / 255).flatten(1)


def global_views(pixels: Tensor) -> Tensor:
    """[N,3,S,S] uint8 -> float32 in -1..1, as the processor normalises."""
    return pixels.float() / 127.5 - 1


def tiles(views: Tensor, n: int = 2) -> Tensor:
    """The n x n tiles of views [N,3,S,S], in reading order: [n^2 N, 3, S/n, S/n]."""
    side = views.shape[-1] // n
    rows = views.unflatten(-2, (n, side)).unflatten(-1, (n, side))  # [N,3,n,S/n,n,S/n]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
