"""Examples of property tests draw the same numbers each time that they are run."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st


def drawn():
    return torch.rand(()).item(), np.random.rand()


@pytest.mark.parametrize("generator", range(2))
def test_a_failure_by_a_generator_shrinks_and_replays_to_the_same_number(generator):
    """It would be called flaky, were another number drawn when it is run again."""
    seen = []

    @settings(phases=[Phase.generate, Phase.shrink])
    @given(x=st.integers(0, 100), from_strategy=st.builds(drawn))
    def fails(x, from_strategy):
        if x >= 10:
            seen.append((from_strategy[generator], drawn()[generator]))
            raise AssertionError(f"{x}: {seen[-1]}")

    with pytest.raises(AssertionError, match="10: "):
        fails()
    assert len(set(seen)) == 1


VALUES = set()


@given(x=st.booleans())
def test_examples_have_seeds_of_their_own(x):
    VALUES.add(torch.rand(()).item())


def test_and_so_they_differ():
    test_examples_have_seeds_of_their_own()
    assert len(VALUES) > 5
