"""Trainings of the task: with the frames' times, with times as if they were even, and with their order alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...model import FireboltConfig, FireboltForConditionalGeneration
from ...model.places import EMBEDDED, find
from ..tiny.models import CMM, TEXT, VISION
from .task import (
    AT,
    FIRST,
    KINDS,
    LAST,
    LONGER,
    PAD,
    QUARTER,
    TOLD,
    WORDS,
    Clips,
    every_row,
    make_clips,
    mirrored,
    rows_of,
    uneven_times,
)

BATCH, RATE, WARMUP = 64, 2e-3, 20
GRID_NOISE = 0.1
LAYERS = ["conv", "full_attention"]


@dataclass(frozen=True)
class Sizes:
    """Amounts of everything."""

    clips: int = 600
    exam_clips: int = 200
    frames: int = 8
    steps: int = 400
    seeds: int = 3

    @classmethod
    def quick(cls) -> "Sizes":
        """Return the least of everything: to see that it works."""
        return cls(clips=8, exam_clips=4, frames=4, steps=2, seeds=1)


def study(sizes: Sizes, note: Callable[[str], None]) -> dict[str, list[dict[int, float]]]:
    """Train each variant with each seed; returns, of each, the shares of right answers about clips of held-out digits.

    A share for each kind of question. All variants of a seed begin with the same weights.
    """
    tower = FireboltForConditionalGeneration.from_pretrained(find(EMBEDDED)).eval().model.vision_tower
    note(f"{sizes.clips} clips to learn from, {sizes.exam_clips} of held-out digits to examine with")
    learned = make_clips(tower, "train", sizes.clips, sizes.frames, seed=1)
    asked = make_clips(tower, "held-out", sizes.exam_clips, sizes.frames, seed=2)
    found: dict[str, list[dict[int, float]]] = {told: [] for told in TOLD}
    for seed in range(sizes.seeds):
        for told in TOLD:
            model = train(new_model(seed), learned, told, sizes.steps, seed)
            shares = examine(model, asked, told)
            found[told].append(shares)
            note(f"seed {seed}, {told}: " + ", ".join(f"{KINDS[kind]} {100 * shares[kind]:.1f} %" for kind in KINDS))
    return found


def new_model(seed: int) -> FireboltForConditionalGeneration:
    """An untrained model, of the embedded one's widths, that reads times where it is given any."""
    torch.manual_seed(seed)
    text = {**TEXT, "num_hidden_layers": len(LAYERS), "layer_types": LAYERS, "vocab_size": WORDS, "pad_token_id": PAD}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return FireboltForConditionalGeneration(
        FireboltConfig(text_config={**text, **ends}, vision_config=VISION, cmm_config={**CMM, "grid_times": True})
    )


def train(
    model: FireboltForConditionalGeneration, clips: Clips, told: str, steps: int, seed: int
) -> FireboltForConditionalGeneration:
    """Train connector and decoder; rows and noise are the same for every variant of a seed."""
    generator = torch.Generator().manual_seed(seed)
    model.model.vision_tower.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE, weight_decay=0.01)
    scale = clips.grids.std()
    model.train()
    for step in range(steps):
        rate = RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = rows_of(clips, *some_rows(clips, generator), told)
        rows["grids"] = rows["grids"] + GRID_NOISE * scale * torch.randn(rows["grids"].shape, generator=generator)
        optimizer.zero_grad()
        model(**rows, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    return model.eval()


def some_rows(clips: Clips, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips, questions and times of a batch, as many of each kind, times drawn anew."""
    chosen = torch.randint(len(clips), (BATCH,), generator=generator)
    times, at_second = uneven_times(BATCH, clips.grids.shape[1], generator)
    times = torch.where(torch.rand(BATCH, 1, generator=generator) < 0.5, mirrored(times), times)
    kinds = torch.tensor([FIRST, LAST, LONGER, AT])[torch.randint(4, (BATCH,), generator=generator)]
    return chosen, torch.where(kinds == AT, at_second, kinds), times


@torch.no_grad()
def examine(model: FireboltForConditionalGeneration, clips: Clips, told: str) -> dict[int, float]:
    """Share of right answers to each kind of question, each clip with both orders of its gaps."""
    rows = every_row(clips, torch.Generator().manual_seed(0))
    right = []
    for part in zip(*(values.split(256) for values in rows)):
        inputs = rows_of(clips, *part, told)
        answers = inputs.pop("labels")[:, -1]
        logits = model(**inputs, use_cache=False).logits[:, -2, QUARTER:]
        right.append(logits.argmax(-1) + QUARTER == answers)
    kinds = rows[1].clamp(max=AT)
    return {kind: torch.cat(right)[kinds == kind].double().mean().item() for kind in KINDS}
