"""Arithmetic: integers wrap around, floating-point results are rounded once.

Approximate instructions err here as much as their documentation lets them, by a fraction that depends on the bits of
the result alone: the hardware's own errors are not known, and a kernel has to be right with any such.
"""

import numpy as np

from ..kinds import Array
from .table import computes


@computes("add.{s16,u16,s32,u32,s64,u64,f32,f64,f16,bf16,f16x2,bf16x2,f32x2}", "add.rn.{f32,f64,f32x2}")
@computes("add.rn.f32.{f16,bf16}", operands="* f32", result="f32")
def add(a: Array, b: Array) -> Array:
    return a + b


@computes("sub.{s16,u16,s32,u32,s64,u64,f32,f64,f16,bf16,f16x2,bf16x2,f32x2}", "sub.rn.{f32,f64,f32x2}")
@computes("sub.rn.f32.{f16,bf16}", operands="* f32", result="f32")
def subtract(a: Array, b: Array) -> Array:
    return a - b


@computes("mul.{f32,f64,f16,bf16,f16x2,bf16x2,f32x2}", "mul.rn.{f32,f64,f32x2}", "mul.lo.{s16,u16,s32,u32,s64,u64}")
def multiply(a: Array, b: Array) -> Array:
    return a * b


@computes("mul.wide.{s16,u16,s32,u32}", result="2*")
def multiply_wide(a: Array, b: Array) -> Array:
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(wide) * b.astype(wide)


@computes("mul.hi.{s32,u32}")
def multiply_high(a: Array, b: Array) -> Array:
    return (multiply_wide(a, b) >> np.array(32, f"{a.dtype.kind}8")).astype(a.dtype)


@computes("mad.lo.{s16,u16,s32,u32,s64,u64}")
def multiply_add(a: Array, b: Array, c: Array) -> Array:
    return a * b + c


@computes("mad.wide.{s16,u16,s32,u32}", operands="* * 2*", result="2*")
def multiply_add_wide(a: Array, b: Array, c: Array) -> Array:
    return multiply_wide(a, b) + c


@computes("fma.rn.{f32,f32x2,f16,bf16,f16x2,bf16x2}")
@computes("fma.rn.f32.{f16,bf16}", operands="* * f32", result="f32")
def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """Products of float32 are exact in float64. What their sum with c loses there decides ties of the next rounding."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    bits = total.view(np.int64)
    unsure = (bits & 0x0FFF) == 0  # of a tie, in any of the narrower types, the last bits are zeros
    if unsure.any():
        there = total - product
        lost = (product - (total - there)) + (c - there)
        bits += np.where(unsure & np.isfinite(lost) & (lost != 0), np.where((lost > 0) == (total > 0), 1, -1), 0)
    return total


@computes("fma.rn.f64")
def fused_multiply_add_double(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.longdouble) * b + c).astype(np.float64)


@computes("div.{s32,u32,s64,u64}")
def divide_integers(a: Array, b: Array) -> Array:
    """Towards zero; by zero anything, here the dividend."""
    b = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


@computes("rem.{s32,u32,s64,u64}")
def remainder(a: Array, b: Array) -> Array:
    return a - divide_integers(a, b) * b


@computes("div.rn.{f32,f64}")
def divide(a: Array, b: Array) -> Array:
    return a / b


@computes("neg.{s16,s32,s64,f32,f64,f16,bf16,f16x2,bf16x2}")
def negate(a: Array) -> Array:
    return -a


@computes("abs.{s32,s64,f32,f64,f16,bf16,f16x2,bf16x2}")
def absolute(a: Array) -> Array:
    return np.abs(a)


@computes("copysign.{f32,f64}")
def copy_sign(sign: Array, a: Array) -> Array:
    return np.copysign(a, sign)


@computes("max.{s16,u16,s32,u32,s64,u64,f32,f64,f16,bf16,f16x2,bf16x2}")
def maximum(*numbers: Array) -> Array:
    """The largest, of floating-point numbers without NaNs."""
    return _folded(np.fmax, numbers)


@computes("min.{s16,u16,s32,u32,s64,u64,f32,f64,f16,bf16,f16x2,bf16x2}")
def minimum(*numbers: Array) -> Array:
    return _folded(np.fmin, numbers)


@computes("max.NaN.{f32,f16,bf16,f16x2,bf16x2}")
def maximum_or_nan(*numbers: Array) -> Array:
    return _folded(np.maximum, numbers)


@computes("min.NaN.{f32,f16,bf16,f16x2,bf16x2}")
def minimum_or_nan(*numbers: Array) -> Array:
    return _folded(np.minimum, numbers)


def _folded(choose: np.ufunc, numbers: tuple[Array, ...]) -> Array:
    found = numbers[0]
    for number in numbers[1:]:
        found = choose(found, number)
    return found


@computes("sqrt.rn.{f32,f64}")
def square_root(a: Array) -> Array:
    return np.sqrt(a)


@computes("rcp.rn.{f32,f64}")
def reciprocal(a: Array) -> Array:
    return 1 / a


@computes("div.full{.ftz,}.f32", "div.approx{.ftz,}.f32")
def divide_approximately(a: Array, b: Array) -> Array:
    return _approximate(a.astype(np.float64) / b, 2.0**-22)


@computes("rcp.approx{.ftz,}.f32")
def reciprocal_approximately(a: Array) -> Array:
    return _approximate(1 / a.astype(np.float64), 2.0**-23)


@computes("sqrt.approx{.ftz,}.f32")
def square_root_approximately(a: Array) -> Array:
    return _approximate(np.sqrt(a.astype(np.float64)), 2.0**-23)


@computes("rsqrt.approx{.ftz,}.f32")
def reciprocal_square_root_approximately(a: Array) -> Array:
    return _approximate(1 / np.sqrt(a.astype(np.float64)), 2.0**-22.9)


@computes("ex2.approx{.ftz,}.f32")
def power_of_two_approximately(a: Array) -> Array:
    return _approximate(np.exp2(a.astype(np.float64)), 2.0**-22)


@computes("lg2.approx{.ftz,}.f32")
def logarithm_approximately(a: Array) -> Array:
    exact = np.log2(a.astype(np.float64))
    return _approximate(exact, 2.0**-22, 2.0**-22)


@computes("tanh.approx.f32")
def hyperbolic_tangent_approximately(a: Array) -> Array:
    return _approximate(np.tanh(a.astype(np.float64)), 2.0**-11)


@computes("sin.approx{.ftz,}.f32")
def sine_approximately(a: Array) -> Array:
    return _approximate(np.sin(a.astype(np.float64)), 0.0, 2.0**-20.5)


@computes("cos.approx{.ftz,}.f32")
def cosine_approximately(a: Array) -> Array:
    return _approximate(np.cos(a.astype(np.float64)), 0.0, 2.0**-20.5)


def _approximate(exact: Array, relative: float, absolute: float = 0.0) -> Array:
    """float32 numbers that are off by a part of the larger of two bounds; what is a power of two stays as it is."""
    bits = exact.view(np.uint64)
    fraction = ((bits >> np.uint64(26)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.float64)
    error = np.maximum(np.abs(exact) * relative, absolute) * (fraction / 2.0**23 - 1)
    simple = (bits & np.uint64((1 << 52) - 1)) == 0
    return np.where(simple, exact, exact + error).astype(np.float32)
