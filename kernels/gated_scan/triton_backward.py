"""Linear recurrence with real gates in Triton: the gradients. Shapes: `triton_tiles.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_scans import scan, scan_back, step_of
from ..launch import launch
from .shapes import ENOUGH_BACKWARD
from .triton_tiles import Plan, carry, channels_of_program, find_piece, load_tile


@triton.jit(do_not_specialize=["pieces", "T"])
def gated_scan_backward_kernel(
    dh,  # Strided [B,T,D], and so a and b
    dlast_state,  # Strided [texts,D], or None: 0
    a,
    b,
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    states_ptr,  # [kept,D] float32, contiguous
    totals,  # Totals of e, or None: of one piece
    da_ptr,  # [B,T,D], contiguous, and so db
    db_ptr,
    dinitial_state_ptr,  # [texts,D], contiguous, or None
    pieces,
    T,
    D,
    KEPT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes BLOCK_D channels of a piece of a text, backwards in time.

        db_t = dh_t + e_{t+1},   da_t = h_{t-1} db_t,   e_t = a_t db_t = a_t e_{t+1} + a_t dh_t

    The states of a tile are made again, from the one that was kept before it.
    """
    d, d_inside, number = channels_of_program(D, BLOCK_D)
    text, piece = number // pieces, number % pieces
    row, first, end, kept = find_piece(cu_seqlens_ptr, text, piece, pieces, T, KEPT)
    e = tl.zeros([BLOCK_D], tl.float32)
    if dlast_state is not None:
        e += load(dlast_state, (text, d), mask=d_inside).to(tl.float32)
    if totals is not None:
        e = carry(totals, e, text, pieces - 1, piece, -1, pieces, D, d, d_inside)
    tiles = tl.cdiv(end - first, KEPT)
    for done in range(tiles):
        tile = tiles - 1 - done
        t = first + tile * KEPT + tl.arange(0, KEPT)
        h = tl.load(states_ptr + (kept + tile) * D + d, mask=d_inside, other=0.0)
        decay, value = load_tile(a, row, t, end, d, d_inside, 1.0), load_tile(b, row, t, end, d, d_inside, 0.0)
        g = load_tile(dh, row, t, end, d, d_inside, 0.0)
        _, before = scan(decay, value, h)
        all_e, after = scan_back(decay, decay * g, e)
        e = step_of(all_e, 0)
        g += after
        inside = (t < end)[:, None] & d_inside[None, :]
        of = ((row * T + t) * D)[:, None] + d[None, :]
        tl.store(da_ptr + of, g * before, mask=inside)
        tl.store(db_ptr + of, g, mask=inside)
    if dinitial_state_ptr is not None and piece == 0:
        tl.store(dinitial_state_ptr + text * D + d, e, mask=d_inside)


def gated_scan_backward(
    dh: Tensor,
    dlast_state: Tensor | None,
    states: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of a, b and the initial state; None where there is none."""
    plan = Plan(a, cu_seqlens, ENOUGH_BACKWARD)
    da, db = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (a, b))
    dinitial_state = None if initial_state is None else initial_state.new_empty(initial_state.shape)
    launch(
        gated_scan_backward_kernel,
        plan.grid,
        dh=strided(dh),
        dlast_state=strided(dlast_state),
        b=strided(b),
        states_ptr=states,
        totals=plan.totals(dh, reverse=True),
        da_ptr=da,
        db_ptr=db,
        dinitial_state_ptr=dinitial_state,
        **plan.arguments,
    )
    return [da, db, dinitial_state]
