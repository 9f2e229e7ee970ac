"""Diagonal recurrence with complex modes in Triton: chunks of time as columns of real products.

With w = z^0 .. z^(CHUNK-1) and T the Toeplitz matrix of k_l = 2 Re sum_n c_n b_n z_n^l, a chunk of r steps that starts
from the state h gives

    y_t = sum_s T_{t,s} u_s + 2 Re sum_n c_n z_n w_{t,n} h_n        h' = z^r h + b sum_i w_i u_{r-1-i}

The first line counts time from the chunk's start and the second from its end: so one table w serves both, and a last
chunk of r < CHUNK steps is as exact as the others. The gradients are the same two lines with their roles exchanged,
run from the end. The state goes from chunk to chunk in float64: it is N numbers, and the rounding of z^CHUNK, the same
each time, would add up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch
from ..common.triton_tiles import block_of, contiguous, dot, dot_precision, slots_of, strides

# Modes at a time: more are added up from several runs.
MOST_MODES = 32
# Steps in a chunk: the fewest with which the columns of one product hold a text, else the most. Beyond 32 the tables of
# float32 numbers, as three terms each, no longer fit the registers.
CHUNKS = (16, 32)
COLUMNS = 16
# Products of 32 rows, 16 a warp.
WARPS = 2
# Modes that a program has on the chip in a single step.
NUMBERS_OF_A_STEP = 1024

_BITS = tl.constexpr(max(CHUNKS).bit_length())


@triton.jit
def _times(a_real, a_imag, b_real, b_imag):
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


@triton.jit
def _power(z_real, z_imag, exponent):
    """z^exponent for exponents from 0 to the most steps of a chunk, by squares, in float64; zero to the 0 is one."""
    z_real, z_imag = z_real.to(tl.float64), z_imag.to(tl.float64)
    imag = 0.0 * exponent.to(tl.float64) + 0.0 * z_imag
    real = 1.0 + imag
    for bit in tl.static_range(_BITS):
        with_real, with_imag = _times(real, imag, z_real, z_imag)
        taken = ((exponent >> bit) & 1) != 0
        real, imag = tl.where(taken, with_real, real), tl.where(taken, with_imag, imag)
        z_real, z_imag = _times(z_real, z_imag, z_real, z_imag)
    return real, imag


@triton.jit
def _slope(z_real, z_imag, exponent):
    """The derivative of z^exponent, float32; 0 for z^0."""
    real, imag = _power(z_real, z_imag, tl.maximum(exponent - 1, 0))
    return (exponent * real).to(tl.float32), (exponent * imag).to(tl.float32)


@triton.jit
def _load_modes(ptr, strides, d, n, N):
    """Real and imaginary part of [D,N,2]; 0 beyond N."""
    modes = ptr + d * strides[0] + n * strides[1]
    return tl.load(modes, mask=n < N, other=0.0), tl.load(modes + strides[2], mask=n < N, other=0.0)


@triton.jit
def _load_state(ptr, strides, row, d, n, N):
    """Of [rows,D,N,2], in float64; zeros where there is none."""
    if ptr is None:
        real = tl.zeros([n.shape[0]], tl.float64)
        imag = real
    else:
        real, imag = _load_modes(ptr + row * strides[0], (strides[1], strides[2], strides[3]), d, n, N)
        real, imag = real.to(tl.float64), imag.to(tl.float64)
    return real, imag


@triton.jit
def _store_modes(ptr, n, N, real, imag):
    """To [N,2], contiguous."""
    tl.store(ptr + 2 * n, real.to(tl.float32), mask=n < N)
    tl.store(ptr + 2 * n + 1, imag.to(tl.float32), mask=n < N)


@triton.jit
def _load_powers(powers_ptr, v, length, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):
    """w [CHUNK, BLOCK_N] of channel v, real and imaginary, for a text of so many steps.

    Growing modes overflow beyond them, where all that w meets is 0, and their product would be no number.
    """
    time = tl.arange(0, CHUNK)[:, None]
    powers = powers_ptr + v * (2 * CHUNK * BLOCK_N) + time * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = time < length
    return tl.load(powers, mask=inside, other=0.0), tl.load(powers + CHUNK * BLOCK_N, mask=inside, other=0.0)


@triton.jit
def _sum_of_lags(lags, powers):
    """sum_l r_l w_l [BLOCK_N]. No text is as long as a lag of 0, where growing modes may have overflowed."""
    return tl.sum(tl.where(lags[:, None] != 0, lags[:, None] * powers, 0.0), 0)


@triton.jit
def _load_toeplitz(taps_ptr, v, CHUNK: tl.constexpr):
    """T [CHUNK, CHUNK] of channel v."""
    lag = tl.arange(0, CHUNK)[:, None] - tl.arange(0, CHUNK)[None, :]
    return tl.load(taps_ptr + v * CHUNK + lag, mask=lag >= 0, other=0.0)


@triton.jit
def _text(cu_seqlens_ptr, row, L):
    """For a row of states (int64): the row of the inputs, where in it the text begins (int64) and how long it is."""
    if cu_seqlens_ptr is None:
        of_u, start, length = row, 0 * row, L + (0 * row).to(tl.int32)
    else:
        of_u, start = 0 * row, tl.load(cu_seqlens_ptr + row).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + row + 1) - start).to(tl.int32)
    return of_u, start, length


@triton.jit
def _states(states_ptr, first, cu_seqlens_ptr, row, start, L, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the states of a text's chunks lie among all, the `first` on: no text has more than up to the next one's."""
    if cu_seqlens_ptr is None:
        first += row * ((L + CHUNK - 1) // CHUNK)
    else:
        first += row + start // CHUNK
    return states_ptr + first * (2 * BLOCK_N)


@triton.jit
def _from_start(length, chunk, CHUNK: tl.constexpr):
    """Times [CHUNK, chunks] of a text counted from each chunk's start, and which of them it has."""
    time = chunk[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    return time, time < length


@triton.jit
def _from_end(length, chunk, first, CHUNK: tl.constexpr):
    """The same counted back from each chunk's end, which for the last chunk is the text's, beginning `first` before."""
    begin = chunk[None, :] * CHUNK
    step = tl.minimum(length - begin, CHUNK) - 1 - first - tl.arange(0, CHUNK)[:, None]
    return begin + step, step >= 0


@triton.jit
def _mode_sums(w_real, w_imag, tile, PRECISION: tl.constexpr):
    """sum w x over the steps of each chunk: [BLOCK_N, COLUMNS] of x [CHUNK, COLUMNS]."""
    return dot(tl.trans(w_real), tile, PRECISION), dot(tl.trans(w_imag), tile, PRECISION)


@triton.jit
def _sum_of_products(a_real, a_imag, b_real, b_imag):
    """sum a conj(b) over the columns."""
    real, imag = _times(a_real, a_imag, b_real, -b_imag)
    return tl.sum(real, 1), tl.sum(imag, 1)


@triton.jit
def _column(tile, here):
    """The column of a tile that `here` marks, in float64."""
    return tl.sum(tl.where(here, tile, 0.0), 1).to(tl.float64)


@triton.jit
def _with_column(tile, here, column):
    return tl.where(here, column.to(tl.float32)[:, None], tile)


@triton.jit
def diagonal_scan_tables_kernel(
    z_ptr,  # [D,N,2]
    z_strides,
    b_ptr,  # [D,N,2]
    b_strides,
    c_ptr,  # [D,N,2]
    c_strides,
    d_skip_ptr,  # [D] or None
    powers_ptr,  # [D GROUPS,2,CHUNK,BLOCK_N] float32, contiguous: w
    taps_ptr,  # [D GROUPS,CHUNK] float32, contiguous: k, the skip in k_0
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program BLOCK_N modes of a channel."""
    v = tl.program_id(0).to(tl.int64)
    d, group = v // GROUPS, v % GROUPS
    l, n = tl.arange(0, CHUNK), group * BLOCK_N + tl.arange(0, BLOCK_N)
    z_real, z_imag = _load_modes(z_ptr, z_strides, d, n, N)
    real, imag = _power(z_real[None, :], z_imag[None, :], l[:, None])
    powers = powers_ptr + v * (2 * CHUNK * BLOCK_N) + l[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(powers, real.to(tl.float32))
    tl.store(powers + CHUNK * BLOCK_N, imag.to(tl.float32))
    b_real, b_imag = _load_modes(b_ptr, b_strides, d, n, N)
    c_real, c_imag = _load_modes(c_ptr, c_strides, d, n, N)
    both_real, both_imag = _times(c_real.to(tl.float64), c_imag.to(tl.float64), b_real, b_imag)
    taps = 2 * tl.sum(both_real[None, :] * real - both_imag[None, :] * imag, 1)
    if d_skip_ptr is not None:
        taps += tl.where((l == 0) & (group == 0), tl.load(d_skip_ptr + d).to(tl.float64), 0.0)
    tl.store(taps_ptr + v * CHUNK + l, taps.to(tl.float32))


@triton.jit
def diagonal_scan_kernel(
    x_ptr,  # [B,D,L]: u, or in REVERSE dy
    x_strides,
    z_ptr,  # [D,N,2]
    z_strides,
    b_ptr,  # [D,N,2]
    b_strides,
    c_ptr,  # [D,N,2]
    c_strides,
    h0_ptr,  # [rows,D,N,2], in REVERSE the gradient of h_T; or None
    h0_strides,
    cu_seqlens_ptr,  # [rows + 1], contiguous, or None: rows = B
    powers_ptr,
    taps_ptr,
    y_ptr,  # [B,D,GROUPS,L], contiguous: y, in REVERSE du; or None
    h_ptr,  # [rows,D,N,2] float32, contiguous: h_T, in REVERSE the gradient of h0; or None
    states_ptr,  # [D GROUPS,chunks,2,BLOCK_N] float32, contiguous: those that chunks start from; or None
    chunks_of_all,
    rows,
    rows_per_slot,
    channels,  # D GROUPS
    L,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """A program BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    The gradient g of the state after a chunk runs through the same lines from the last chunk to the first, with end and
    start exchanged: du from the end = T dy + 2 Re sum_n (conj(b) / 2) conj(w) g, and before the chunk
    g = conj(z^r) g + 2 conj(c z) sum conj(w) dy.
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), tl.program_id(0) // channels
    d = v // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, COLUMNS)
    z_real, z_imag = _load_modes(z_ptr, z_strides, d, n, N)
    in_real, in_imag = _load_modes(b_ptr, b_strides, d, n, N)
    c_real, c_imag = _load_modes(c_ptr, c_strides, d, n, N)
    out_real, out_imag = _times(2 * c_real, 2 * c_imag, z_real, z_imag)
    if REVERSE:
        z_imag = -z_imag
        in_real, in_imag, out_real, out_imag = out_real, -out_imag, in_real, -in_imag
    full_real, full_imag = _power(z_real, z_imag, 0 * n + CHUNK)
    first_row = slot * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, rows)):
        row = 0 * v + number
        of_x, start, length = _text(cu_seqlens_ptr, row, L)
        x = x_ptr + of_x * x_strides[0] + d * x_strides[1] + start * x_strides[2]
        w_real, w_imag = _load_powers(powers_ptr, v, length, CHUNK, BLOCK_N)
        if REVERSE:
            w_imag = -w_imag
        chunks = (length + CHUNK - 1) // CHUNK
        blocks = (chunks + COLUMNS - 1) // COLUMNS
        tail_real, tail_imag = _power(z_real, z_imag, 0 * n + (length - (chunks - 1) * CHUNK))
        h_real, h_imag = _load_state(h0_ptr, h0_strides, row, d, n, N)
        for block in range(blocks):
            first = (blocks - 1 - block if REVERSE else block) * COLUMNS
            chunk = first + column
            if REVERSE:
                at, inside = _from_start(length, chunk, CHUNK)
            else:
                at, inside = _from_end(length, chunk, 0, CHUNK)
            reaching = tl.load(x + at * x_strides[2], mask=inside, other=0.0)
            added_real, added_imag = _mode_sums(w_real, w_imag, reaching, STATE_PRECISION)  # [BLOCK_N, COLUMNS]
            added_real, added_imag = _times(in_real[:, None], in_imag[:, None], added_real, added_imag)
            before_real = tl.zeros([BLOCK_N, COLUMNS], tl.float32)
            before_imag = tl.zeros([BLOCK_N, COLUMNS], tl.float32)
            columns = tl.minimum(chunks - first, COLUMNS)
            for step in range(columns):
                j = columns - 1 - step if REVERSE else step
                here = column[None, :] == j
                before_real = _with_column(before_real, here, h_real)
                before_imag = _with_column(before_imag, here, h_imag)
                # Only the last chunk can be short. The choice is among products, since one among factors would stay in
                # the loop as an exchange between threads.
                last = first + j == chunks - 1
                short_real, short_imag = _times(tail_real, tail_imag, h_real, h_imag)
                h_real, h_imag = _times(full_real, full_imag, h_real, h_imag)
                h_real = tl.where(last, short_real, h_real) + _column(added_real, here)
                h_imag = tl.where(last, short_imag, h_imag) + _column(added_imag, here)
            if states_ptr is not None:
                states = _states(states_ptr, v * chunks_of_all, cu_seqlens_ptr, row, start, L, CHUNK, BLOCK_N)
                states += chunk[None, :] * (2 * BLOCK_N) + tl.arange(0, BLOCK_N)[:, None]
                tl.store(states, before_real, mask=(chunk < chunks)[None, :])
                tl.store(states + BLOCK_N, before_imag, mask=(chunk < chunks)[None, :])
            if y_ptr is not None:
                from_real, from_imag = _times(out_real[:, None], out_imag[:, None], before_real, before_imag)
                if REVERSE:
                    at, inside = _from_end(length, chunk, 0, CHUNK)
                else:
                    at, inside = _from_start(length, chunk, CHUNK)
                own = tl.load(x + at * x_strides[2], mask=inside, other=0.0)
                steps = dot(_load_toeplitz(taps_ptr, v, CHUNK), own, PRECISION)
                steps += dot(w_real, from_real, PRECISION) - dot(w_imag, from_imag, PRECISION)
                tl.store(y_ptr + (of_x * channels + v) * L + start + at, steps, mask=inside)
        if h_ptr is not None:
            _store_modes(h_ptr + (row * (channels // GROUPS) + d) * (2 * N), n, N, h_real, h_imag)


@triton.jit
def _load_states(states, chunk, chunks, BLOCK_N: tl.constexpr):
    """[BLOCK_N, chunks] of a text's [chunks,2,BLOCK_N]."""
    state = states + chunk[None, :] * (2 * BLOCK_N) + tl.arange(0, BLOCK_N)[:, None]
    there = (chunk < chunks)[None, :]
    return tl.load(state, mask=there, other=0.0), tl.load(state + BLOCK_N, mask=there, other=0.0)


@triton.jit
def _load_last_state(states, chunks, BLOCK_N: tl.constexpr):
    """[BLOCK_N] of a text's last chunk; 0 where it has none."""
    number = tl.arange(0, BLOCK_N)
    state, there = states + (chunks - 1) * (2 * BLOCK_N) + number, number < chunks * BLOCK_N
    return tl.load(state, mask=there, other=0.0), tl.load(state + BLOCK_N, mask=there, other=0.0)


@triton.jit
def diagonal_scan_sums_kernel(
    x_ptr,  # [B,D,L]: u FROM_END, dy from the start
    x_strides,
    cu_seqlens_ptr,  # [rows + 1], contiguous, or None: rows = B
    powers_ptr,
    states_ptr,  # [D GROUPS,chunks,2,BLOCK_N] float32, contiguous
    sums_ptr,  # [slots,2,D,N,2] float32, contiguous
    chunks_of_all,
    rows,
    rows_per_slot,
    channels,  # D GROUPS
    L,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    FROM_END: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """A program BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

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
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, rows)):
        row = 0 * v + number
        of_x, start, length = _text(cu_seqlens_ptr, row, L)
        x = x_ptr + of_x * x_strides[0] + d * x_strides[1] + start * x_strides[2]
        w_real, w_imag = _load_powers(powers_ptr, v, length, CHUNK, BLOCK_N)
        chunks = (length + CHUNK - 1) // CHUNK
        states = _states(states_ptr, v * chunks_of_all, cu_seqlens_ptr, row, start, L, CHUNK, BLOCK_N)
        for block in range(0, chunks, COLUMNS):
            chunk = block + column
            state_real, state_imag = _load_states(states, chunk, chunks, BLOCK_N)
            if FROM_END:
                at, inside = _from_end(length, chunk, 0, CHUNK)
            else:
                at, inside = _from_start(length, chunk, CHUNK)
                state_imag = -state_imag
            tile = tl.load(x + at * x_strides[2], mask=inside, other=0.0)
            sum_real, sum_imag = _mode_sums(w_real, w_imag, tile, STATE_PRECISION)
            sum_real, sum_imag = _sum_of_products(state_real, state_imag, sum_real, sum_imag)
            own_real, own_imag = own_real + sum_real, own_imag + sum_imag
            if FROM_END:
                at, inside = _from_end(length, chunk, 1, CHUNK)
                tile = tl.load(x + at * x_strides[2], mask=inside, other=0.0)
            sum_real, sum_imag = _mode_sums(w_real, w_imag, tile.to(tl.float32) * late, STATE_PRECISION)
            sum_real, sum_imag = _sum_of_products(state_real, state_imag, sum_real, sum_imag)
            late_real, late_imag = late_real + sum_real, late_imag + sum_imag
    sums = sums_ptr + (slot * 2 * D + d) * (2 * N)
    _store_modes(sums, n, N, own_real, own_imag)
    _store_modes(sums + D * (2 * N), n, N, late_real, late_imag)


@triton.jit
def diagonal_scan_lags_kernel(
    dy_ptr,  # [B,D,L]
    dy_strides,
    u_ptr,  # [B,D,L]
    u_strides,
    z_ptr,  # [D,N,2]
    z_strides,
    cu_seqlens_ptr,  # [rows + 1], contiguous, or None: rows = B
    states_ptr,  # [D GROUPS,chunks,2,BLOCK_N] float32, contiguous: before each chunk
    gradients_ptr,  # likewise of the states after each chunk
    sums_ptr,  # [slots,1,D,N,2] float32, contiguous
    lags_ptr,  # [slots,D GROUPS,CHUNK,CHUNK] float32, contiguous
    chunks_of_all,
    rows,
    rows_per_slot,
    channels,  # D GROUPS
    L,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """A program BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    Over chunks of r steps, the products of u and dy, both counted from the end, and sum g conj(r z^(r-1) h).
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), (tl.program_id(0) // channels).to(tl.int64)
    d, D = v // GROUPS, channels // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, COLUMNS)
    z_real, z_imag = _load_modes(z_ptr, z_strides, d, n, N)
    lags = tl.zeros([CHUNK, CHUNK], tl.float32)
    full_real, full_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    last_real, last_imag = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    longest = 0
    first_row = (tl.program_id(0) // channels) * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, rows)):
        row = 0 * v + number
        of_u, start, length = _text(cu_seqlens_ptr, row, L)
        u = u_ptr + of_u * u_strides[0] + d * u_strides[1] + start * u_strides[2]
        dy = dy_ptr + of_u * dy_strides[0] + d * dy_strides[1] + start * dy_strides[2]
        chunks = (length + CHUNK - 1) // CHUNK
        states = _states(states_ptr, v * chunks_of_all, cu_seqlens_ptr, row, start, L, CHUNK, BLOCK_N)
        gradients = _states(gradients_ptr, v * chunks_of_all, cu_seqlens_ptr, row, start, L, CHUNK, BLOCK_N)
        for block in range(0, chunks, COLUMNS):
            at, inside = _from_end(length, block + column, 0, CHUNK)
            u_back = tl.load(u + at * u_strides[2], mask=inside, other=0.0).to(tl.float32)
            dy_back = tl.load(dy + at * dy_strides[2], mask=inside, other=0.0).to(tl.float32)
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
        h_real, h_imag = _times(slope_real, slope_imag, h_real, h_imag)
        sum_real, sum_imag = _times(g_real, g_imag, h_real, -h_imag)
        last_real, last_imag = last_real + sum_real, last_imag + sum_imag
        longest = tl.maximum(longest, length)
    # Growing modes overflow beyond the longest text, where there is no chunk to multiply.
    slope_real, slope_imag = _slope(z_real, z_imag, 0 * n + tl.minimum(longest, CHUNK))
    full_real, full_imag = _times(slope_real, -slope_imag, full_real, full_imag)
    _store_modes(sums_ptr + (slot * D + d) * (2 * N), n, N, full_real + last_real, full_imag + last_imag)
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
    z_ptr,  # [D,N,2]
    z_strides,
    b_ptr,  # [D,N,2]
    b_strides,
    c_ptr,  # [D,N,2]
    c_strides,
    powers_ptr,
    of_u_ptr,  # [slots,2,D,N,2]: of diagonal_scan_sums_kernel
    of_dy_ptr,  # [slots,2,D,N,2]
    of_states_ptr,  # [slots,1,D,N,2]: of diagonal_scan_lags_kernel
    lags_ptr,  # [slots,D GROUPS,CHUNK,CHUNK]
    dz_ptr,  # [D,N,2] float32, contiguous
    db_ptr,
    dc_ptr,
    dd_skip_ptr,  # [D] float32, contiguous, or None
    slots,
    channels,  # D GROUPS
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program BLOCK_N modes of a channel: what went through states, with its factors, and what through the taps.

    With r_l the sum of u_t dy_{t+l} within chunks, the gradient of k_l, that is 2 conj(c) sum r_l conj(z^l) of db, the
    same with b of dc, and 2 conj(b c) sum r_l l conj(z^(l-1)) of dz.
    """
    v = tl.program_id(0).to(tl.int64)
    d, D = v // GROUPS, channels // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Conjugates, and c twice.
    z_real, z_imag = _load_modes(z_ptr, z_strides, d, n, N)
    b_real, b_imag = _load_modes(b_ptr, b_strides, d, n, N)
    c_real, c_imag = _load_modes(c_ptr, c_strides, d, n, N)
    z_imag, b_imag, c_real, c_imag = -z_imag, -b_imag, 2 * c_real, -2 * c_imag
    w_real, w_imag = _load_powers(powers_ptr, v, CHUNK, CHUNK, BLOCK_N)
    lags = _lag_sums(lags_ptr, slots, channels, v, 0, CHUNK)
    if dd_skip_ptr is not None:
        same = tl.sum(tl.where(tl.arange(0, CHUNK) == 0, lags, 0.0), 0)
        tl.store(dd_skip_ptr + d, same, mask=v % GROUPS == 0)
    taps_real, taps_imag = _sum_of_lags(lags, w_real), -_sum_of_lags(lags, w_imag)
    own = d * (2 * N)

    real, imag = _sum_slots(of_u_ptr, slots, 0, 2, d, D, n, N)
    through_real, through_imag = _times(c_real, c_imag, taps_real, taps_imag)
    _store_modes(db_ptr + own, n, N, real + through_real, imag + through_imag)

    real, imag = _sum_slots(of_dy_ptr, slots, 0, 2, d, D, n, N)
    real, imag = _times(z_real, z_imag, real, imag)
    through_real, through_imag = _times(b_real, b_imag, taps_real, taps_imag)
    _store_modes(dc_ptr + own, n, N, 2 * (real + through_real), 2 * (imag + through_imag))

    lags = _lag_sums(lags_ptr, slots, channels, v, 1, CHUNK) * tl.arange(1, CHUNK + 1).to(tl.float32)
    taps_real, taps_imag = _sum_of_lags(lags, w_real), -_sum_of_lags(lags, w_imag)
    through_real, through_imag = _times(c_real, c_imag, taps_real, taps_imag)
    real, imag = _sum_slots(of_u_ptr, slots, 1, 2, d, D, n, N)
    of_b_real, of_b_imag = _times(b_real, b_imag, real + through_real, imag + through_imag)
    real, imag = _sum_slots(of_dy_ptr, slots, 1, 2, d, D, n, N)
    of_c_real, of_c_imag = _times(c_real, c_imag, real, imag)
    real, imag = _sum_slots(of_states_ptr, slots, 0, 1, d, D, n, N)
    _store_modes(dz_ptr + own, n, N, real + of_b_real + of_c_real, imag + of_b_imag + of_c_imag)


@triton.jit
def diagonal_scan_step_kernel(
    u_ptr,  # [B,D,1]
    u_strides,
    z_ptr,  # [D,N,2]
    z_strides,
    b_ptr,  # [D,N,2]
    b_strides,
    c_ptr,  # [D,N,2]
    c_strides,
    d_skip_ptr,  # [D] or None
    h0_ptr,  # [B,D,N,2] or None
    h0_strides,
    y_ptr,  # [B,D,1], contiguous
    h_ptr,  # [B,D,N,2] float32, contiguous
    D,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program BLOCK_D channels of a row."""
    blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    u = tl.load(u_ptr + row * u_strides[0] + d * u_strides[1], mask=d < D, other=0.0).to(tl.float32)
    y = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N))[None, :]
        known = (d < D)[:, None] & (n < N)
        b = b_ptr + d[:, None] * b_strides[0] + n * b_strides[1]
        h_real = u[:, None] * tl.load(b, mask=known, other=0.0)
        h_imag = u[:, None] * tl.load(b + b_strides[2], mask=known, other=0.0)
        if h0_ptr is not None:
            z = z_ptr + d[:, None] * z_strides[0] + n * z_strides[1]
            h0 = h0_ptr + row * h0_strides[0] + d[:, None] * h0_strides[1] + n * h0_strides[2]
            kept_real, kept_imag = _times(
                tl.load(z, mask=known, other=0.0),
                tl.load(z + z_strides[2], mask=known, other=0.0),
                tl.load(h0, mask=known, other=0.0),
                tl.load(h0 + h0_strides[3], mask=known, other=0.0),
            )
            h_real, h_imag = h_real + kept_real, h_imag + kept_imag
        h = h_ptr + ((row * D + d[:, None]) * N + n) * 2
        tl.store(h, h_real, mask=known)
        tl.store(h + 1, h_imag, mask=known)
        c = c_ptr + d[:, None] * c_strides[0] + n * c_strides[1]
        c_real = tl.load(c, mask=known, other=0.0)
        c_imag = tl.load(c + c_strides[2], mask=known, other=0.0)
        y += 2 * tl.sum(c_real * h_real - c_imag * h_imag, 1)
    if d_skip_ptr is not None:
        y += tl.load(d_skip_ptr + d, mask=d < D, other=0.0).to(tl.float32) * u
    tl.store(y_ptr + row * D + d, y, mask=d < D)


def _parts(tensor: Tensor) -> Tensor:
    """Real and imaginary part in a last axis of two: a view, unless the tensor is a conjugate not yet computed."""
    return torch.view_as_real(tensor.resolve_conj())


def _by_time(tensor: Tensor) -> Tensor:
    """With its times side by side in memory, by a copy if need be: a program walks through those of one channel."""
    return tensor if tensor.stride(-1) in (0, 1) else tensor.contiguous()


def _modes(z: Tensor, b: Tensor, c: Tensor) -> dict:
    parts = {"z": _parts(z), "b": _parts(b), "c": _parts(c)}
    arguments = {f"{name}_ptr": tensor for name, tensor in parts.items()}
    return arguments | {f"{name}_strides": tensor.stride() for name, tensor in parts.items()}


def _state(name: str, state: Tensor | None) -> dict:
    state = None if state is None else _parts(state)
    return {f"{name}_ptr": state, f"{name}_strides": strides(state)}


def state_rows(u: Tensor, cu_seqlens: Tensor | None) -> int:
    return u.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


def chunk_of(length: int) -> int:
    """CHUNK for texts of about so many steps."""
    return next((size for size in CHUNKS if size * COLUMNS >= length), CHUNKS[-1])


def _tables(modes: dict, d_skip: Tensor | None, u: Tensor, cu_seqlens: Tensor | None) -> dict:
    """The arguments that follow from modes and lengths: tables, sizes of tiles, where states of chunks would lie."""
    (D, N), (B, _, L), rows = modes["z_ptr"].shape[:2], u.shape, state_rows(u, cu_seqlens)
    chunk = chunk_of(L if cu_seqlens is None else triton.cdiv(L, rows))
    block_n = min(MOST_MODES, block_of(N))
    groups = triton.cdiv(N, block_n)
    new = {"dtype": torch.float32, "device": modes["z_ptr"].device}
    powers, taps = torch.empty(D * groups, 2, chunk, block_n, **new), torch.empty(D * groups, chunk, **new)
    arguments = {"powers_ptr": powers, "N": N, "GROUPS": groups, "BLOCK_N": block_n, "CHUNK": chunk}
    launch(
        diagonal_scan_tables_kernel,
        (D * groups,),
        **modes,
        **arguments,
        d_skip_ptr=d_skip,
        taps_ptr=taps,
        num_warps=4,
    )
    return arguments | {
        "cu_seqlens_ptr": cu_seqlens,
        "taps_ptr": taps,
        "chunks_of_all": B * triton.cdiv(L, chunk) if cu_seqlens is None else L // chunk + rows,
        "rows": rows,
        "channels": D * groups,
        "L": L,
        "COLUMNS": COLUMNS,
    }


def _scan(
    x: Tensor,
    modes: dict,
    state: Tensor | None,
    tables: dict,
    *,
    y: Tensor | None,
    h: Tensor | None,
    states: Tensor | None,
    reverse: bool,
) -> None:
    slots, rows_per_slot = slots_of(tables["rows"], tables["channels"], fillings=8)
    launch(
        diagonal_scan_kernel,
        (slots * tables["channels"],),
        **modes,
        **_state("h0", state),
        **tables,
        x_ptr=x,
        x_strides=x.stride(),
        y_ptr=y,
        h_ptr=h,
        states_ptr=states,
        rows_per_slot=rows_per_slot,
        REVERSE=reverse,
        PRECISION=dot_precision(diagonal_scan_kernel, x),
        STATE_PRECISION=dot_precision(diagonal_scan_kernel, modes["z_ptr"]),
        num_warps=WARPS,
        num_stages=1,
    )


def _of_groups(u: Tensor, groups: int) -> Tensor:
    """[B,D,GROUPS,L] in the dtype of u; float32 where there are sums of groups to come."""
    return torch.empty(
        *u.shape[:2], groups, u.shape[2], dtype=u.dtype if groups == 1 else torch.float32, device=u.device
    )


def _add_groups(steps: Tensor, u: Tensor) -> Tensor:
    return steps.view(u.shape) if steps.shape[2] == 1 else steps.sum(2).to(u.dtype)


def diagonal_scan(
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y [B,D,L] in the dtype of u and the states [rows,D,N] complex64 after the last steps."""
    (B, D, L), N = u.shape, z.shape[1]
    modes, d_skip, cu_seqlens = _modes(z, b, c), contiguous(d_skip), contiguous(cu_seqlens)
    h = torch.empty(state_rows(u, cu_seqlens), D, N, 2, dtype=torch.float32, device=u.device)
    if L == 1 and cu_seqlens is None:
        y = torch.empty(B, D, 1, dtype=u.dtype, device=u.device)
        block_n = min(MOST_MODES, triton.next_power_of_2(N))
        block_d = min(NUMBERS_OF_A_STEP // block_n, triton.next_power_of_2(D))
        launch(
            diagonal_scan_step_kernel,
            (B * triton.cdiv(D, block_d),),
            **modes,
            **_state("h0", h0),
            u_ptr=u,
            u_strides=u.stride(),
            d_skip_ptr=d_skip,
            y_ptr=y,
            h_ptr=h,
            D=D,
            N=N,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=4,
        )
        return y, torch.view_as_complex(h)
    u = _by_time(u)
    tables = _tables(modes, d_skip, u, cu_seqlens)
    y = _of_groups(u, tables["GROUPS"])
    _scan(u, modes, h0, tables, y=y, h=h, states=None, reverse=False)
    return _add_groups(y, u), torch.view_as_complex(h)


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
    """The gradients of u, z, b, c, d_skip and h0 in their dtypes, None where there is none; dh None is zero."""
    D, N = z.shape
    u, dy = _by_time(u), _by_time(dy)
    modes, d_skip, cu_seqlens = _modes(z, b, c), contiguous(d_skip), contiguous(cu_seqlens)
    tables = _tables(modes, d_skip, u, cu_seqlens)
    rows, channels, chunk = tables["rows"], tables["channels"], tables["CHUNK"]
    new = {"dtype": torch.float32, "device": u.device}
    du, dh0 = _of_groups(u, tables["GROUPS"]), None if h0 is None else torch.empty(rows, D, N, 2, **new)
    # Before each chunk, and the gradients after it: as many numbers as 2 N / chunk sequences each.
    states, gradients = (torch.empty(channels, tables["chunks_of_all"], 2, tables["BLOCK_N"], **new) for _ in range(2))
    _scan(u, modes, h0, tables, y=None, h=None, states=states, reverse=False)
    _scan(dy, modes, dh, tables, y=du, h=dh0, states=gradients, reverse=True)
    slots, rows_per_slot = slots_of(rows, channels)
    pairs = {name: value for name, value in tables.items() if name != "taps_ptr"} | {"rows_per_slot": rows_per_slot}
    of_u, of_dy = (torch.empty(slots, 2, D, N, 2, **new) for _ in range(2))
    for x, met, sums, from_end in ((u, gradients, of_u, True), (dy, states, of_dy, False)):
        launch(
            diagonal_scan_sums_kernel,
            (slots * channels,),
            **pairs,
            x_ptr=x,
            x_strides=x.stride(),
            states_ptr=met,
            sums_ptr=sums,
            FROM_END=from_end,
            STATE_PRECISION=dot_precision(diagonal_scan_sums_kernel, sums),
            num_warps=WARPS,
            num_stages=1,
        )
    of_states = torch.empty(slots, 1, D, N, 2, **new)
    lags = torch.empty(slots, channels, chunk, chunk, **new)
    del pairs["powers_ptr"]
    launch(
        diagonal_scan_lags_kernel,
        (slots * channels,),
        **pairs,
        dy_ptr=dy,
        dy_strides=dy.stride(),
        u_ptr=u,
        u_strides=u.stride(),
        z_ptr=modes["z_ptr"],
        z_strides=modes["z_strides"],
        states_ptr=states,
        gradients_ptr=gradients,
        sums_ptr=of_states,
        lags_ptr=lags,
        STATE_PRECISION=dot_precision(diagonal_scan_lags_kernel, lags),
        num_warps=WARPS,
        num_stages=1,
    )
    dz, db, dc = (torch.empty(D, N, 2, **new) for _ in range(3))
    dd_skip = None if d_skip is None else torch.empty(D, **new)
    launch(
        diagonal_scan_parameters_kernel,
        (channels,),
        **modes,
        **{name: tables[name] for name in ("powers_ptr", "channels", "N", "GROUPS", "BLOCK_N", "CHUNK")},
        of_u_ptr=of_u,
        of_dy_ptr=of_dy,
        of_states_ptr=of_states,
        lags_ptr=lags,
        dz_ptr=dz,
        db_ptr=db,
        dc_ptr=dc,
        dd_skip_ptr=dd_skip,
        slots=slots,
        num_warps=4,
    )
    dz, db, dc = map(torch.view_as_complex, (dz, db, dc))
    dd_skip = None if d_skip is None else dd_skip.to(d_skip.dtype)
    return _add_groups(du, u), dz, db, dc, dd_skip, None if h0 is None else torch.view_as_complex(dh0)
