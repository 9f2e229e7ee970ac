"""Diagonal recurrence with complex modes in Triton: the gradients.

The states before each chunk and the gradients of those after it are kept, of two passes of `triton_forward.py`. Their
products with u and dy, over all chunks, are the gradients of a channel's tables; those of its modes follow from these.
Shapes and method: `triton_chunks.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import at, strided
from ..common.triton_tiles import HALF, slots_of
from ..launch import launch
from .triton_chunks import (
    CHUNK,
    Plan,
    add_product,
    find_text,
    float32_terms,
    input_terms,
    load_modes,
    load_power,
    modes_of,
    parts,
    power,
    states_of_text,
    store_modes,
    times,
    transposed,
)
from .triton_forward import add_groups, outputs_of_groups, scan
from .triton_layout import by_time

# Chunks that a product adds up at a time: as many as leave no register to spill, where operands have three terms.
COLUMNS, COLUMNS_OF_FLOAT32 = 32, 16


@triton.jit
def _load_tile(sequence, stride, t, inside, TERMS: tl.constexpr):
    """The terms of steps t [COLUMNS,CHUNK] of a sequence, transposed."""
    return transposed(input_terms(tl.load(sequence + t * stride, mask=inside, other=0.0), TERMS))


@triton.jit
def _products(a, b, mask):
    """a conj(b) [COLUMNS,N], for a and b [COLUMNS,2 N]; 0 where `mask` [COLUMNS] is False."""
    a_real, a_imag = parts(a)
    b_real, b_imag = parts(b)
    real, imag = times(a_real, a_imag, b_real, -b_imag)
    return tl.where(mask[:, None], real, 0.0), tl.where(mask[:, None], imag, 0.0)


@triton.jit(do_not_specialize=["rows", "rows_per_slot"])
def diagonal_scan_products_kernel(
    u,  # Strided [B,D,L]
    dy,  # Strided [B,D,L]
    texts,  # Texts
    powers_ptr,  # z^(l+1), as in Tables
    states_ptr,  # [V,chunks,2 BLOCK_N] float32, contiguous: before each chunk
    gradients_ptr,  # likewise of the states after each chunk
    into_ptr,  # [slots,V,CHUNK,2 BLOCK_N] float32, contiguous: the gradient of b z^(CHUNK-1-s)
    from_ptr,  # likewise the conjugate of that of 2 c z^(t+1)
    lags_ptr,  # [slots,V,CHUNK,CHUNK] float32, contiguous: sums of u_s dy_t
    z_ptr,  # [slots,V,2,BLOCK_N,2] float32, contiguous: the gradient of z^CHUNK, and that of z through short chunks
    rows,
    rows_per_slot,
    channels,  # V
    STARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    STARTS: there are states that sequences start from, in their first chunk.
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), (tl.program_id(0) // channels).to(tl.int64)
    d, here = v // GROUPS, tl.arange(0, BLOCK_N)
    step, width = tl.arange(0, CHUNK)[None, :], tl.arange(0, 2 * BLOCK_N)[None, :]
    of_into, of_from = tl.zeros([CHUNK, 2 * BLOCK_N], tl.float32), tl.zeros([CHUNK, 2 * BLOCK_N], tl.float32)
    lags = tl.zeros([CHUNK, CHUNK], tl.float32)
    full_real, full_imag = tl.zeros([COLUMNS, BLOCK_N], tl.float32), tl.zeros([COLUMNS, BLOCK_N], tl.float32)
    short_real, short_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    first_row = (tl.program_id(0) // channels) * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, rows)):
        row = 0 * v + number
        of_x, start, length = find_text(texts, row)
        u_sequence, dy_sequence = at(u, (of_x, d, start)), at(dy, (of_x, d, start))
        states = states_of_text(states_ptr, v, texts, rows, row, start, BLOCK_N)
        gradients = states_of_text(gradients_ptr, v, texts, rows, row, start, BLOCK_N)
        chunks = (length + CHUNK - 1) // CHUNK
        missing = chunks * CHUNK - length
        for first in range(0, chunks, COLUMNS):
            chunk = first + tl.arange(0, COLUMNS)
            there = (chunk < chunks)[:, None]
            h = tl.load(states + chunk[:, None] * (2 * BLOCK_N) + width, mask=there, other=0.0)
            g = tl.load(gradients + chunk[:, None] * (2 * BLOCK_N) + width, mask=there, other=0.0)
            real, imag = _products(g, h, chunk > 0)
            full_real, full_imag = full_real + real, full_imag + imag
            t = chunk[:, None] * CHUNK - missing + step
            inside = (t >= 0) & there
            u_tile = _load_tile(u_sequence, u.strides[2], t, inside, TERMS)
            dy_tile = _load_tile(dy_sequence, dy.strides[2], t, inside, TERMS)
            of_into = add_product(of_into, u_tile, float32_terms(g, TERMS), TERMS)
            lags = add_product(lags, u_tile, transposed(dy_tile), TERMS)
            if STARTS:
                # The first chunk as if it began with the sequence.
                shift = tl.where(chunk == 0, missing, 0)[:, None]
                dy_tile = _load_tile(
                    dy_sequence, dy.strides[2], t + shift, (t + shift >= 0) & (step + shift < CHUNK) & there, TERMS
                )
            of_from = add_product(of_from, dy_tile, float32_terms(h, TERMS), TERMS)
        if STARTS:
            steps = tl.minimum(length, length - (chunks - 1) * CHUNK)  # 0 of an empty one
            first = tl.arange(0, 16)
            there = (first == 0) & (first < chunks)
            h = tl.load(states + 0 * first[:, None] + width, mask=there[:, None], other=0.0)
            g = tl.load(gradients + 0 * first[:, None] + width, mask=there[:, None], other=0.0)
            real, imag = _products(g, h, there)
            slope_real, slope_imag = _slope(powers_ptr, v, steps, BLOCK_N)
            real, imag = times(tl.sum(real, 0), tl.sum(imag, 0), slope_real, -slope_imag)
            short_real, short_imag = short_real + real, short_imag + imag
    own = slot * channels + v
    table = own * (CHUNK * 2 * BLOCK_N) + tl.arange(0, CHUNK)[:, None] * (2 * BLOCK_N) + width
    tl.store(into_ptr + table, of_into)
    tl.store(from_ptr + table, of_from)
    tl.store(lags_ptr + own * (CHUNK * CHUNK) + tl.arange(0, CHUNK)[:, None] * CHUNK + step, lags)
    of_z = z_ptr + own * (4 * BLOCK_N)
    store_modes(of_z, here, tl.sum(full_real, 0), tl.sum(full_imag, 0), here < BLOCK_N)
    store_modes(of_z + 2 * BLOCK_N, here, short_real, short_imag, here < BLOCK_N)


@triton.jit
def _slope(powers_ptr, v, exponent, BLOCK_N: tl.constexpr):
    """The derivative of z^exponent [BLOCK_N] for exponents from 0 to CHUNK."""
    real, imag = load_power(powers_ptr, v, tl.maximum(exponent - 1, 1), BLOCK_N)
    real, imag = tl.where(exponent > 1, real, 1.0), tl.where(exponent > 1, imag, 0.0)
    return exponent * real, exponent * imag


@triton.jit
def _sum_of_slots(ptr, slots, apart, mask):
    total = tl.load(ptr, mask=mask, other=0.0)
    for slot in range(1, slots):
        total += tl.load(ptr + slot * apart, mask=mask, other=0.0)
    return total


@triton.jit
def _load_table_sums(ptr, slots, channels, v, row, n, BLOCK_N: tl.constexpr):
    """Real and imaginary parts [CHUNK,BLOCK_N] of rows of [slots,V,CHUNK,2 BLOCK_N] over the slots; 0 beyond CHUNK."""
    size: tl.constexpr = CHUNK * 2 * BLOCK_N
    inside = (row >= 0) & (row < CHUNK) & (n >= 0)
    number = ptr + v * size + row * (2 * BLOCK_N) + 2 * n
    apart = (0 * v + channels) * size
    return _sum_of_slots(number, slots, apart, inside), _sum_of_slots(number + 1, slots, apart, inside)


@triton.jit
def _load_lags(lags_ptr, slots, channels, v, first):
    """[CHUNK,1]: over the slots, the sums of u dy at lags from `first` on: along a diagonal of [CHUNK, CHUNK] each."""
    s = tl.arange(0, CHUNK)[None, :]
    t = s + tl.arange(0, CHUNK)[:, None] + first
    lags = lags_ptr + v * (CHUNK * CHUNK) + s * CHUNK + t
    sums = _sum_of_slots(lags, slots, (0 * v + channels) * (CHUNK * CHUNK), t < CHUNK)
    return tl.sum(sums, 1)[:, None]


@triton.jit
def _with_powers(real, imag, w_real, w_imag):
    """sum_l a_l conj(w_l) [N] of a and w [CHUNK,N]. Growing modes may have overflowed where a is 0."""
    there = (real != 0) | (imag != 0)
    real, imag = times(real, imag, tl.where(there, w_real, 0.0), tl.where(there, -w_imag, 0.0))
    return tl.sum(real, 0), tl.sum(imag, 0)


@triton.jit
def diagonal_scan_parameters_kernel(
    modes,  # Modes
    powers_ptr,
    into_ptr,  # of diagonal_scan_products_kernel, as are the next three
    from_ptr,
    lags_ptr,
    z_ptr,
    dz_ptr,  # [D,N,2] float32, contiguous
    db_ptr,
    dc_ptr,
    dd_skip_ptr,  # [D] float32, contiguous, or None
    slots,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel.

    With p_l and q_l the gradients of b z^l and 2 c z^(l+1), and r_l that of k_l, the sum of u_s dy_(s+l) within chunks:

        db = sum_l p_l conj(z^l) + 2 conj(c) sum_l r_l conj(z^l)
        dc = 2 sum_l q_l conj(z^(l+1)) + 2 conj(b) sum_l r_l conj(z^l)
        dz = sum_l (l+1) conj(z^l) (conj(b) p_(l+1) + 2 conj(c) q_l + 2 conj(b c) r_(l+1)) + what goes through z^CHUNK
    """
    v = tl.program_id(0).to(tl.int64)
    d = v // GROUPS
    l, here = tl.arange(0, CHUNK)[:, None], tl.arange(0, BLOCK_N)
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + here
    # Conjugates, and c twice.
    z_real, z_imag = load_modes(modes.z, d, n, N)
    b_real, b_imag = load_modes(modes.b, d, n, N)
    c_real, c_imag = load_modes(modes.c, d, n, N)
    w_real, w_imag = power(z_real[None, :], z_imag[None, :], l)
    w_real, w_imag = w_real.to(tl.float32), w_imag.to(tl.float32)
    z_imag, b_imag, c_real, c_imag = -z_imag, -b_imag, 2 * c_real, -2 * c_imag

    lags = _load_lags(lags_ptr, slots, channels, v, 0)
    if dd_skip_ptr is not None:
        tl.store(dd_skip_ptr + d, tl.sum(tl.sum(tl.where(l == 0, lags, 0.0), 1), 0), mask=v % GROUPS == 0)
    zeros = tl.zeros([CHUNK, BLOCK_N], tl.float32)
    taps_real, taps_imag = _with_powers(lags + zeros, zeros, w_real, w_imag)
    into_real, into_imag = _load_table_sums(into_ptr, slots, channels, v, -l + (CHUNK - 1), here[None, :], BLOCK_N)
    real, imag = _with_powers(into_real, into_imag, w_real, w_imag)
    through_real, through_imag = times(c_real, c_imag, taps_real, taps_imag)
    own, known = d * (2 * N), n < N
    store_modes(db_ptr + own, n, real + through_real, imag + through_imag, known)

    from_real, from_imag = _load_table_sums(from_ptr, slots, channels, v, l, here[None, :], BLOCK_N)
    real, imag = _with_powers(from_real, -from_imag, w_real, w_imag)
    real, imag = times(z_real, z_imag, real, imag)
    through_real, through_imag = times(b_real, b_imag, taps_real, taps_imag)
    store_modes(dc_ptr + own, n, 2 * (real + through_real), 2 * (imag + through_imag), known)

    late = (l + 1).to(tl.float32)
    into_real, into_imag = _load_table_sums(into_ptr, slots, channels, v, -l + (CHUNK - 2), here[None, :], BLOCK_N)
    lags = _load_lags(lags_ptr, slots, channels, v, 1)
    of_b_real, of_b_imag = _with_powers(late * into_real, late * into_imag, w_real, w_imag)
    of_c_real, of_c_imag = _with_powers(late * from_real, -late * from_imag, w_real, w_imag)
    taps_real, taps_imag = _with_powers(late * lags + zeros, zeros, w_real, w_imag)
    through_real, through_imag = times(c_real, c_imag, taps_real, taps_imag)
    of_b_real, of_b_imag = times(b_real, b_imag, of_b_real + through_real, of_b_imag + through_imag)
    of_c_real, of_c_imag = times(c_real, c_imag, of_c_real, of_c_imag)
    of_z, apart = z_ptr + v * (4 * BLOCK_N) + 2 * here, (0 * v + channels) * (4 * BLOCK_N)
    real, imag = _sum_of_slots(of_z, slots, apart, known), _sum_of_slots(of_z + 1, slots, apart, known)
    there = (real != 0) | (imag != 0)
    slope_real, slope_imag = _slope(powers_ptr, v, 0 * v + CHUNK, BLOCK_N)
    real, imag = times(real, imag, tl.where(there, slope_real, 0.0), tl.where(there, -slope_imag, 0.0))
    of_z += 2 * BLOCK_N
    real, imag = real + _sum_of_slots(of_z, slots, apart, known), imag + _sum_of_slots(of_z + 1, slots, apart, known)
    store_modes(dz_ptr + own, n, real + of_b_real + of_c_real, imag + of_b_imag + of_c_imag, known)


def diagonal_scan_backward(
    dy: Tensor,
    dh: Tensor | None,
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of u, z, b, c, d_skip and h0 in their dtypes, None where there is none; dh None is zero."""
    D, N = z.shape
    u, dy = by_time(u), by_time(dy)
    plan = Plan(modes_of(z, b, c), d_skip, u, cu_seqlens, gradients=True, starts=h0 is not None)
    new = {"dtype": torch.float32, "device": u.device}
    du, dh0 = outputs_of_groups(u, plan.groups), None if h0 is None else torch.empty(plan.rows, D, N, 2, **new)
    # Before each chunk, and the gradients after it: as many numbers as 2 N / CHUNK sequences each.
    states, gradients = (torch.empty(plan.channels, plan.chunks, 2 * plan.block_n, **new) for _ in range(2))
    scan(u, h0, plan, y=None, h=None, states=states, reverse=False)
    scan(dy, dh, plan, y=du, h=dh0, states=gradients, reverse=True)
    dd_skip = None if d_skip is None else torch.empty(D, **new)
    dz, db, dc = _parameter_gradients(dy, u, plan, states, gradients, dd_skip, starts=h0 is not None)
    dd_skip = None if d_skip is None or dd_skip is None else dd_skip.to(d_skip.dtype)
    return add_groups(du, u), dz, db, dc, dd_skip, None if dh0 is None else torch.view_as_complex(dh0)


def _parameter_gradients(
    dy: Tensor, u: Tensor, plan: Plan, states: Tensor, gradients: Tensor, dd_skip: Tensor | None, *, starts: bool
) -> tuple[Tensor, ...]:
    """Compute dz, db and dc [D,N] complex64, and write the gradient of a skip to dd_skip [D], where there is one."""
    D, N = plan.modes.z.ptr.shape[:2]
    new = {"dtype": torch.float32, "device": u.device}
    slots, rows_per_slot = slots_of(plan.rows, plan.channels)
    steps, width = CHUNK.value, 2 * plan.block_n
    sums: dict[str, Any] = {
        name: torch.empty(slots, plan.channels, *shape, **new)
        for name, shape in {
            "into_ptr": (steps, width),
            "from_ptr": (steps, width),
            "lags_ptr": (steps, steps),
            "z_ptr": (2, width),
        }.items()
    }
    launch(
        diagonal_scan_products_kernel,
        (slots * plan.channels,),
        u=strided(u),
        dy=strided(dy),
        texts=plan.texts,
        powers_ptr=plan.tables.powers_ptr,
        states_ptr=states,
        gradients_ptr=gradients,
        **sums,
        rows=plan.rows,
        rows_per_slot=rows_per_slot,
        channels=plan.channels,
        STARTS=starts,
        GROUPS=plan.groups,
        BLOCK_N=plan.block_n,
        COLUMNS=COLUMNS if u.dtype in HALF else COLUMNS_OF_FLOAT32,
        TERMS=plan.terms,
        num_warps=4,
        num_stages=1,
    )
    dz, db, dc = (torch.empty(D, N, 2, **new) for _ in range(3))
    launch(
        diagonal_scan_parameters_kernel,
        (plan.channels,),
        modes=plan.modes,
        powers_ptr=plan.tables.powers_ptr,
        **sums,
        dz_ptr=dz,
        db_ptr=db,
        dc_ptr=dc,
        dd_skip_ptr=dd_skip,
        slots=slots,
        channels=plan.channels,
        N=N,
        GROUPS=plan.groups,
        BLOCK_N=plan.block_n,
        num_warps=4,
    )
    return tuple(map(torch.view_as_complex, (dz, db, dc)))
