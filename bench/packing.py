"""Time training steps on rows padded to one length and on the same rows packed into one: `firebolt bench packing`.

A step is forward and backward of `AnswerLoss` on one micro-batch, all parts but the vision tower learning: grids are
given, since the tower does the same for both. Lengths are drawn from a log-normal distribution, as those of captions
and of chains of thought are spread; rows come in batches of like length, as `BatchOrder` makes them, or as they are.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model import FireboltConfig, FireboltForConditionalGeneration
from ..train.conversations import AnswerLoss
from ..train.data.batches import BatchOrder
from ..train.data.chat import IGNORED
from .timing import Run, clock_name, time_in_turns

GRIDS = 5
LONGEST = 2048
TEXT = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "conv_L_cache": 3}
VISION = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}
SIZES = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": 8,
        "layer_types": ["full_attention" if i in (2, 5, 7) else "conv" for i in range(8)],
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "lfm2-350m": {
        "vocab_size": 65536,
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_hidden_layers": 16,
        "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
}
"""Decoders by name: the published one, and one with its kinds of layers in like shares."""


class Measured(NamedTuple):
    """Tokens of some micro-batches, the share of padding beside them, and tokens a second, padded and packed."""

    tokens: int
    padding: float
    padded: float
    packed: float


def make_loss(size: str, device: str) -> AnswerLoss:
    """A new model with random weights, in training, dropout off so that both ways compute the same."""
    config = FireboltConfig(
        text_config={**TEXT, **SIZES[size]},
        vision_config={**VISION, "image_size": 256, "patch_size": 16},
        cmm_config={"dropout": 0.0},
    )
    torch.manual_seed(0)
    model = FireboltForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    return AnswerLoss(model, {}, bf16=False).to(device).train()


def draw_lengths(rows: int, median: int, spread: float) -> np.ndarray:
    """Lengths of rows, log-normal: `spread` is the deviation of their logarithm."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), spread, rows)
    return np.clip(drawn.round(), 2, LONGEST).astype(int)


def micro_batches(lengths: np.ndarray, vocabulary: int, device: str) -> dict[str, dict[str, Tensor]]:
    """The inputs of one micro-batch, the second half of each row its answer: "padded" and "packed"."""
    rng = torch.Generator().manual_seed(0)
    ends = torch.from_numpy(lengths)
    columns = torch.arange(int(ends.max()))
    mask = columns < ends[:, None]
    ids = torch.randint(3, vocabulary, mask.shape, generator=rng).masked_fill(~mask, 0)
    labels = ids.masked_fill(~mask | (columns < (ends[:, None] + 1) // 2), IGNORED)
    shown = {"grids": torch.randn(len(ends), GRIDS, VISION["hidden_size"], generator=rng)}
    padded = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels, **shown}
    packed = {
        "input_ids": ids[mask][None],
        "labels": labels[mask][None],
        "position_ids": columns.expand(mask.shape)[mask][None],
        "cu_seq_lens_q": torch.nn.functional.pad(ends.cumsum(0), (1, 0)).to(torch.int32),
        **shown,
    }
    both = {"padded": padded, "packed": packed}
    return {way: {name: x.to(device) for name, x in inputs.items()} for way, inputs in both.items()}


def time_steps(loss: AnswerLoss, batches: list[dict[str, dict[str, Tensor]]], device: str, seconds: float) -> dict:
    """Seconds for all batches in turns, padded and packed: the sum of each batch's shortest time."""
    total = {"padded": 0.0, "packed": 0.0}

    def step(inputs: dict[str, Tensor]) -> None:
        loss.zero_grad()
        loss(**inputs).backward()

    for batch in batches:
        runs = {way: Run(lambda _, way=way, batch=batch: step(batch[way])) for way in total}
        for way, times in time_in_turns(runs, device, seconds).items():
            total[way] += min(times) / 1e3
    return total


def measured_batches(batch: int, median: int, spread: float, count: int) -> dict[str, list[np.ndarray]]:
    """Lengths of the rows of `count` micro-batches, spread evenly over those of 64 by their number of tokens."""
    lengths = draw_lengths(64 * batch, median, spread)
    order = BatchOrder(lengths, batch, seed=0)
    ways = {
        "of like length": [lengths[order.batch(step)] for step in range(64)],
        "as they come": np.split(lengths, 64),
    }
    chosen = ((np.arange(count) + 0.5) * 64 / count).astype(int)
    return {way: [sorted(batches, key=np.sum)[i] for i in chosen] for way, batches in ways.items()}


def measure(loss: AnswerLoss, batches: list[np.ndarray], device: str, seconds: float) -> Measured:
    """Time training steps on micro-batches of rows of these lengths, both ways."""
    vocabulary = loss.model.config.text_config.vocab_size
    took = time_steps(loss, [micro_batches(one, vocabulary, device) for one in batches], device, seconds)
    tokens = sum(int(one.sum()) for one in batches)
    columns = sum(int(one.max()) * len(one) for one in batches)
    return Measured(tokens, 1 - tokens / columns, tokens / took["padded"], tokens / took["packed"])


def print_packing(size: str, device: str, *, seconds: float, **sizes: Any) -> None:
    """Print, for batches of like length and as they come: padding, tokens a second both ways, and their ratio.

    `sizes` are those of `measured_batches`.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    loss = make_loss(size, device)
    print(f"{size}, {device}, {clock_name(device)}; {sizes}")
    print(f"{'rows':<16} {'tokens':>7} {'padding':>8} {'padded/s':>9} {'packed/s':>9} {'ratio':>6}")
    for way, batches in measured_batches(**sizes).items():
        found = measure(loss, batches, device, seconds)
        speeds = f"{found.padded:>9,.0f} {found.packed:>9,.0f} {found.packed / found.padded:>6.2f}"
        print(f"{way:<16} {found.tokens:>7} {found.padding:>8.1%} {speeds}", flush=True)
