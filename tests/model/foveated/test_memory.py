"""Memory goes with what is kept of the frames, not with what the vision tower makes of them on the way."""

import subprocess
import sys

import pytest

MEASURE = """
import sys, torch
from firebolt_vl.model import FoveatedVLM, FoveatedVLMConfig

torch.set_num_threads(1)
def peak():
    # Of this program alone: what getrusage tells begins with the peak of the process that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
config = FoveatedVLMConfig(
    vision_config=dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=16, image_size=224),
    text_config=dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2),
    frame_block=int(sys.argv[1]),
)
model = FoveatedVLM(config).eval()
frames = torch.randn(1, 64, 3, 224, 224)
with torch.no_grad():
    model(torch.ones(1, 4, dtype=torch.long), frames=frames[:, :1])
    before = peak()
    model(torch.ones(1, 4, dtype=torch.long), frames=frames)
print(peak() - before)
"""
# MiB: two copies of the frames; keys and values of 64 frames, 2 layers, 257 rows, 96 numbers of 4 bytes, and as much
# again while blocks are joined.
FRAMES, KEPT = 37, 2 * 2 * 2 * 64 * 257 * 96 * 4 / 2**20


def growth(frame_block: int) -> float:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(frame_block)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB is what Linux tells")
def test_64_frames_take_no_more_than_they_leave_and_one_block():
    """An MLP 16 times as wide makes 97 MiB for each of its two layers if all frames go through it at once."""
    block_by_block, at_once = growth(2), growth(64)
    assert block_by_block < FRAMES + KEPT + 50
    assert at_once > block_by_block + 90
