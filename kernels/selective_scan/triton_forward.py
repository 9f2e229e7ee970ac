"""Mamba's selective scan for a real A in Triton: the forward pass. Shapes: `triton_blocks.py`."""

# In a kernel, what a constexpr decides is bound wherever it is read.
# pyright: reportPossiblyUnboundVariable=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.packed import kept_states
from ..common.strided import load, strided
from ..common.triton_scans import find_text, scan, step_of
from ..launch import launch
from .inputs import Inputs
from .shapes import KEPT, forward_steps, laid_out_like, warps_of
from .triton_blocks import (
    LOG2_E,
    channels_of_block,
    exp_of_minus,
    load_channels,
    load_matrix,
    load_sequence,
    operands,
    sequence_offsets,
    sigmoid,
    steps_of,
)

# Of a tile, in each thread.
NUMBERS = 32


@triton.jit
def selective_scan_kernel(
    inputs,  # KernelInputs
    initial_state,  # Strided [texts,D,N], or None: 0
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    y,  # Strided [batch,D,L]
    last_state_ptr,  # [texts,D,N] float32, contiguous
    states_ptr,  # [kept,N,D] float32, contiguous, or None
    L,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,  # of channels that share B and C
    B_GROUPS: tl.constexpr,  # 0: constant in time
    C_GROUPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes BLOCK_D channels of a group, of a sequence."""
    blocks: tl.constexpr = tl.cdiv(WIDTH // GROUPS, BLOCK_D)
    group = tl.program_id(0) // blocks % GROUPS
    text = (tl.program_id(0) // (blocks * GROUPS)).to(tl.int64)
    d, d_inside = channels_of_block(tl.program_id(0) % blocks, group, WIDTH // GROUPS, BLOCK_D)
    row, first, end, number = find_text(cu_seqlens_ptr, text, L, KEPT)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    tile = (n < N)[:, None] & d_inside[None, :]  # [BLOCK_N, BLOCK_D]
    A = tl.load(inputs.A_ptr + d[None, :] * N + n[:, None], mask=tile, other=0.0).to(tl.float32)
    A2 = A * LOG2_E
    D = load_channels(inputs.D_ptr, d, d_inside)
    delta_bias = load_channels(inputs.delta_bias_ptr, d, d_inside)
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if initial_state is not None:
        h += load(initial_state, (text, d[None, :], n[:, None]), mask=tile).to(tl.float32)
    for start in range(first, end, BLOCK_L):
        if states_ptr is not None:
            done = start - first + tl.zeros([1, 1], tl.int64)
            kept = ((number + done // KEPT) * N + n[:, None]) * WIDTH + d[None, :]
            tl.store(states_ptr + kept, h, mask=tile & (done % KEPT == 0))
        # Whatever is loaded, before the first use of any of it.
        t = start + tl.arange(0, BLOCK_L).to(tl.int64)
        inside = (t < end)[:, None] & d_inside[None, :]
        delta = load_sequence(inputs.delta, row, t, d, inside)
        u = load_sequence(inputs.u, row, t, d, inside)
        B = load_matrix(inputs.B, row, group * B_GROUPS // GROUPS, t, t < end, n, d, d_inside, N, B_GROUPS)
        C = load_matrix(inputs.C, row, group * C_GROUPS // GROUPS, t, t < end, n, d, d_inside, N, C_GROUPS)
        if inputs.z is not None:
            z = load_sequence(inputs.z, row, t, d, inside)
        step, _ = steps_of(delta + delta_bias, inside, SOFTPLUS)
        decay = tl.exp2(step[:, None, :] * A2[None, :, :])
        states, _ = scan(decay, (step * u)[:, None, :] * B, h)
        h = step_of(states, BLOCK_L - 1)
        output = tl.sum(C * states, 1)
        if inputs.D_ptr is not None:
            output += D * u
        if inputs.z is not None:
            output *= z * sigmoid(z, exp_of_minus(tl.abs(z)))
        tl.store(y.ptr + sequence_offsets(y.strides, row, t, d), output, mask=inside)
    tl.store(last_state_ptr + (text * WIDTH + d[None, :]) * N + n[:, None], h, mask=tile)


def selective_scan(inputs: Inputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y in the dtype of u, the last state [texts,D,N] float32, and the kept states [kept,N,D]."""
    (width, N), u, texts = inputs.A.shape, inputs.u, inputs.texts
    arguments = operands(inputs)
    y = laid_out_like(u, u.dtype)
    last_state = torch.empty(texts, width, N, dtype=torch.float32, device=u.device)
    kept = kept_states(u.shape[0], u.shape[2], KEPT, inputs.cu_seqlens) if keep_states else 0
    states = torch.empty(kept, N, width, dtype=torch.float32, device=u.device)
    groups, channels = arguments["GROUPS"], arguments["BLOCK_D"]
    steps = forward_steps(N, u.shape[2])
    launch(
        selective_scan_kernel,
        (texts * groups * triton.cdiv(width // groups, channels),),
        **arguments,
        initial_state=strided(inputs.initial_state),
        y=strided(y),
        last_state_ptr=last_state,
        states_ptr=states if keep_states else None,
        BLOCK_L=steps,
        num_warps=warps_of(steps, N, channels, NUMBERS),
    )
    return y, last_state, states
