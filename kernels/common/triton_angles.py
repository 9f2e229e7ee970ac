"""Sines and cosines of whole fractions of a turn, in Triton."""

import math

import triton
import triton.language as tl

_EIGHTH, _QUARTER_BITS = tl.constexpr(2**29), tl.constexpr(30)
_RADIANS = tl.constexpr(2 * math.pi / 2**32)


@triton.jit
def sine_and_cosine(steps, rest):
    """Compute both of the angle steps + rest, in units of 2^-32 turns; steps uint32, rest small.

    The nearest quarter turn is taken off as an integer. What is left, at most an eighth, goes into polynomials
    (Cephes' sinf and cosf, one rounding off): no slow path for large angles, which tl.sin and tl.cos have.
    """
    quarter = (steps + _EIGHTH) >> _QUARTER_BITS
    t = ((steps - (quarter << _QUARTER_BITS)).to(tl.int32, bitcast=True).to(tl.float32) + rest) * _RADIANS
    s = t * t
    sine = t + t * s * (-1.6666654611e-1 + s * (8.3321608736e-3 - s * 1.9515295891e-4))
    cosine = 1 - 0.5 * s + s * s * (4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5))
    odd = (quarter & 1) != 0
    first, second = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    return tl.where(quarter >= 2, -first, first), tl.where(((quarter + 1) & 2) != 0, -second, second)
