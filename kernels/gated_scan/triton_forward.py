"""Linear recurrence with real gates in Triton: the forward pass. Shapes: `triton_tiles.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.packed import kept_states
from ..common.strided import load, strided
from ..common.triton_scans import scan, step_of
from ..launch import launch
from .shapes import ENOUGH_FORWARD, KEPT
from .triton_tiles import Plan, carry, channels_of_program, find_piece, load_tile


@triton.jit(do_not_specialize=["pieces", "T"])
def gated_scan_kernel(
    a,  # Strided [B,T,D], and so b
    b,
    initial_state,  # Strided [texts,D], or None: 0
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    totals,  # Totals, or None: of one piece
    h_ptr,  # [B,T,D], contiguous
    last_state_ptr,  # [texts,D] float32, contiguous
    states_ptr,  # [kept,D] float32, contiguous, or None
    pieces,
    T,
    D,
    KEPT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes BLOCK_D channels of a piece of a text."""
    d, d_inside, number = channels_of_program(D, BLOCK_D)
    text, piece = number // pieces, number % pieces
    row, first, end, kept = find_piece(cu_seqlens_ptr, text, piece, pieces, T, KEPT)
    h = tl.zeros([BLOCK_D], tl.float32)
    if initial_state is not None:
        h += load(initial_state, (text, d), mask=d_inside).to(tl.float32)
    if totals is not None:
        h = carry(totals, h, text, 0, piece, 1, pieces, D, d, d_inside)
    for start in range(first, end, BLOCK_T):
        if states_ptr is not None:
            tl.store(states_ptr + (kept + (start - first) // KEPT) * D + d, h, mask=d_inside)
        t = start + tl.arange(0, BLOCK_T)
        decay, value = load_tile(a, row, t, end, d, d_inside, 1.0), load_tile(b, row, t, end, d, d_inside, 0.0)
        states, _ = scan(decay, value, h)
        h = step_of(states, BLOCK_T - 1)
        inside = (t < end)[:, None] & d_inside[None, :]
        tl.store(h_ptr + ((row * T + t) * D)[:, None] + d[None, :], states, mask=inside)
    if piece == pieces - 1:
        tl.store(last_state_ptr + text * D + d, h, mask=d_inside)


def gated_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h in the dtype of b, the last state [texts,D] float32, and the kept states [kept,D]."""
    B, T, D = b.shape
    plan = Plan(a, cu_seqlens, ENOUGH_FORWARD)
    h = torch.empty(B, T, D, dtype=b.dtype, device=b.device)
    last_state = torch.empty(plan.texts, D, dtype=torch.float32, device=b.device)
    kept = kept_states(B, T, KEPT, cu_seqlens) if keep_states else 0
    states = torch.empty(kept, D, dtype=torch.float32, device=b.device)
    launch(
        gated_scan_kernel,
        plan.grid,
        b=strided(b),
        initial_state=strided(initial_state),
        totals=plan.totals(b, reverse=False),
        h_ptr=h,
        last_state_ptr=last_state,
        states_ptr=states if keep_states else None,
        BLOCK_T=1 if T == 1 else KEPT,
        **plan.arguments,
    )
    return h, last_state, states
