"""Linear recurrences h -> decay h + value along the first axis of a tile, in Triton, and where a sequence begins.

A tile has its steps along the first axis and modes or channels along the others. Where a thread has all steps of what
it has of the others, a scan is arithmetic alone, one step after the other.
"""

import triton
import triton.language as tl


@triton.jit
def find_text(cu_seqlens_ptr, row, L, KEPT: tl.constexpr):
    """Find sequence `row` (int64): its row of u, its begin and end, and the number of its first kept state."""
    if cu_seqlens_ptr is None:
        first = row * 0
        end = first + L
        number = row * tl.cdiv(L, KEPT)
    else:
        first = tl.load(cu_seqlens_ptr + row).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + row + 1).to(tl.int64)
        number = first // KEPT + row
        row = row * 0
    return row, first, end, number


@triton.jit
def _compose(decay, value, decay_before, value_before, next_decay, next_value, next_decay_before, next_value_before):
    """Compose h -> decay h + value and h -> next_decay h + next_value; also without the last step of the second."""
    return (
        decay * next_decay,
        next_decay * value + next_value,
        decay * next_decay_before,
        next_decay_before * value + next_value_before,
    )


@triton.jit
def is_step(x, number: tl.constexpr):
    """Tell which numbers of a tile x are of the step `number`, broadcast against x."""
    found = tl.arange(0, x.shape[0]) == number
    for _ in tl.static_range(len(x.shape) - 1):
        found = tl.expand_dims(found, -1)
    return found


@triton.jit
def scan(decay, value, h):
    """The states after and before each step h -> decay h + value, from a state h, which has all axes but the first.

    No step at all is h -> 1 h - 0, which leaves every number as it is, so that nothing is computed for it.
    """
    is_first = is_step(value, 0)
    h = tl.expand_dims(h, 0)
    value = tl.where(is_first, decay * h + value, value)
    before = tl.where(is_first, h, tl.full(value.shape, -0.0, tl.float32))
    if value.shape[0] > 1:
        same = tl.full(value.shape, 1.0, tl.float32)
        _, value, _, before = tl.associative_scan((decay, value, same, before), 0, _compose)
    return value, before


@triton.jit
def scan_back(decay, value, last):
    """Results of `scan` for steps in reverse order, which reversed tiles give: where the steps of a mode are in one
    thread that only renames registers."""
    if value.shape[0] > 1:
        decay, value = tl.flip(decay, 0), tl.flip(value, 0)
    after, before = scan(decay, value, last)
    if value.shape[0] > 1:
        after, before = tl.flip(after, 0), tl.flip(before, 0)
    return after, before


@triton.jit
def step_of(x, number: tl.constexpr):
    """x[number] of a tile x."""
    return tl.sum(tl.where(is_step(x, number), x, -0.0), 0)
