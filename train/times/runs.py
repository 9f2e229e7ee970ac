"""Trainings of the task: with times, with the order of frames alone, and with neither; several seeds of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...model import FireboltConfig, FireboltForConditionalGeneration
from ...model.places import EMBEDDED, find
from ..tiny.models import CMM, TEXT, VISION
from .task import PAD, QUARTER, QUESTIONS, WORDS, Clips, every_row, make_clips, rows_of

TOLD = ("times", "order", "nothing")
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
        return cls(clips=8, exam_clips=4, frames=3, steps=2, seeds=1)


def study(sizes: Sizes, note: Callable[[str], None]) -> dict[str, list[float]]:
    """Train each variant with each seed; returns the shares of right answers about clips of held-out digits."""
    tower = FireboltForConditionalGeneration.from_pretrained(find(EMBEDDED)).eval().model.vision_tower
    note(f"{sizes.clips} clips to learn from, {sizes.exam_clips} of held-out digits to examine with")
    learned = make_clips(tower, "train", sizes.clips, sizes.frames, seed=1)
    asked = make_clips(tower, "held-out", sizes.exam_clips, sizes.frames, seed=2)
    found: dict[str, list[float]] = {told: [] for told in TOLD}
    for seed in range(sizes.seeds):
        for told in TOLD:
            model = train(new_model(told, seed), learned, told, sizes.steps, seed)
            found[told].append(examine(model, asked, told))
            note(f"seed {seed}, {told}: {100 * found[told][-1]:.1f} % right")
    return found


def new_model(told: str, seed: int) -> FireboltForConditionalGeneration:
    """An untrained model, of the embedded one's widths; its connector reads times where they are told."""
    torch.manual_seed(seed)
    text = {**TEXT, "num_hidden_layers": len(LAYERS), "layer_types": LAYERS, "vocab_size": WORDS, "pad_token_id": PAD}
    ends = {"bos_token_id": None, "eos_token_id": None}
    cmm = {**CMM, "grid_times": told == "times"}
    return FireboltForConditionalGeneration(
        FireboltConfig(text_config={**text, **ends}, vision_config=VISION, cmm_config=cmm)
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
        chosen = torch.randint(len(clips), (BATCH,), generator=generator)
        questions = torch.tensor(QUESTIONS)[torch.randint(2, (BATCH,), generator=generator)]
        rows = rows_of(clips, chosen, questions, torch.rand(BATCH, generator=generator) < 0.5, told)
        rows["grids"] = rows["grids"] + GRID_NOISE * scale * torch.randn(rows["grids"].shape, generator=generator)
        optimizer.zero_grad()
        model(**rows, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def examine(model: FireboltForConditionalGeneration, clips: Clips, told: str) -> float:
    """Share of right answers among all questions about clips that run forwards and backwards."""
    right = 0
    rows = every_row(clips)
    for part in zip(*(values.split(256) for values in rows)):
        inputs = rows_of(clips, *part, told)
        answers = inputs.pop("labels")[:, -1]
        logits = model(**inputs, use_cache=False).logits[:, -2, QUARTER:]
        right += int((logits.argmax(-1) + QUARTER == answers).sum())
    return right / len(rows[0])
