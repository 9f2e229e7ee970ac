"""Diagonal recurrence with complex modes in Triton: the pass through time, forwards or backwards.

A tile has CHUNKS chunks of ROWS rows. Inside it states go by pairs: the sums of two chunks make that of both, up to the
whole tile, and from the state before the tile back down. From tile to tile a state is the sum of two float32 numbers,
and so is the power that it is multiplied by, whose rounding, the same each time, would add up. Shapes and method:
`triton_chunks.py`.
"""

# In a kernel, what a constexpr decides is bound wherever it is read.
# pyright: reportPossiblyUnboundVariable=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import at, load, strided
from ..common.triton_tiles import slots_of
from ..configurations import configured
from ..launch import launch
from .triton_chunks import (
    CHUNK,
    Plan,
    add_product,
    find_text,
    float32_terms,
    input_terms,
    load_level,
    load_power,
    load_table,
    load_terms,
    modes_of,
    parts,
    state_of,
    state_rows,
    states_of_text,
    store_modes,
    times,
    transposed,
)
from .triton_layout import by_time
from .triton_step import scan_step


class Tile(NamedTuple):
    """Chunks and rows that a program has on the chip at a time."""

    chunks: int
    rows: int
    warps: int
    stages: int
    """Loads on their way at a time."""


# Rows that lie side by side in a tile, where there are as many.
ROWS = 8


def tile_of(x: Tensor, rows: int, packed: bool, starts: bool) -> Tile:
    """The tile for inputs x [B,D,L]: of those that leave no register to spill, the one with most work for each warp.

    On chips without products of whole warp groups each warp holds the tables that it multiplies by. Inputs of 16 bits
    that are not bfloat16 or of 32 take more terms, times that are not aligned an address each, and what depends on the
    start of a sequence a second tile of inputs.
    """
    light = x.dtype == torch.bfloat16 and not starts
    if packed or rows < ROWS:
        return Tile(16, 1, 4 if starts else 1, 1)
    return Tile(8, ROWS, 4, 3) if light and x.shape[2] % 16 == 0 else Tile(4, ROWS, 4, 1)


@triton.jit
def _halves(x):
    """The even and the odd chunks of x [CHUNKS,ROWS,N]."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0] // 2, 2, x.shape[1], x.shape[2]]), (0, 2, 3, 1)))


@triton.jit
def _merged(even, odd):
    """The reverse of `_halves`."""
    x = tl.permute(tl.join(even, odd), (0, 3, 1, 2))
    return tl.reshape(x, [2 * even.shape[0], even.shape[1], even.shape[2]])


@triton.jit
def _states_before(added_real, added_imag, h_real, h_imag, powers, LEVEL: tl.constexpr):
    """States before each chunk [CHUNKS,ROWS,N], and what all chunks together add to that after them [ROWS,N].

    A chunk multiplies a state by z^CHUNK and adds `added`; h [ROWS,N] is the state before the first. `powers` has
    z^(CHUNK 2^k) at 2 k and 2 k + 1, real and imaginary, of which those from LEVEL on are for pairs of what is given.
    """
    if added_real.shape[0] == 1:
        before_real, before_imag = tl.expand_dims(h_real, 0), tl.expand_dims(h_imag, 0)
        total_real = tl.reshape(added_real, [added_real.shape[1], added_real.shape[2]])
        total_imag = tl.reshape(added_imag, [added_imag.shape[1], added_imag.shape[2]])
    else:
        z_real, z_imag = powers[2 * LEVEL][None, None, :], powers[2 * LEVEL + 1][None, None, :]
        even_real, odd_real = _halves(added_real)
        even_imag, odd_imag = _halves(added_imag)
        both_real, both_imag = times(z_real, z_imag, even_real, even_imag)
        first_real, first_imag, total_real, total_imag = _states_before(
            both_real + odd_real, both_imag + odd_imag, h_real, h_imag, powers, LEVEL + 1
        )
        second_real, second_imag = times(z_real, z_imag, first_real, first_imag)
        before_real = _merged(first_real, second_real + even_real)
        before_imag = _merged(first_imag, second_imag + even_imag)
    return before_real, before_imag, total_real, total_imag


@triton.jit
def _add_exactly(high, low, number):
    """high + low + number as the sum of two float32 numbers; low stays small."""
    total = high + number
    part = total - high
    return total, low + ((high - (total - part)) + (number - part))


@triton.jit
def _add_product_exactly(high, low, a, a_rest, b, b_rest):
    """high + low + (a + a_rest) (b + b_rest) as the sum of two float32 numbers."""
    # By fma, since a compiler may fuse a plain product with the sums after it, and its rounding would not be known.
    product = tl.fma(a, b, tl.zeros_like(high))
    high, low = _add_exactly(high, low + tl.fma(a, b, -product), product)
    return high, low + (a * b_rest + a_rest * b)


@triton.jit
def _moved_on(power, real, real_rest, imag, imag_rest, total_real, total_imag):
    """power h + total for a state h and a power that are sums of two float32 numbers each."""
    p_real, p_real_rest, p_imag, p_imag_rest = power
    zero = tl.zeros_like(total_real)
    new_real, rest = _add_product_exactly(total_real, zero, p_real[None, :], p_real_rest[None, :], real, real_rest)
    new_real, rest = _add_product_exactly(new_real, rest, -p_imag[None, :], -p_imag_rest[None, :], imag, imag_rest)
    new_real, new_real_rest = _add_exactly(rest, zero, new_real)
    new_imag, rest = _add_product_exactly(total_imag, zero, p_real[None, :], p_real_rest[None, :], imag, imag_rest)
    new_imag, rest = _add_product_exactly(new_imag, rest, p_imag[None, :], p_imag_rest[None, :], real, real_rest)
    new_imag, new_imag_rest = _add_exactly(rest, zero, new_imag)
    return new_real, new_real_rest, new_imag, new_imag_rest


@triton.jit
def _load_powers(tables, v, length, CHUNKS: tl.constexpr, REVERSE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Load z^(CHUNK 2^k) for the pairs inside a tile, real and imaginary parts in turn, and that of the whole tile."""
    real_0, _, imag_0, _ = load_level(tables.levels_ptr, v, 0, length, BLOCK_N, REVERSE)
    real_1, _, imag_1, _ = load_level(tables.levels_ptr, v, 1, length, BLOCK_N, REVERSE)
    pairs = (real_0, imag_0, real_1, imag_1)
    if CHUNKS == 4:
        whole = load_level(tables.levels_ptr, v, 2, length, BLOCK_N, REVERSE)
    else:
        real_2, _, imag_2, _ = load_level(tables.levels_ptr, v, 2, length, BLOCK_N, REVERSE)
        if CHUNKS == 8:
            pairs = (real_0, imag_0, real_1, imag_1, real_2, imag_2)
            whole = load_level(tables.levels_ptr, v, 3, length, BLOCK_N, REVERSE)
        else:
            real_3, _, imag_3, _ = load_level(tables.levels_ptr, v, 3, length, BLOCK_N, REVERSE)
            pairs = (real_0, imag_0, real_1, imag_1, real_2, imag_2, real_3, imag_3)
            whole = load_level(tables.levels_ptr, v, 4, length, BLOCK_N, REVERSE)
    return pairs, whole


@triton.jit
def _load_tables(
    tables, v, length, REVERSE: tl.constexpr, TERMS: tl.constexpr, OUTPUT_TERMS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Load the terms of what goes into states [CHUNK,2 BLOCK_N], from them [2 BLOCK_N,CHUNK] and past them."""
    HELD: tl.constexpr = TERMS if REVERSE else OUTPUT_TERMS
    step = tl.arange(0, CHUNK)
    lag = step[None, :] - step[:, None]
    if REVERSE:
        lag = -lag
        reach = load_table(tables.from_ptr, v, step < length, TERMS, TERMS, BLOCK_N)
        leave = load_table(tables.into_ptr, v, step + length >= CHUNK, OUTPUT_TERMS, TERMS, BLOCK_N)
    else:
        reach = load_table(tables.into_ptr, v, step + length >= CHUNK, TERMS, TERMS, BLOCK_N)
        leave = load_table(tables.from_ptr, v, step < length, OUTPUT_TERMS, OUTPUT_TERMS, BLOCK_N)
    taps = tables.taps_ptr + v * (HELD * 2 * CHUNK) + CHUNK + lag
    return reach, transposed(leave), load_terms(taps, 2 * CHUNK, OUTPUT_TERMS, lag < length)


@triton.jit
def _load_rows(state, row, d, n, mask):
    """Load real and imaginary part [rows, N] of a state [rows,D,N,2]; zeros where it is None."""
    if state is None:
        real = tl.zeros(mask.shape, tl.float32)
        imag = real
    else:
        real = load(state, (row[:, None], d, n[None, :], 0), mask=mask)
        imag = load(state, (row[:, None], d, n[None, :], 1), mask=mask)
    return real, imag


@triton.jit(do_not_specialize=["rows", "blocks_per_slot"])
def diagonal_scan_kernel(
    x,  # Strided [B,D,L]: u, or in REVERSE dy
    state,  # Strided [rows,D,N,2]: h0, in REVERSE the gradient of h_T; or None
    texts,  # Texts
    tables,  # Tables
    y_ptr,  # [B,D,GROUPS,L], contiguous: y, in REVERSE du; or None
    h_ptr,  # [rows,D,N,2] float32, contiguous: h_T, in REVERSE the gradient of h0; or None
    states_ptr,  # [V,chunks,2 BLOCK_N] float32, contiguous: what the run has before each chunk; or None
    rows,
    blocks_per_slot,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    REVERSE: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUT_TERMS: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the blocks of ROWS rows of a slot, a tile at a time.

    The gradient g of the state after a chunk runs through the same lines from the last chunk to the first, with the two
    tables of states exchanged: du = T' dy + Re sum_n conj(b z^(Q-1-s)) g, and before the chunk
    g = conj(z^Q) g + sum_t conj(2 c z^(t+1)) dy_t.
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), tl.program_id(0) // channels
    d = v // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column, step = tl.arange(0, CHUNKS * ROWS), tl.arange(0, CHUNK)[None, :]
    # Whether there is something that depends on where a sequence starts: h0, or its gradient.
    STARTS: tl.constexpr = h_ptr is not None if REVERSE else state is not None  # pyright: ignore[reportAssignmentType] (Triton makes it one)
    first_block = slot * blocks_per_slot
    for block in range(first_block, tl.minimum(first_block + blocks_per_slot, (rows + ROWS - 1) // ROWS)):
        of_x, start, length = find_text(texts, 0 * v + block * ROWS)
        row, own_row = 0 * v + block * ROWS + column % ROWS, 0 * v + block * ROWS + tl.arange(0, ROWS)
        sequences = at(x, (of_x + column % ROWS, d, start))
        chunks = (length + CHUNK - 1) // CHUNK
        tiles, missing = (chunks + CHUNKS - 1) // CHUNKS, chunks * CHUNK - length
        reach, leave, toeplitz = _load_tables(tables, v, length, REVERSE, TERMS, OUTPUT_TERMS, BLOCK_N)
        pairs, whole = _load_powers(tables, v, length, CHUNKS, REVERSE, BLOCK_N)
        own = (own_row < rows)[:, None] & (n < N)[None, :]
        h_real, h_imag = _load_rows(state if REVERSE else None, own_row, d, n, own)
        h_real_rest, h_imag_rest = tl.zeros([ROWS, BLOCK_N], tl.float32), tl.zeros([ROWS, BLOCK_N], tl.float32)
        if STARTS:
            # z^r for the r steps of the first chunk.
            first_real, first_imag = load_power(
                tables.powers_ptr, v, tl.maximum(length - (chunks - 1) * CHUNK, 1), BLOCK_N
            )
            if REVERSE:
                first_imag = -first_imag
            start_real, start_imag = _load_rows(state, own_row, d, n, own)
            left_real, left_imag = times(first_real[None, :], first_imag[None, :], start_real, start_imag)
            # A sequence without steps hands its state on.
            end_real, end_imag = tl.where(length == 0, start_real, 0.0), tl.where(length == 0, start_imag, 0.0)
        for tile in range(tiles):
            chunk = tile * CHUNKS + column // ROWS
            chunk = chunks - 1 - chunk if REVERSE else chunk + chunks - tiles * CHUNKS
            t = chunk[:, None] * CHUNK - missing + step
            t_out, inside = t, (t >= 0) & (row < rows)[:, None]
            inside_out = inside
            if STARTS:
                # The first chunk as if it began with the sequence.
                shift = tl.where(chunk == 0, missing, 0)[:, None]
                t_start = t + shift
                inside_start = (t_start >= 0) & (step + shift < CHUNK) & (row < rows)[:, None]
                if REVERSE:
                    t, inside = t_start, inside_start
                else:
                    t_out, inside_out = t_start, inside_start
            steps = input_terms(tl.load(sequences[:, None] + t * x.strides[2], mask=inside, other=0.0), TERMS)
            added = add_product(tl.zeros([CHUNKS * ROWS, 2 * BLOCK_N], tl.float32), steps, reach, TERMS)
            added_real, added_imag = parts(added)
            added_real = tl.reshape(added_real, [CHUNKS, ROWS, BLOCK_N])
            added_imag = tl.reshape(added_imag, [CHUNKS, ROWS, BLOCK_N])
            is_first = tl.reshape(chunk == 0, [CHUNKS, ROWS, 1])
            if STARTS and not REVERSE:
                added_real += tl.where(is_first, left_real[None, :, :], 0.0)
                added_imag += tl.where(is_first, left_imag[None, :, :], 0.0)
            before_real, before_imag, total_real, total_imag = _states_before(
                added_real, added_imag, h_real, h_imag, pairs, 0
            )
            if STARTS and REVERSE:
                last_real, last_imag = times(
                    first_real[None, None, :], first_imag[None, None, :], before_real, before_imag
                )
                end_real += tl.sum(tl.where(is_first, last_real + added_real, 0.0), 0)
                end_imag += tl.sum(tl.where(is_first, last_imag + added_imag, 0.0), 0)
            elif STARTS:
                # Before the first chunk there was nothing but zeros.
                before_real += tl.where(is_first, start_real[None, :, :], 0.0)
                before_imag += tl.where(is_first, start_imag[None, :, :], 0.0)
            h_real, h_real_rest, h_imag, h_imag_rest = _moved_on(
                whole, h_real, h_real_rest, h_imag, h_imag_rest, total_real, total_imag
            )
            before = tl.reshape(tl.join(before_real, before_imag), [CHUNKS * ROWS, 2 * BLOCK_N])
            if states_ptr is not None:
                states = states_of_text(states_ptr, v, texts, rows, row, start, BLOCK_N)
                states = (states + chunk * (2 * BLOCK_N))[:, None] + tl.arange(0, 2 * BLOCK_N)[None, :]
                tl.store(states, before, mask=((chunk >= 0) & (row < rows))[:, None])
            if y_ptr is not None:
                if STARTS:
                    tile_out = tl.load(sequences[:, None] + t_out * x.strides[2], mask=inside_out, other=0.0)
                    steps = input_terms(tile_out, TERMS)
                y = add_product(tl.zeros([CHUNKS * ROWS, CHUNK], tl.float32), steps, toeplitz, OUTPUT_TERMS)
                y = add_product(y, float32_terms(before, OUTPUT_TERMS), leave, OUTPUT_TERMS)
                outputs = y_ptr + ((of_x + column % ROWS) * channels + v) * texts.L + start
                tl.store(outputs[:, None] + t_out, y, mask=inside_out)
        if h_ptr is not None:
            if REVERSE:
                h_real, h_imag = end_real, end_imag
            elif STARTS:
                h_real, h_imag = h_real + end_real, h_imag + end_imag  # one of them 0
            h = h_ptr + ((own_row * (channels // GROUPS) + d) * (2 * N))[:, None]
            store_modes(h, n[None, :], h_real, h_imag, own)


def scan(
    x: Tensor,
    state: Tensor | None,
    plan: Plan,
    *,
    y: Tensor | None,
    h: Tensor | None,
    states: Tensor | None,
    reverse: bool,
) -> None:
    """Run through the sequences of x [B,D,L] from `state`, and write those of y, h and `states` that are wanted."""
    starts = (h if reverse else state) is not None
    tile = tile_of(x, plan.rows, plan.texts.cu_seqlens_ptr is not None, starts)
    slots, blocks_per_slot = slots_of(triton.cdiv(plan.rows, tile.rows), plan.channels, fillings=8)
    sizes = {"B": x.shape[0], "D": x.shape[1], "L": x.shape[2], "N": plan.tile["N"]}
    warps = configured(diagonal_scan_kernel, x, sizes, {"num_warps": tile.warps})
    launch(
        diagonal_scan_kernel,
        (slots * plan.channels,),
        x=strided(x),
        state=state_of(state),
        texts=plan.texts,
        tables=plan.tables,
        y_ptr=y,
        h_ptr=h,
        states_ptr=states,
        rows=plan.rows,
        blocks_per_slot=blocks_per_slot,
        channels=plan.channels,
        **plan.tile,
        CHUNKS=tile.chunks,
        ROWS=tile.rows,
        REVERSE=reverse,
        OUTPUT_TERMS=plan.terms_of_outputs,
        num_stages=tile.stages,
        **warps,
    )


def outputs_of_groups(u: Tensor, groups: int) -> Tensor:
    """[B,D,GROUPS,L] in the dtype of u; float32 where there are sums of groups to come."""
    return torch.empty(
        *u.shape[:2], groups, u.shape[2], dtype=u.dtype if groups == 1 else torch.float32, device=u.device
    )


def add_groups(steps: Tensor, u: Tensor) -> Tensor:
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
    """Compute y [B,D,L] in the dtype of u and the states [rows,D,N] complex64 after the last steps."""
    modes = modes_of(z, b, c)
    h = torch.empty(state_rows(u, cu_seqlens), *z.shape, 2, dtype=torch.float32, device=u.device)
    if u.shape[2] == 1 and cu_seqlens is None:
        return scan_step(u, modes, d_skip, h0, h), torch.view_as_complex(h)
    u = by_time(u)
    plan = Plan(modes, d_skip, u, cu_seqlens, gradients=False, starts=h0 is not None)
    y = outputs_of_groups(u, plan.groups)
    scan(u, h0, plan, y=y, h=h, states=None, reverse=False)
    return add_groups(y, u), torch.view_as_complex(h)
