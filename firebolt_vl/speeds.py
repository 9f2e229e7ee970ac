"""Choice of the dtype that this CPU is fast in, float32 or half precision; measured once, in part of a second."""

import time
from functools import cache
from typing import NamedTuple

WIDTHS = 1024, 4608
"""A decoder's widths: those of LFM2-350M's feed-forward blocks."""
MATRICES = 8
"""Together larger than the caches of most CPUs in any dtype, as the weights of a model are."""
PROMPT, ANSWER = 32, 64
"""What is weighed: an answer of so many tokens to a prompt of so many."""
LARGE = 50_000_000
"""Parameters from which on a measurement pays: a smaller model answers before it is done."""
WORTH = 1.1
"""How many times faster float32 has to be for a checkpoint in half precision to take twice the memory."""
HALVES = ("bfloat16", "float16")
TOLD = ("float32", "bfloat16")


class Speed(NamedTuple):
    """Milliseconds of one token, and of a prompt of `PROMPT` tokens, through `MATRICES` linear layers of `WIDTHS`."""

    token_ms: float
    prompt_ms: float

    @property
    def answer_ms(self) -> float:
        return self.prompt_ms + ANSWER * self.token_ms


@cache
def speed(dtype: str) -> Speed:
    """Measure how fast the CPU is in a dtype, with the threads that PyTorch uses."""
    import torch

    from .kernels.linear import can_prepack, linear, linear_prepacked, prepacked

    weights = torch.ones(MATRICES, *WIDTHS[::-1], dtype=getattr(torch, dtype)).unbind()
    product = linear
    if dtype == "bfloat16" and can_prepack():  # as a loaded checkpoint is
        weights, product = [prepacked(weight) for weight in weights], linear_prepacked

    def shortest(rows: int, turns: int) -> float:
        x = torch.ones(rows, WIDTHS[0], dtype=getattr(torch, dtype))
        times = []
        for _ in range(turns):
            start = time.perf_counter()
            for weight in weights:
                product(x, weight)
            times.append(1e3 * (time.perf_counter() - start))
        return min(times)

    with torch.inference_mode():
        return Speed(shortest(1, 5), shortest(PROMPT, 2))


def runs_in(dtype: str) -> str:
    """The dtype that a checkpoint in `dtype` runs in on the CPU: half precision that is clearly slower here than
    float32 is widened, which changes no weight; float32 is never narrowed."""
    if dtype not in HALVES:
        return dtype
    return dtype if speed(dtype).answer_ms <= WORTH * speed("float32").answer_ms else "float32"


def told() -> dict:
    """Describe for `firebolt info` the speeds, and what a checkpoint in each dtype runs in."""
    return {
        dtype: {**{name: round(ms, 1) for name, ms in speed(dtype)._asdict().items()}, "runs_in": runs_in(dtype)}
        for dtype in TOLD
    }
