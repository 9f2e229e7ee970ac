"""PTX types: how many bits a register has of each, and what numbers they are.

Values of bf16 and f16 are taken as float32, which holds them exactly, and rounded once when they are written. A packed
pair (bf16x2, f16x2, f32x2) is an array [threads, 2], the lower half first.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray


class Kind(NamedTuple):
    storage: np.dtype
    """An unsigned integer as wide as the type, or bool."""
    values: np.dtype
    """What is computed in."""
    decode: Callable[[Array], Array]
    encode: Callable[[Array], Array]
    plain: bool = False
    """Whether values are the same bits, so that decoding is only another view of them."""


def _plain(values: type) -> Kind:
    values = np.dtype(values)
    storage = values if values.kind == "b" else np.dtype(f"u{values.itemsize}")

    def as_values(numbers: Array) -> Array:
        return numbers.astype(values, copy=False)

    return Kind(storage, values, lambda bits: bits.view(values), lambda numbers: as_values(numbers).view(storage), True)


def widen_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_to_bfloat16(numbers: Array) -> Array:
    """Round to the nearest, ties to even; NaN is the canonical one."""
    bits = to_odd(numbers).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), rounded.astype(np.uint16))


def to_odd(numbers: Array) -> Array:
    """float64 as float32 in round-to-odd, so that a second rounding, to fewer bits, gives what one alone would have."""
    if numbers.dtype == np.float32:
        return np.ascontiguousarray(numbers)
    near = numbers.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= (np.abs(near) > np.abs(numbers)) & np.isfinite(numbers)
    bits |= (near != numbers) & np.isfinite(numbers)
    return near


def widen_float16(bits: Array) -> Array:
    return bits.view(np.float16).astype(np.float32)


def round_to_float16(numbers: Array) -> Array:
    return numbers.astype(np.float16).view(np.uint16)


def _halves(decode: Callable[[Array], Array], encode: Callable[[Array], Array]) -> tuple[Kind, Kind]:
    """The kinds of one 16-bit number and of a pair."""
    single, pair = np.dtype(np.uint16), np.dtype(np.uint32)

    def decode_pair(bits: Array) -> Array:
        return decode(np.ascontiguousarray(bits).view(single).reshape(*bits.shape, 2))

    def encode_pair(numbers: Array) -> Array:
        return np.ascontiguousarray(encode(numbers)).view(pair)[..., 0]

    values = np.dtype(np.float32)
    return Kind(single, values, decode, encode), Kind(pair, values, decode_pair, encode_pair)


_BFLOAT16, _BFLOAT16_PAIR = _halves(widen_bfloat16, round_to_bfloat16)
_FLOAT16, _FLOAT16_PAIR = _halves(widen_float16, round_to_float16)
_FLOAT32_PAIR = Kind(
    np.dtype(np.uint64),
    np.dtype(np.float32),
    lambda bits: np.ascontiguousarray(bits).view(np.float32).reshape(*bits.shape, 2),
    lambda numbers: np.ascontiguousarray(numbers, np.float32).view(np.uint64)[..., 0],
)
KINDS = {
    "pred": _plain(np.bool_),
    **{f"{letter}{bits}": _plain(f"u{bits // 8}") for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": _plain(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f32": _plain(np.float32),
    "f64": _plain(np.float64),
    "bf16": _BFLOAT16,
    "bf16x2": _BFLOAT16_PAIR,
    "f16": _FLOAT16,
    "f16x2": _FLOAT16_PAIR,
    "f32x2": _FLOAT32_PAIR,
}
