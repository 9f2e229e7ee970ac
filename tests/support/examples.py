"""What an example of a property test draws from torch's own generator belongs to the example.

Its seed is one of the example's choices: it shrinks, replays, and stands in what `make fuzz` keeps.
"""

import functools

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.control import current_build_context

SEEDS = st.integers(0, 2**32 - 1)


class TorchGenerator:
    """torch's own generator as hypothesis takes it, who sets Python's and NumPy's before every example and restores
    them after it: for what a strategy draws from it."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_GENERATOR = TorchGenerator()  # hypothesis alone would let it go


def register_torch() -> None:
    hypothesis.register_random(TORCH_GENERATOR)


def seed_each_example(items) -> None:
    """Let the property tests among pytest's items draw a seed for torch before each example."""
    for function in {item.function for item in items if hasattr(getattr(item, "function", None), "hypothesis")}:
        function.hypothesis.inner_test = _seeded(function.hypothesis.inner_test)


def _seeded(run):
    @functools.wraps(run)
    def run_seeded(*args, **kwargs):
        seed = current_build_context().data.draw(SEEDS)
        hypothesis.note(f"torch.manual_seed({seed})")
        torch.manual_seed(seed)
        return run(*args, **kwargs)

    return run_seeded
