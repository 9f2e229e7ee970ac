"""Frames, questions and answers, and where each mode's queries looked."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...evaluate.digits import COLOURS
from ...model import FoveatedProcessor, FoveatedVLM
from ..tiny.fusion import Rows
from .exam import Asked, every_question, look
from .pool import FRAMES, Clips

EXAMPLES = 4
DIMMED = 0.2


def draw_examples(
    models: Mapping[str, FoveatedVLM],
    clips: Clips,
    cards: Tensor,
    texts: Rows,
    processor: FoveatedProcessor,
    file: Path,
) -> None:
    """A line for each of the first moving clips: card and frames, then for each mode the frames lit by its looks, and
    its answer; the asked digit's box is outlined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    asked = _examples(clips)
    seen = {mode: look(model, clips, cards, texts, asked) for mode, model in models.items()}
    lines, columns = len(asked.clip), 1 + FRAMES * (1 + len(models))
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(1.05 * columns, 1.42 * lines), squeeze=False, layout="constrained"
    )
    for line, axes in enumerate(grid):
        clip, colour = int(asked.clip[line]), int(asked.colour[line])
        frames = clips.pixels[clip].numpy().transpose(0, 2, 3, 1) / 255
        boxes = clips.boxes[clip, :, colour].numpy() * frames.shape[1]
        axes[0].imshow(np.broadcast_to(cards[asked.card[line], asked.ink[line]].numpy(), frames[0].shape))
        axes[0].set_title(f"what digit is\n{COLOURS[colour]}?", fontsize=8, loc="left")
        axes[1].set_title(f"\nit is {int(clips.labels[clip, colour])}", fontsize=8, loc="left")
        shown = list(frames)
        for mode, found in seen.items():
            answer = processor.tokenizer.decode(found.answers[line])
            axes[1 + len(shown)].set_title(f"{mode}:\n{answer}", fontsize=8, loc="left")
            shown += [frame * lit(share.numpy(), len(frame)) for frame, share in zip(frames, found.maps[line])]
        for number, (axis, frame) in enumerate(zip(axes[1:], shown)):
            axis.imshow(frame)
            if number >= FRAMES:
                top, left, bottom, right = boxes[number % FRAMES] - 0.5
                across, down = [left, right, right, left, left], [top, top, bottom, bottom, top]
                axis.plot(across, down, color="white", linewidth=0.8)
    for axis in grid.flat:
        axis.set_axis_off()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def lit(share: np.ndarray, side: int) -> np.ndarray:
    """Compute the factor of a frame's pixels, [side,side,1]: 1 where the look [P,P] weighs most."""
    light = DIMMED + (1 - DIMMED) * share / max(share.max(), 1e-12)
    return np.kron(light, np.ones((side // len(share),) * 2))[..., None]


def _examples(clips: Clips) -> Asked:
    """Choose a question of each of the first moving clips, each about another colour."""
    every = every_question(clips, seed=0)
    chosen: dict[int, tuple[int, int]] = {}
    for number, (clip, colour) in enumerate(zip(every.clip.tolist(), every.colour.tolist())):
        fresh = clip not in chosen and colour not in [asked for asked, _ in chosen.values()]
        if clips.there[clip, -1] and fresh and len(chosen) < EXAMPLES:
            chosen[clip] = colour, number
    picked = torch.tensor([number for _, number in chosen.values()])
    return Asked(*(getattr(every, name)[picked] for name in ("clip", "colour", "card", "ink")))
