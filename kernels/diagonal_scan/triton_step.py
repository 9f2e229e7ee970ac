"""Diagonal recurrence with complex modes in Triton: a single step, as in decoding. Shapes: `triton_chunks.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import contiguous
from ..launch import launch
from .triton_chunks import MOST_MODES, Modes, state_of, times

# Modes that a program has on the chip.
NUMBERS_OF_A_STEP = 1024


@triton.jit
def diagonal_scan_step_kernel(
    u,  # Strided [B,D,1]
    modes,  # Modes
    d_skip_ptr,  # [D] or None
    h0,  # Strided [B,D,N,2] or None
    y_ptr,  # [B,D,1], contiguous
    h_ptr,  # [B,D,N,2] float32, contiguous
    D,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes BLOCK_D channels of a row."""
    blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = load(u, (row, d, 0), mask=d < D).to(tl.float32)
    y = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N))[None, :]
        known = (d < D)[:, None] & (n < N)
        h_real = x[:, None] * load(modes.b, (d[:, None], n, 0), mask=known)
        h_imag = x[:, None] * load(modes.b, (d[:, None], n, 1), mask=known)
        if h0 is not None:
            kept_real, kept_imag = times(
                load(modes.z, (d[:, None], n, 0), mask=known),
                load(modes.z, (d[:, None], n, 1), mask=known),
                load(h0, (row, d[:, None], n, 0), mask=known),
                load(h0, (row, d[:, None], n, 1), mask=known),
            )
            h_real, h_imag = h_real + kept_real, h_imag + kept_imag
        h = h_ptr + ((row * D + d[:, None]) * N + n) * 2
        tl.store(h, h_real, mask=known)
        tl.store(h + 1, h_imag, mask=known)
        c_real = load(modes.c, (d[:, None], n, 0), mask=known)
        c_imag = load(modes.c, (d[:, None], n, 1), mask=known)
        y += 2 * tl.sum(c_real * h_real - c_imag * h_imag, 1)
    if d_skip_ptr is not None:
        y += tl.load(d_skip_ptr + d, mask=d < D, other=0.0).to(tl.float32) * x
    tl.store(y_ptr + row * D + d, y, mask=d < D)


def scan_step(u: Tensor, modes: Modes, d_skip: Tensor | None, h0: Tensor | None, h: Tensor) -> Tensor:
    """Compute y [B,D,1] of u [B,D,1], and write the states after it to h [B,D,N,2]."""
    B, D, _ = u.shape
    N = h.shape[2]
    y = torch.empty(B, D, 1, dtype=u.dtype, device=u.device)
    block_n = min(MOST_MODES, triton.next_power_of_2(N))
    block_d = min(NUMBERS_OF_A_STEP // block_n, triton.next_power_of_2(D))
    launch(
        diagonal_scan_step_kernel,
        (B * triton.cdiv(D, block_d),),
        u=strided(u),
        modes=modes,
        d_skip_ptr=contiguous(d_skip),
        h0=state_of(h0),
        y_ptr=y,
        h_ptr=h,
        D=D,
        N=N,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return y
