"""Mamba's selective scan for a real A in Triton: the gradients. Shapes: `triton_blocks.py`."""

# In a kernel, what a constexpr decides is bound wherever it is read.
# pyright: reportPossiblyUnboundVariable=false

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_scans import find_text, scan, scan_back, step_of
from ..launch import launch
from .inputs import Inputs
from .shapes import backward_steps, laid_out_like, warps_of
from .triton_blocks import (
    LOG2_E,
    by_group,
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
from .triton_sums import summed

# Of a tile, in each thread: with the states and their gradients, products and sums, half of what the forward pass has.
NUMBERS = 16
_LN_2 = tl.constexpr(math.log(2))


class Gradients(NamedTuple):
    """Outputs of the backward kernel, all contiguous but the first three; parts are float32."""

    du_ptr: Any
    """[batch,D,L], and so of delta and z, or None."""
    ddelta_ptr: Any
    dz_ptr: Any
    strides: tuple[int, ...]
    """Of these three."""
    dinitial_state_ptr: Any
    """[texts,D,N], or None."""
    dA_ptr: Any
    """[texts,D,N]: a part for each text."""
    dB_ptr: Any
    """[parts,batch,B_GROUPS,N,L]: a part for each block of channels of a group; or as dA. dC likewise."""
    dC_ptr: Any
    dD_ptr: Any
    """[texts,D]: a part for each text; or None. That of the bias likewise."""
    ddelta_bias_ptr: Any


@triton.jit
def _store_part(ptr, x, part, batch, row, group, t, t_inside, n, L, N: tl.constexpr, GROUPS: tl.constexpr):
    """Store x [BLOCK_L, BLOCK_N] in [parts,batch,GROUPS,N,L]."""
    of_part = ((part * batch + row) * GROUPS + group) * N * L
    tl.store(ptr + of_part + n[None, :] * L + t[:, None], x, mask=t_inside[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["batch"])
def selective_scan_backward_kernel(
    dy,  # Strided [batch,D,L]
    dlast_state,  # Strided [texts,D,N], or None: 0
    inputs,  # KernelInputs
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    states_ptr,  # [kept,N,D] float32, contiguous
    out,  # Gradients
    batch,
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
    """Each program takes BLOCK_D channels of a group, of a sequence, backwards in time.

        dh_t = C_t g_t + e_{t+1},   e_t = a_t dh_t = a_t e_{t+1} + a_t C_t g_t

    with a_t = exp(delta_t A) and g_t = dy_t silu(z_t). The states of a block of steps are made again, from the state
    that was kept last before it. What belongs to a channel alone is added up in registers over all steps; dB_t and
    dC_t, sums over channels, are left in parts.
    """
    blocks: tl.constexpr = tl.cdiv(WIDTH // GROUPS, BLOCK_D)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    group = tl.program_id(0) // blocks % GROUPS
    text = (tl.program_id(0) // (blocks * GROUPS)).to(tl.int64)
    d, d_inside = channels_of_block(tl.program_id(0) % blocks, group, WIDTH // GROUPS, BLOCK_D)
    row, first, end, number = find_text(cu_seqlens_ptr, text, L, KEPT)
    B_group, C_group = group * B_GROUPS // GROUPS, group * C_GROUPS // GROUPS
    i = tl.arange(0, BLOCK_L)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    tile = (n < N)[:, None] & d_inside[None, :]  # [BLOCK_N, BLOCK_D]
    A2 = tl.load(inputs.A_ptr + d[None, :] * N + n[:, None], mask=tile, other=0.0).to(tl.float32) * LOG2_E
    D = load_channels(inputs.D_ptr, d, d_inside)
    delta_bias = load_channels(inputs.delta_bias_ptr, d, d_inside)
    e = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if dlast_state is not None:
        e += load(dlast_state, (text, d[None, :], n[:, None]), mask=tile).to(tl.float32)
    dA = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dB = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dC = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dD = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    ddelta_bias = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    block_count = tl.cdiv(end - first, BLOCK_L)
    # Nothing is moved out of this loop: parts of addresses would take the registers that tiles need.
    for done in tl.range(0, block_count, disable_licm=True):
        of_time = block_count - 1 - done
        kept = of_time // (KEPT // BLOCK_L)
        of_kept = ((number + kept) * N + n[:, None]) * WIDTH + d[None, :]
        h = tl.load(states_ptr + of_kept, mask=tile, other=0.0)
        for early in range(kept * (KEPT // BLOCK_L), of_time):
            t = first + early * BLOCK_L + i
            inside = (t < end)[:, None] & d_inside[None, :]
            delta = load_sequence(inputs.delta, row, t, d, inside)
            u = load_sequence(inputs.u, row, t, d, inside)
            B = load_matrix(inputs.B, row, B_group, t, t < end, n, d, d_inside, N, B_GROUPS)
            step, _ = steps_of(delta + delta_bias, inside, SOFTPLUS)
            states, _ = scan(tl.exp2(step[:, None, :] * A2[None, :, :]), (step * u)[:, None, :] * B, h)
            h = step_of(states, BLOCK_L - 1)

        # Whatever is loaded, before the first use of any of it.
        t = first + of_time * BLOCK_L + i
        t_inside = t < end
        inside = t_inside[:, None] & d_inside[None, :]
        delta = load_sequence(inputs.delta, row, t, d, inside)
        u = load_sequence(inputs.u, row, t, d, inside)
        g = load_sequence(dy, row, t, d, inside)
        if inputs.z is not None:
            z = load_sequence(inputs.z, row, t, d, inside)
        B = load_matrix(inputs.B, row, B_group, t, t_inside, n, d, d_inside, N, B_GROUPS)
        C = load_matrix(inputs.C, row, C_group, t, t_inside, n, d, d_inside, N, C_GROUPS)
        step, slope = steps_of(delta + delta_bias, inside, SOFTPLUS)
        decay = tl.exp2(step[:, None, :] * A2[None, :, :])
        states, before = scan(decay, (step * u)[:, None, :] * B, h)
        if inputs.z is not None:
            gate = sigmoid(z, exp_of_minus(tl.abs(z)))
            y = tl.sum(C * states, 1)
            if inputs.D_ptr is not None:
                y += D * u
            dz = g * y * gate * (1 + z * (1 - gate))
            tl.store(out.dz_ptr + sequence_offsets(out.strides, row, t, d), dz, mask=inside)
            g *= z * gate
        of_C = states * g[:, None, :]
        if C_GROUPS > 0:
            part = group % (GROUPS // C_GROUPS) * blocks + block
            _store_part(out.dC_ptr, tl.sum(of_C, 2), part, batch, row, C_group, t, t_inside, n, L, N, C_GROUPS)
        else:
            dC += tl.sum(of_C, 0)

        from_y = C * g[:, None, :]
        all_e, after = scan_back(decay, decay * from_y, e)
        e = step_of(all_e, 0)
        dh = from_y + after
        of_B = dh * (step * u)[:, None, :]
        if B_GROUPS > 0:
            part = group % (GROUPS // B_GROUPS) * blocks + block
            _store_part(out.dB_ptr, tl.sum(of_B, 2), part, batch, row, B_group, t, t_inside, n, L, N, B_GROUPS)
        else:
            dB += tl.sum(of_B, 0)
        dinput = tl.sum(dh * B, 1)
        of_decay = before * all_e  # and of its logarithm: before dh decay
        dA += tl.sum(of_decay * step[:, None, :], 0)
        ddelta = (_LN_2 * tl.sum(of_decay * A2[None, :, :], 1) + dinput * u) * slope
        tl.store(out.ddelta_ptr + sequence_offsets(out.strides, row, t, d), ddelta, mask=inside)
        ddelta_bias += tl.where(inside, ddelta, 0.0)
        du = dinput * step
        if inputs.D_ptr is not None:
            du += D * g
            dD += g * u
        tl.store(out.du_ptr + sequence_offsets(out.strides, row, t, d), du, mask=inside)
    of_text = (text * WIDTH + d[None, :]) * N + n[:, None]
    if out.dinitial_state_ptr is not None:
        tl.store(out.dinitial_state_ptr + of_text, e, mask=tile)
    tl.store(out.dA_ptr + of_text, dA, mask=tile)
    if B_GROUPS == 0:
        tl.store(out.dB_ptr + of_text, dB, mask=tile)
    if C_GROUPS == 0:
        tl.store(out.dC_ptr + of_text, dC, mask=tile)
    if out.dD_ptr is not None:
        tl.store(out.dD_ptr + text * WIDTH + d, tl.sum(dD, 0), mask=d_inside)
    if out.ddelta_bias_ptr is not None:
        tl.store(out.ddelta_bias_ptr + text * WIDTH + d, tl.sum(ddelta_bias, 0), mask=d_inside)


def selective_scan_backward(
    dy: Tensor, dlast_state: Tensor | None, states: Tensor, inputs: Inputs
) -> list[Tensor | None]:
    """The gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where there is none."""
    u, delta, A, B, C, D, z, delta_bias, _, initial_state, _ = inputs
    (width, N), texts, L = A.shape, inputs.texts, u.shape[2]
    arguments = operands(inputs)
    groups, channels = arguments["GROUPS"], arguments["BLOCK_D"]
    blocks, steps = triton.cdiv(width // groups, channels), backward_steps(N, L)

    def of_texts(*shape: int) -> Tensor:
        return torch.empty(texts, *shape, dtype=torch.float32, device=u.device)

    def parts_of(matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return of_texts(width, N)
        own = by_group(matrix).shape[1]
        shape = groups // own * blocks, u.shape[0], own, N, L
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    parts = [of_texts(width, N), parts_of(B), parts_of(C)]
    parts += [None if vector is None else of_texts(width) for vector in (D, delta_bias)]
    du, ddelta = laid_out_like(u, u.dtype), laid_out_like(u, delta.dtype)
    dz = None if z is None else laid_out_like(u, z.dtype)
    dinitial_state = None if initial_state is None else initial_state.new_empty(initial_state.shape)
    launch(
        selective_scan_backward_kernel,
        (texts * groups * blocks,),
        **arguments,
        dy=strided(dy),
        dlast_state=strided(dlast_state),
        states_ptr=states,
        out=Gradients(du, ddelta, dz, du.stride(), dinitial_state, *parts),
        batch=u.shape[0],
        BLOCK_L=steps,
        num_warps=warps_of(steps, N, channels, NUMBERS),
        num_stages=1,
    )
    dA, dB, dC, dD, ddelta_bias = summed(parts, (A, B, C, D, delta_bias))
    return [du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state]
