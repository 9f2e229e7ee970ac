"""Memory goes with what is kept of the frames, not with what the vision tower makes of them on the way."""

import torch

from firebolt_vl.bench.timing import Run, peak_bytes
from firebolt_vl.model import FoveatedVLM, FoveatedVLMConfig

FRAMES, WIDTH, LAYERS, SIDE, MLP_RATIO = 64, 96, 2, 224, 16
ROWS = (SIDE // 14) ** 2 + 1
# Bytes: a copy of the frames; keys and values of all of them, and as much again while blocks are joined; the rows of
# one frame inside the widest MLP, before and after its activation.
COPY = FRAMES * 3 * SIDE**2 * 4
KEPT = 2 * LAYERS * FRAMES * ROWS * WIDTH * 4
OF_A_FRAME = 2 * ROWS * MLP_RATIO * WIDTH * 4


def peak(frame_block: int) -> int:
    torch.manual_seed(0)
    config = FoveatedVLMConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "mlp_ratio": MLP_RATIO,
            "image_size": SIDE,
        },
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        frame_block=frame_block,
    )
    model = FoveatedVLM(config).eval()
    frames = torch.randn(1, FRAMES, 3, SIDE, SIDE)
    with torch.no_grad():
        return peak_bytes(Run(lambda _: model(torch.ones(1, 4, dtype=torch.long), frames=frames)), "cpu")


def test_64_frames_take_no_more_than_they_leave_and_one_block():
    """Counted in what is allocated, not in pages: what an allocator keeps back differs from machine to machine."""
    block_by_block, at_once = peak(2), peak(FRAMES)
    assert block_by_block < COPY + 2 * KEPT + 2 * 2 * OF_A_FRAME
    assert at_once > block_by_block + FRAMES * OF_A_FRAME / 2
