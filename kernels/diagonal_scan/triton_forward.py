"""Diagonal recurrence with complex modes in Triton: the pass through time, forwards or backwards.

Shapes and method: `triton_chunks.py`.
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
    load_state,
    mode_sums,
    modes_of,
    power,
    state_of,
    state_rows,
    states_of_text,
    store_modes,
    times,
)
from .triton_step import scan_step


@triton.jit
def _load_toeplitz(taps_ptr, v, CHUNK: tl.constexpr):
    """T [CHUNK, CHUNK] of channel v."""
    lag = tl.arange(0, CHUNK)[:, None] - tl.arange(0, CHUNK)[None, :]
    return tl.load(taps_ptr + v * CHUNK + lag, mask=lag >= 0, other=0.0)


@triton.jit
def _column(tile, here):
    """The column of a tile that `here` marks, in float64."""
    return tl.sum(tl.where(here, tile, 0.0), 1).to(tl.float64)


@triton.jit
def _with_column(tile, here, column):
    return tl.where(here, column.to(tl.float32)[:, None], tile)


@triton.jit
def diagonal_scan_kernel(
    x,  # Strided [B,D,L]: u, or in REVERSE dy
    modes,  # Modes
    h0,  # Strided [rows,D,N,2], in REVERSE the gradient of h_T; or None
    texts,  # Texts
    tables,  # Tables
    y_ptr,  # [B,D,GROUPS,L], contiguous: y, in REVERSE du; or None
    h_ptr,  # [rows,D,N,2] float32, contiguous: h_T, in REVERSE the gradient of h0; or None
    states_ptr,  # [V,chunks,2,BLOCK_N] float32, contiguous: those that chunks start from; or None
    rows_per_slot,
    channels,  # V
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the rows of a slot, COLUMNS chunks at a time.

    The gradient g of the state after a chunk runs through the same lines from the last chunk to the first, with end and
    start exchanged: du from the end = T dy + 2 Re sum_n (conj(b) / 2) conj(w) g, and before the chunk
    g = conj(z^r) g + 2 conj(c z) sum conj(w) dy.
    """
    v, slot = (tl.program_id(0) % channels).to(tl.int64), tl.program_id(0) // channels
    d = v // GROUPS
    n = (v % GROUPS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, COLUMNS)
    z_real, z_imag = load_modes(modes.z, d, n, N)
    in_real, in_imag = load_modes(modes.b, d, n, N)
    c_real, c_imag = load_modes(modes.c, d, n, N)
    out_real, out_imag = times(2 * c_real, 2 * c_imag, z_real, z_imag)
    if REVERSE:
        z_imag = -z_imag
        in_real, in_imag, out_real, out_imag = out_real, -out_imag, in_real, -in_imag
    full_real, full_imag = power(z_real, z_imag, 0 * n + CHUNK)
    first_row = slot * rows_per_slot
    for number in range(first_row, tl.minimum(first_row + rows_per_slot, texts.rows)):
        row = 0 * v + number
        of_x, start, length = find_text(texts, row)
        sequence = at(x, (of_x, d, start))
        w_real, w_imag = load_powers(tables.powers_ptr, v, length, CHUNK, BLOCK_N)
        if REVERSE:
            w_imag = -w_imag
        chunks = (length + CHUNK - 1) // CHUNK
        blocks = (chunks + COLUMNS - 1) // COLUMNS
        tail_real, tail_imag = power(z_real, z_imag, 0 * n + (length - (chunks - 1) * CHUNK))
        h_real, h_imag = load_state(h0, row, d, n, N)
        for block in range(blocks):
            first = (blocks - 1 - block if REVERSE else block) * COLUMNS
            chunk = first + column
            if REVERSE:
                t, inside = from_start(length, chunk, CHUNK)
            else:
                t, inside = from_end(length, chunk, 0, CHUNK)
            reaching = tl.load(sequence + t * x.strides[2], mask=inside, other=0.0)
            added_real, added_imag = mode_sums(w_real, w_imag, reaching, STATE_PRECISION)  # [BLOCK_N, COLUMNS]
            added_real, added_imag = times(in_real[:, None], in_imag[:, None], added_real, added_imag)
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
                short_real, short_imag = times(tail_real, tail_imag, h_real, h_imag)
                h_real, h_imag = times(full_real, full_imag, h_real, h_imag)
                h_real = tl.where(last, short_real, h_real) + _column(added_real, here)
                h_imag = tl.where(last, short_imag, h_imag) + _column(added_imag, here)
            if states_ptr is not None:
                states = states_of_text(states_ptr, v, texts, row, start, CHUNK, BLOCK_N)
                states += chunk[None, :] * (2 * BLOCK_N) + tl.arange(0, BLOCK_N)[:, None]
                tl.store(states, before_real, mask=(chunk < chunks)[None, :])
                tl.store(states + BLOCK_N, before_imag, mask=(chunk < chunks)[None, :])
            if y_ptr is not None:
                from_real, from_imag = times(out_real[:, None], out_imag[:, None], before_real, before_imag)
                if REVERSE:
                    t, inside = from_end(length, chunk, 0, CHUNK)
                else:
                    t, inside = from_start(length, chunk, CHUNK)
                own = tl.load(sequence + t * x.strides[2], mask=inside, other=0.0)
                steps = dot(_load_toeplitz(tables.taps_ptr, v, CHUNK), own, PRECISION)
                steps += dot(w_real, from_real, PRECISION) - dot(w_imag, from_imag, PRECISION)
                tl.store(y_ptr + (of_x * channels + v) * texts.L + start + t, steps, mask=inside)
        if h_ptr is not None:
            store_modes(h_ptr + (row * (channels // GROUPS) + d) * (2 * N), n, N, h_real, h_imag)


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
    slots, rows_per_slot = slots_of(plan.rows, plan.channels, fillings=8)
    launch(
        diagonal_scan_kernel,
        (slots * plan.channels,),
        x=strided(x),
        modes=plan.modes,
        h0=state_of(state),
        texts=plan.texts,
        tables=plan.tables,
        y_ptr=y,
        h_ptr=h,
        states_ptr=states,
        rows_per_slot=rows_per_slot,
        channels=plan.channels,
        **plan.tile,
        COLUMNS=COLUMNS,
        REVERSE=reverse,
        PRECISION=dot_precision(diagonal_scan_kernel, x),
        STATE_PRECISION=dot_precision(diagonal_scan_kernel, plan.tables.powers_ptr),
        num_warps=WARPS,
        num_stages=1,
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
    plan = Plan(modes, d_skip, u, cu_seqlens)
    y = outputs_of_groups(u, plan.groups)
    scan(u, h0, plan, y=y, h=h, states=None, reverse=False)
    return add_groups(y, u), torch.view_as_complex(h)
