"""The counter-based generator: bits that a kernel can repeat."""

import pytest
import torch

from firebolt_vl.kernels.common.random import dropout, mix, new_seed, random_bits

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 5, -(2**63)])
def test_bits_are_splitmix64s_in_exact_integers(seed):
    indices = [0, 1, 2, 1000, 2**31, 2**40 + 3]
    found = random_bits(torch.tensor(seed), torch.tensor(indices)).tolist()
    key = splitmix(seed & MASK)
    assert found == [splitmix((key + (i + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40 for i in indices]


def test_the_finaliser_has_its_published_values():
    """First outputs of SplitMix64 seeded with 1234567 (the reference program of Vigna)."""
    golden_ratio = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden_ratio) & MASK for i in (1, 2, 3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [b & MASK for b in mix(signed).tolist()] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_bits_are_uniform_and_streams_of_neighbouring_seeds_are_unrelated():
    index = torch.arange(100_000)
    streams = [random_bits(torch.tensor(seed), index).double() / 2**24 for seed in range(4)]
    for i, stream in enumerate(streams):
        assert abs(stream.mean() - 0.5) < 0.005
        assert abs(stream.var() - 1 / 12) < 0.002
        counts = torch.histc(stream, bins=64, min=0, max=1)
        assert ((counts - 100_000 / 64).square() / (100_000 / 64)).sum() < 120  # chi-square, 63 degrees of freedom
        assert abs(torch.corrcoef(torch.stack([stream[:-1], stream[1:]]))[0, 1]) < 0.015
        for other in streams[:i]:
            assert abs(torch.corrcoef(torch.stack([stream, other]))[0, 1]) < 0.015


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_and_scales_what_it_keeps(p):
    x = torch.ones(200, 500)
    dropped = dropout(x, p, torch.tensor(11))
    assert abs((dropped == 0).double().mean() - p) < 0.005
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p)))


def test_dropout_depends_on_the_element_alone():
    """The mask of an element is that of its index in C order, whatever the memory layout."""
    x = torch.ones(30, 40)
    seed = torch.tensor([5])
    assert torch.equal(dropout(x.t().contiguous().t(), 0.5, seed), dropout(x, 0.5, seed))
    assert torch.equal(dropout(x.flatten(), 0.5, seed).view(30, 40), dropout(x, 0.5, seed))


def test_a_new_seed_follows_torchs_generator():
    torch.manual_seed(3)
    first, second = new_seed(torch.device("cpu")), new_seed(torch.device("cpu"))
    torch.manual_seed(3)
    assert new_seed(torch.device("cpu")) == first != second
    assert first.dtype == torch.int64
