"""Means over seeds with 95 % intervals, of runs and of paired differences."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """Mean of n numbers, and the half width of its interval; None where there is one number."""

    mean: float
    half: float | None
    count: int

    @property
    def clear(self) -> bool:
        """Tell whether the interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of the mean, mean +- t s / sqrt(n), by Student's t with n - 1 degrees of freedom.

    s is the sample's deviation, n - 1 in the divisor. Where all of several values are equal the interval is of width 0.
    """
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n), n)


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    """Estimate of the difference to the base, seed by seed, over the seeds that both have; None where there is none."""
    seeds = sorted(values.keys() & base.keys())
    return estimate([values[seed] - base[seed] for seed in seeds]) if seeds else None
