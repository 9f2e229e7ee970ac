"""Benchmark of watching video: `python -m firebolt_vl.bench.video [FRAMES]...` prints a table (full size).

Each mode of the foveated model, which gives its decoder one visual token for a frame, and beside it SmolVLM2-256M,
which gives 64, in turns in one process.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..files.tables import markdown_table
from ..model import FoveatedVLM, FoveatedVLMConfig
from ..model.foveated.configuration_foveated import MODES
from .kernels import device_name
from .timing import Run, clock_name, quantile, time_in_turns

FRAMES = (2, 4, 8)
QUESTION, ANSWER = 32, 17
PEER = "SmolVLM2-256M"
PEER_TOKENS = 64


@dataclass
class Row:
    """Medians: until the first token of the answer, and for each token after it."""

    name: str
    frames: int
    visual_tokens: int
    first_token_s: float
    decode_tok_s: float

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.first_token_s


def measure(
    frames: Sequence[int],
    foveated: FoveatedVLM,
    peer: nn.Module | None,
    frame_size: int,
    seconds: float = 1.0,
    answer: int = ANSWER,
) -> list[Row]:
    """Every mode of `foveated`, and `peer`, at each number of frames."""
    vocabulary = foveated.config.text_config.vocab_size
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(3, vocabulary, (1, QUESTION), generator=generator)
    ways: dict[str, tuple[Callable[[int], dict], nn.Module, int]] = {
        mode: (
            lambda count, mode=mode: {**_frames(count, frame_size), "input_ids": question, "mode": mode},
            foveated,
            1,
        )
        for mode in MODES
    }
    if peer is not None:
        ways[PEER] = (lambda count: _peer_inputs(peer, count, question), peer, PEER_TOKENS)
    runs, told = {}, {}
    for count in frames:
        for name, (inputs, model, tokens) in ways.items():
            told[name, count] = tokens * count
            for length in (1, answer):
                runs[name, count, length] = Run(
                    lambda given, m=model, n=length: _answer(m, given, n), lambda i=inputs, c=count: i(c)
                )
    times = time_in_turns(runs, "cpu", seconds)
    rows = []
    for (name, count), tokens in told.items():
        first, whole = (quantile(times[name, count, length], 0.5) / 1e3 for length in (1, answer))
        rows.append(Row(name, count, tokens, first, (answer - 1) / max(whole - first, 1e-9)))
    return rows


class Passes(NamedTuple):
    """Milliseconds of one frame's way through the vision tower, and of one query's, in a block of so many frames."""

    frames: int
    patches_ms: float
    query_ms: float


def measure_passes(foveated: FoveatedVLM, frame_size: int, counts: Sequence[int], seconds: float = 1.0) -> list[Passes]:
    found = []
    for count in counts:
        frames = torch.randn(count, 3, frame_size, frame_size)
        queries = foveated.q_static.expand(count, -1)
        with torch.no_grad():
            memory = foveated.encoder.remember(frames)
            runs = {
                "patches": Run(lambda _, frames=frames: foveated.encoder.remember(frames)),
                "query": Run(lambda _, memory=memory, queries=queries: foveated.encoder.look(memory, queries)),
            }
            times = time_in_turns(runs, "cpu", seconds)
        found.append(Passes(count, *(quantile(times[name], 0.5) / count for name in runs)))
    return found


def _answer(model: nn.Module, inputs: dict, length: int) -> Tensor:
    return model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False)


def _frames(count: int, size: int) -> dict[str, Tensor]:
    return {"frames": torch.randn(1, count, 3, size, size)}


def make_peer() -> nn.Module:
    """SmolVLM2-256M, a 512-pixel view for each frame."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "pad_token_id": 2,
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        scale_factor=4,
        image_token_id=49190,
        pad_token_id=2,
    )
    return SmolVLMForConditionalGeneration(config).eval()


def _peer_inputs(peer: nn.Module, count: int, question: Tensor) -> dict[str, Tensor]:
    size = peer.config.vision_config.image_size
    places = torch.full((1, PEER_TOKENS * count), peer.config.image_token_id)
    ids = torch.cat([places, question], dim=1)
    return {
        "pixel_values": torch.randn(1, count, 3, size, size),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def markdown(rows: Sequence[Row], passes: Sequence[Passes] = ()) -> str:
    table = markdown_table(
        ["", "frames", "visual tokens", "first token", "frames/s", "tokens/s after it"],
        [
            [
                row.name,
                row.frames,
                row.visual_tokens,
                f"{row.first_token_s:.2f} s",
                f"{row.frames_per_s:.2f}",
                f"{row.decode_tok_s:.1f}",
            ]
            for row in rows
        ],
    )
    how = (
        f"Medians, float32, batch 1, a question of {QUESTION} tokens; {device_name('cpu')}, {clock_name('cpu')}, "
        f"torch {torch.__version__}."
    )
    for one in passes:
        how += (
            f" In a block of {one.frames} a frame's patches take {one.patches_ms:.1f} ms, a query's way past them "
            f"{one.query_ms:.2f} ms ({100 * one.query_ms / (one.patches_ms + one.query_ms):.1f} %)."
        )
    return f"{table}\n\n{how}"


def main(frames: Sequence[int]) -> None:
    torch.manual_seed(0)
    model = FoveatedVLM(FoveatedVLMConfig()).eval()
    rows = measure(frames, model, make_peer(), 224)
    print(markdown(rows, measure_passes(model, 224, (1, max(frames)))))


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or FRAMES)
