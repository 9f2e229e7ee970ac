"""Diagonal recurrence with complex modes in Triton: the gradients.

The states before each chunk and the gradients of those after it are kept, of two passes of `triton_forward.py`. What
parameters get is sums of products of the two over all chunks, and of u and dy within chunks. Shapes and method:
`triton_chunks.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import at, strided
from ..common.triton_tiles import dot, dot_precision, slots_of
from ..launch import launch
from .triton_chunks import (
    COLUMNS,
    WARPS,
    Plan,
    by_time,
    find_text,
    from_end,
    from_start,
    load_modes,
    load_powers,
    mode_sums,
    modes_of,
    power,
    states_of_text,
    store_modes,
    times,
)
from .triton_forward import add_groups, outputs_of_groups, scan


@triton.jit
def _slope(z_real, z_imag, exponent):
    """The derivative of z^exponent, float32; 0 for z^0."""
    real, imag = power(z_real, z_imag, tl.maximum(exponent - 1, 0))
    return (exponent * real).to(tl.float32), (exponent * imag).to(tl.float32)


@triton.jit
def _sum_of_lags(lags, powers):
    """sum_l r_l w_l [BLOCK_N]. No sequence is as long as a lag of 0, where growing modes may have overflowed."""
    return tl.sum(tl.where(lags[:, None] != 0, lags[:, None] * powers, 0.0), 0)


@triton.jit
def _sum_of_products(a_real, a_imag, b_real, b_imag):
    """sum a conj(b) over the columns."""
    real, imag = times(a_real, a_imag, b_real, -b_imag)
    return tl.sum(real, 1), tl.sum(imag, 1)


@triton.jit
def _load_states(states, chunk, chunks, BLOCK_N: tl.constexpr):
    """[BLOCK_N, chunks] of a sequence's [chunks,2,BLOCK_N]."""
    state = states + chunk[None, :] * (2 * BLOCK_N) + tl.arange(0, BLOCK_N)[:, None]
    there = (chunk < chunks)[None, :]
    return tl.load(state, mask=there, other=0.0), tl.load(state + BLOCK_N, mask=there, other=0.0)


@triton.jit
def _load_last_state(states, chunks, BLOCK_N: tl.constexpr):
    """[BLOCK_N] of a sequence's last chunk; 0 where it has none."""
    number = tl.arange(0, BLOCK_N)
    state, there = states + (chunks - 1) * (2 * BLOCK_N) + number, number < chunks * BLOCK_N
    return tl.load(state, mask=there, other=0.0), tl.load(state + BLOCK_N, mask=there, other=0.0)


@triton.jit
def diagonal_scan_sums_kernel(
    x,  # Strided [B,D,L]: u FROM_END, dy from the start
    texts,  # Texts
    powers_ptr,  # as in diagonal_scan_tables_kernel
    states_ptr,  # [V,chunks,2,BLOCK_N] float32, contiguous
    sums_ptr,  # [slots,2,D,N,2] float32, contiguous
    rows_per_slot,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    FROM_END: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    Over chunks, with g the gradients of the states after them, sum g conj(sum_i w_i u_{r-1-i}) and the same by conj(z);
    with h the states before them sum conj(h) conj(sum_t w_t) dy_t, and the same by conj(z) of conj(z w_t).
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), (tl.program_id(0) // channels).to(tl.int64)
    d, D = v // GROUPS, channels // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, COLUMNS)
    late = tl.arange(1, CHUNK + 1)[:, None].to(tl.float32)
    own_real, own_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    late_real, late_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    first_row = (tl.program_id(0) // channels) * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, texts.rows)):
        row = 0 * v + number
        of_x, start, length = find_text(texts, row)
        sequence = at(x, (of_x, d, start))
        w_real, w_imag = load_powers(powers_ptr, v, length, CHUNK, BLOCK_N)
        chunks = (length + CHUNK - 1) // CHUNK
        states = states_of_text(states_ptr, v, texts, row, start, CHUNK, BLOCK_N)
        for block in range(0, chunks, COLUMNS):
            chunk = block + column
            state_real, state_imag = _load_states(states, chunk, chunks, BLOCK_N)
            if FROM_END:
                t, inside = from_end(length, chunk, 0, CHUNK)
            else:
                t, inside = from_start(length, chunk, CHUNK)
                state_imag = -state_imag
            tile = tl.load(sequence + t * x.strides[2], mask=inside, other=0.0)
            sum_real, sum_imag = mode_sums(w_real, w_imag, tile, STATE_PRECISION)
            sum_real, sum_imag = _sum_of_products(state_real, state_imag, sum_real, sum_imag)
            own_real, own_imag = own_real + sum_real, own_imag + sum_imag
            if FROM_END:
                t, inside = from_end(length, chunk, 1, CHUNK)
                tile = tl.load(sequence + t * x.strides[2], mask=inside, other=0.0)
            sum_real, sum_imag = mode_sums(w_real, w_imag, tile.to(tl.float32) * late, STATE_PRECISION)
            sum_real, sum_imag = _sum_of_products(state_real, state_imag, sum_real, sum_imag)
            late_real, late_imag = late_real + sum_real, late_imag + sum_imag
    sums = sums_ptr + (slot * 2 * D + d) * (2 * N)
    store_modes(sums, n, N, own_real, own_imag)
    store_modes(sums + D * (2 * N), n, N, late_real, late_imag)


@triton.jit
def diagonal_scan_lags_kernel(
    dy,  # Strided [B,D,L]
    u,  # Strided [B,D,L]
    z,  # Strided [D,N,2]
    texts,  # Texts
    states_ptr,  # [V,chunks,2,BLOCK_N] float32, contiguous: before each chunk
    gradients_ptr,  # likewise of the states after each chunk
    sums_ptr,  # [slots,1,D,N,2] float32, contiguous
    lags_ptr,  # [slots,V,CHUNK,CHUNK] float32, contiguous
    rows_per_slot,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    Over chunks of r steps, the products of u and dy, both counted from the end, and sum g conj(r z^(r-1) h).
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), (tl.program_id(0) // channels).to(tl.int64)
    d, D = v // GROUPS, channels // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, COLUMNS)
    z_real, z_imag = load_modes(z, d, n, N)
    lags = tl.zeros([CHUNK, CHUNK], tl.float32)
    full_real, full_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    last_real, last_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    longest = 0
    first_row = (tl.program_id(0) // channels) * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, texts.rows)):
        row = 0 * v + number
        of_u, start, length = find_text(texts, row)
        u_sequence, dy_sequence = at(u, (of_u, d, start)), at(dy, (of_u, d, start))
        chunks = (length + CHUNK - 1) // CHUNK
        states = states_of_text(states_ptr, v, texts, row, start, CHUNK, BLOCK_N)
        gradients = states_of_text(gradients_ptr, v, texts, row, start, CHUNK, BLOCK_N)
        for block in range(0, chunks, COLUMNS):
            t, inside = from_end(length, block + column, 0, CHUNK)
            u_back = tl.load(u_sequence + t * u.strides[2], mask=inside, other=0.0).to(tl.float32)
            dy_back = tl.load(dy_sequence + t * dy.strides[2], mask=inside, other=0.0).to(tl.float32)
            lags += dot(u_back, tl.trans(dy_back), STATE_PRECISION)
        # Those of the last chunk, which may be short, by themselves.
        for block in range(0, chunks - 1, COLUMNS):
            h_real, h_imag = _load_states(states, block + column, chunks - 1, BLOCK_N)
            g_real, g_imag = _load_states(gradients, block + column, chunks - 1, BLOCK_N)
            sum_real, sum_imag = _sum_of_products(g_real, g_imag, h_real, h_imag)
            full_real, full_imag = full_real + sum_real, full_imag + sum_imag
        h_real, h_imag = _load_last_state(states, chunks, BLOCK_N)
        g_real, g_imag = _load_last_state(gradients, chunks, BLOCK_N)
        slope_real, slope_imag = _slope(z_real, z_imag, 0 * n + (length - tl.maximum(chunks - 1, 0) * CHUNK))
        h_real, h_imag = times(slope_real, slope_imag, h_real, h_imag)
        sum_real, sum_imag = times(g_real, g_imag, h_real, -h_imag)
        last_real, last_imag = last_real + sum_real, last_imag + sum_imag
        longest = tl.maximum(longest, length)
    # Growing modes overflow beyond the longest sequence, where there is no chunk to multiply.
    slope_real, slope_imag = _slope(z_real, z_imag, 0 * n + tl.minimum(longest, CHUNK))
    full_real, full_imag = times(slope_real, -slope_imag, full_real, full_imag)
    store_modes(sums_ptr + (slot * D + d) * (2 * N), n, N, full_real + last_real, full_imag + last_imag)
    entry = tl.arange(0, CHUNK)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    tl.store(lags_ptr + (slot * channels + v) * (CHUNK * CHUNK) + entry, lags)


@triton.jit
def _lag_sums(lags_ptr, slots, channels, v, first, CHUNK: tl.constexpr):
    """[CHUNK]: over the slots, the sums of u dy at lags from `first` on: along a diagonal of [CHUNK, CHUNK] each."""
    later = tl.arange(0, CHUNK)[None, :]
    earlier = later + tl.arange(0, CHUNK)[:, None] + first
    sums = tl.zeros([CHUNK, CHUNK], tl.float32)
    for slot in range(slots):
        lags = lags_ptr + (slot * channels + v) * (CHUNK * CHUNK) + earlier * CHUNK + later
        sums += tl.load(lags, mask=earlier < CHUNK, other=0.0)
    return tl.sum(sums, 1)


@triton.jit
def _sum_slots(sums_ptr, slots, number, NUMBERS: tl.constexpr, d, D, n, N):
    """Over the slots, of [slots,NUMBERS,D,N,2]."""
    real, imag = tl.zeros([n.shape[0]], tl.float32), tl.zeros([n.shape[0]], tl.float32)
    for slot in range(slots):
        sums = sums_ptr + ((slot * NUMBERS + number) * D + d) * (2 * N) + 2 * n
        real += tl.load(sums, mask=n < N, other=0.0)
        imag += tl.load(sums + 1, mask=n < N, other=0.0)
    return real, imag


@triton.jit
def diagonal_scan_parameters_kernel(
    modes,  # Modes
    powers_ptr,
    of_u_ptr,  # [slots,2,D,N,2]: of diagonal_scan_sums_kernel
    of_dy_ptr,  # [slots,2,D,N,2]
    of_states_ptr,  # [slots,1,D,N,2]: of diagonal_scan_lags_kernel
    lags_ptr,  # [slots,V,CHUNK,CHUNK]
    dz_ptr,  # [D,N,2] float32, contiguous
    db_ptr,
    dc_ptr,
    dd_skip_ptr,  # [D] float32, contiguous, or None
    slots,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel: what went through states, with its factors, and through the taps.

    With r_l the sum of u_t dy_{t+l} within chunks, the gradient of k_l, that is 2 conj(c) sum r_l conj(z^l) of db, the
    same with b of dc, and 2 conj(b c) sum r_l l conj(z^(l-1)) of dz.
    """
    v = tl.program_id(0).to(tl.int64)
    d, D = v // GROUPS, channels // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Conjugates, and c twice.
    z_real, z_imag = load_modes(modes.z, d, n, N)
    b_real, b_imag = load_modes(modes.b, d, n, N)
    c_real, c_imag = load_modes(modes.c, d, n, N)
    z_imag, b_imag, c_real, c_imag = -z_imag, -b_imag, 2 * c_real, -2 * c_imag
    w_real, w_imag = load_powers(powers_ptr, v, CHUNK, CHUNK, BLOCK_N)
    lags = _lag_sums(lags_ptr, slots, channels, v, 0, CHUNK)
    if dd_skip_ptr is not None:
        same = tl.sum(tl.where(tl.arange(0, CHUNK) == 0, lags, 0.0), 0)
        tl.store(dd_skip_ptr + d, same, mask=v % GROUPS == 0)
    taps_real, taps_imag = _sum_of_lags(lags, w_real), -_sum_of_lags(lags, w_imag)
    own = d * (2 * N)

    real, imag = _sum_slots(of_u_ptr, slots, 0, 2, d, D, n, N)
    through_real, through_imag = times(c_real, c_imag, taps_real, taps_imag)
    store_modes(db_ptr + own, n, N, real + through_real, imag + through_imag)

    real, imag = _sum_slots(of_dy_ptr, slots, 0, 2, d, D, n, N)
    real, imag = times(z_real, z_imag, real, imag)
    through_real, through_imag = times(b_real, b_imag, taps_real, taps_imag)
    store_modes(dc_ptr + own, n, N, 2 * (real + through_real), 2 * (imag + through_imag))

    lags = _lag_sums(lags_ptr, slots, channels, v, 1, CHUNK) * tl.arange(1, CHUNK + 1).to(tl.float32)
    taps_real, taps_imag = _sum_of_lags(lags, w_real), -_sum_of_lags(lags, w_imag)
    through_real, through_imag = times(c_real, c_imag, taps_real, taps_imag)
    real, imag = _sum_slots(of_u_ptr, slots, 1, 2, d, D, n, N)
    of_b_real, of_b_imag = times(b_real, b_imag, real + through_real, imag + through_imag)
    real, imag = _sum_slots(of_dy_ptr, slots, 1, 2, d, D, n, N)
    of_c_real, of_c_imag = times(c_real, c_imag, real, imag)
    real, imag = _sum_slots(of_states_ptr, slots, 0, 1, d, D, n, N)
    store_modes(dz_ptr + own, n, N, real + of_b_real + of_c_real, imag + of_b_imag + of_c_imag)


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
    plan = Plan(modes_of(z, b, c), d_skip, u, cu_seqlens)
    new = {"dtype": torch.float32, "device": u.device}
    du, dh0 = outputs_of_groups(u, plan.groups), None if h0 is None else torch.empty(plan.rows, D, N, 2, **new)
    # Before each chunk, and the gradients after it: as many numbers as 2 N / chunk sequences each.
    states, gradients = (torch.empty(plan.channels, plan.chunks, 2, plan.block_n, **new) for _ in range(2))
    scan(u, h0, plan, y=None, h=None, states=states, reverse=False)
    scan(dy, dh, plan, y=du, h=dh0, states=gradients, reverse=True)
    dd_skip = None if d_skip is None else torch.empty(D, **new)
    dz, db, dc = _parameter_gradients(dy, u, plan, states, gradients, dd_skip)
    dd_skip = None if d_skip is None or dd_skip is None else dd_skip.to(d_skip.dtype)
    return add_groups(du, u), dz, db, dc, dd_skip, None if dh0 is None else torch.view_as_complex(dh0)


def _parameter_gradients(
    dy: Tensor, u: Tensor, plan: Plan, states: Tensor, gradients: Tensor, dd_skip: Tensor | None
) -> tuple[Tensor, ...]:
    """Compute dz, db and dc [D,N] complex64, and write the gradient of a skip to dd_skip [D], where there is one."""
    D, N = plan.modes.z.ptr.shape[:2]
    new = {"dtype": torch.float32, "device": u.device}
    slots, rows_per_slot = slots_of(plan.rows, plan.channels)
    pairs = {"texts": plan.texts, "rows_per_slot": rows_per_slot, "channels": plan.channels, **plan.tile}
    of_u, of_dy = (torch.empty(slots, 2, D, N, 2, **new) for _ in range(2))
    for x, met, sums, from_the_end in ((u, gradients, of_u, True), (dy, states, of_dy, False)):
        launch(
            diagonal_scan_sums_kernel,
            (slots * plan.channels,),
            x=strided(x),
            powers_ptr=plan.tables.powers_ptr,
            states_ptr=met,
            sums_ptr=sums,
            **pairs,
            COLUMNS=COLUMNS,
            FROM_END=from_the_end,
            STATE_PRECISION=dot_precision(diagonal_scan_sums_kernel, sums),
            num_warps=WARPS,
            num_stages=1,
        )
    of_states = torch.empty(slots, 1, D, N, 2, **new)
    lags = torch.empty(slots, plan.channels, plan.chunk, plan.chunk, **new)
    launch(
        diagonal_scan_lags_kernel,
        (slots * plan.channels,),
        dy=strided(dy),
        u=strided(u),
        z=plan.modes.z,
        states_ptr=states,
        gradients_ptr=gradients,
        sums_ptr=of_states,
        lags_ptr=lags,
        **pairs,
        COLUMNS=COLUMNS,
        STATE_PRECISION=dot_precision(diagonal_scan_lags_kernel, lags),
        num_warps=WARPS,
        num_stages=1,
    )
    dz, db, dc = (torch.empty(D, N, 2, **new) for _ in range(3))
    launch(
        diagonal_scan_parameters_kernel,
        (plan.channels,),
        modes=plan.modes,
        powers_ptr=plan.tables.powers_ptr,
        of_u_ptr=of_u,
        of_dy_ptr=of_dy,
        of_states_ptr=of_states,
        lags_ptr=lags,
        dz_ptr=dz,
        db_ptr=db,
        dc_ptr=dc,
        dd_skip_ptr=dd_skip,
        slots=slots,
        channels=plan.channels,
        **plan.tile,
        num_warps=4,
    )
    return tuple(map(torch.view_as_complex, (dz, db, dc)))
