"""Mamba's selective scan for a real A in Triton: the gradients. Shapes: `triton_blocks.py`."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import slots_of
from ..launch import launch
from .inputs import Inputs
from .shapes import FEW_MODES, laid_out_like
from .triton_blocks import (
    LOG2_E,
    by_group,
    channels_of_block,
    exp_of_minus,
    find_text,
    first_step,
    load_channels,
    load_matrix,
    load_sequence,
    load_steps,
    numbers_of_a_tile,
    operands,
    scan_block,
    scanned,
    sequence_offsets,
    sigmoid,
)


class Gradients(NamedTuple):
    """Outputs of the backward kernel; all float32 and contiguous but the first three."""

    du_ptr: Any
    """[batch,D,L], and so of delta and z, or None."""
    ddelta_ptr: Any
    dz_ptr: Any
    strides: tuple[int, ...]
    """Of these three."""
    dstate_ptr: Any
    """[texts,N,D]: of the last state, and at the end of the initial one."""
    dA_ptr: Any
    """[texts,N,D]: added to."""
    dB_ptr: Any
    """[slots,batch,GROUPS,N,L]: a part for each slot; or as dA. dC likewise."""
    dC_ptr: Any
    dD_ptr: Any
    """[texts,D]: added to; or None. That of the bias likewise."""
    ddelta_bias_ptr: Any


@triton.jit
def _turned(x, BLOCK_L: tl.constexpr):
    """The last step first."""
    if BLOCK_L > 1:
        x = tl.flip(x, 0)
    return x


@triton.jit
def _add(ptr, x, mask):
    tl.store(ptr, tl.load(ptr, mask=mask, other=0.0) + x, mask=mask)


@triton.jit
def selective_scan_backward_kernel(
    dy,  # Strided [batch,D,L]
    inputs,  # KernelInputs
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    states_ptr,  # [blocks of all sequences,N,D] float32, contiguous: the state before each block of steps
    out,  # Gradients
    batch,
    L,
    slots,
    blocks_per_slot,  # how many blocks of channels a program takes at each block of steps
    WIDTH: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,  # of channels that share B and C
    B_GROUPS: tl.constexpr,  # 0: constant in time
    C_GROUPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes a slot of a group's channels in a sequence; backwards in time, block after block of channels.

        dh_t = C_t g_t + a_{t+1} dh_{t+1}           with a_t = exp(delta_t A) and g_t = dy_t silu(z_t)

    The states are made again from the one before the block of steps. dh is a forward scan of what is turned before and
    after: with the steps of a mode in one thread that only renames registers. What belongs to a channel alone is added
    up in memory that only this program touches; dB_t and dC_t, over the channels of the slot, in registers.
    """
    slot = (tl.program_id(0) % slots).to(tl.int64)
    group = tl.program_id(0) // slots % GROUPS
    text = (tl.program_id(0) // (slots * GROUPS)).to(tl.int64)
    row, first, end, number = find_text(cu_seqlens_ptr, text, L, BLOCK_L)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    i = tl.arange(0, BLOCK_L)
    B_group, C_group = group * B_GROUPS // GROUPS, group * C_GROUPS // GROUPS
    block_count = tl.cdiv(end - first, BLOCK_L)
    # Nothing is moved out of these loops: parts of addresses would take the registers that tiles need.
    for done in tl.range(0, block_count, disable_licm=True):
        of_time = block_count - 1 - done
        t = first + of_time * BLOCK_L + i
        t_inside, before_inside = t < end, (i > 0) & (t <= end)
        dB = tl.zeros([BLOCK_L, BLOCK_N, BLOCK_D], tl.float32)
        dC = tl.zeros([BLOCK_L, BLOCK_N, BLOCK_D], tl.float32)
        for block in tl.range(0, blocks_per_slot, disable_licm=True):
            d, d_inside = channels_of_block(slot * blocks_per_slot + block, group, WIDTH // GROUPS, BLOCK_D)
            tile = (n < N)[:, None] & d_inside[None, :]  # [BLOCK_N, BLOCK_D]
            A = tl.load(inputs.A_ptr + d[None, :] * N + n[:, None], mask=tile, other=0.0)
            A = A.to(tl.float32)
            A2 = A * LOG2_E

            # The state before each step.
            inside = before_inside[:, None] & d_inside[None, :]
            step, _ = load_steps(inputs, row, t - 1, d, inside, d_inside, SOFTPLUS)
            u = load_sequence(inputs.u, row, t - 1, d, inside)
            B = load_matrix(inputs.B, row, B_group, t - 1, before_inside, n, d, d_inside, N, B_GROUPS)
            own = n[:, None] * WIDTH + d[None, :]
            of_text = text * (N * WIDTH) + own
            h = tl.load(states_ptr + (number + of_time) * (N * WIDTH) + own, mask=tile, other=0.0)
            before = scan_block(step, u, A2, B, h, BLOCK_L)

            inside = t_inside[:, None] & d_inside[None, :]
            step, _ = load_steps(inputs, row, t, d, inside, d_inside, SOFTPLUS)
            u = load_sequence(inputs.u, row, t, d, inside)
            B = load_matrix(inputs.B, row, B_group, t, t_inside, n, d, d_inside, N, B_GROUPS)
            C = load_matrix(inputs.C, row, C_group, t, t_inside, n, d, d_inside, N, C_GROUPS)
            decay = tl.exp2(step[:, None, :] * A2[None, :, :])
            first_decay = first_step(decay, BLOCK_L)
            kept = decay * before
            states = kept + (step * u)[:, None, :] * B
            grad = load_sequence(dy, row, t, d, inside)
            if inputs.z is not None:
                z = load_sequence(inputs.z, row, t, d, inside)
                gate = sigmoid(z, exp_of_minus(tl.abs(z)))
                y = tl.sum(C * states, 1)
                if inputs.D_ptr is not None:
                    y += load_channels(inputs.D_ptr, d, d_inside)[None, :] * u
                dz = grad * y * gate * (1 + z * (1 - gate))
                tl.store(out.dz_ptr + sequence_offsets(out.strides, row, t, d), dz, mask=inside)
                grad *= z * gate
            if C_GROUPS > 0:
                dC += states * grad[:, None, :]
            else:
                _add(out.dC_ptr + of_text, tl.sum(states * grad[:, None, :], 0), tile)

            inside_after = (t + 1 < end)[:, None] & d_inside[None, :]
            step_after, _ = load_steps(inputs, row, t + 1, d, inside_after, d_inside, SOFTPLUS)
            dh = C * grad[:, None, :]
            from_later = tl.load(out.dstate_ptr + of_text, mask=tile, other=0.0)[None, :, :]
            dh += tl.where((i == BLOCK_L - 1)[:, None, None], from_later, 0.0)
            decay_after = tl.exp2(step_after[:, None, :] * A2[None, :, :])
            dh = _turned(scanned(_turned(decay_after, BLOCK_L), _turned(dh, BLOCK_L), BLOCK_L), BLOCK_L)
            tl.debug_barrier()  # until every thread has read what is now overwritten
            tl.store(out.dstate_ptr + of_text, first_decay * first_step(dh, BLOCK_L), mask=tile)

            # Once more, since registers do not hold them over the scan.
            step, slope = load_steps(inputs, row, t, d, inside, d_inside, SOFTPLUS)
            u = load_sequence(inputs.u, row, t, d, inside)
            B = load_matrix(inputs.B, row, B_group, t, t_inside, n, d, d_inside, N, B_GROUPS)
            if B_GROUPS > 0:
                dB += dh * (step * u)[:, None, :]
            else:
                _add(out.dB_ptr + of_text, tl.sum(dh * (step * u)[:, None, :], 0), tile)
            dinput = tl.sum(dh * B, 1)
            dh *= kept
            _add(out.dA_ptr + of_text, tl.sum(dh * step[:, None, :], 0), tile)
            ddelta = (tl.sum(dh * A[None, :, :], 1) + dinput * u) * slope
            tl.store(out.ddelta_ptr + sequence_offsets(out.strides, row, t, d), ddelta, mask=inside)
            if out.ddelta_bias_ptr is not None:
                _add(out.ddelta_bias_ptr + text * WIDTH + d, tl.sum(tl.where(inside, ddelta, 0.0), 0), d_inside)
            du = dinput * step
            if inputs.D_ptr is not None:
                du += load_channels(inputs.D_ptr, d, d_inside)[None, :] * grad
                _add(out.dD_ptr + text * WIDTH + d, tl.sum(grad * u, 0), d_inside)
            tl.store(out.du_ptr + sequence_offsets(out.strides, row, t, d), du, mask=inside)
        part = (((slot * batch + row) * GROUPS + group) * N + n[None, :]) * L + t[:, None]
        inside = t_inside[:, None] & (n < N)[None, :]
        if B_GROUPS > 0:
            tl.store(out.dB_ptr + part, tl.sum(dB, 2), mask=inside)
        if C_GROUPS > 0:
            tl.store(out.dC_ptr + part, tl.sum(dC, 2), mask=inside)
        tl.debug_barrier()  # what was written to memory is read again, maybe by other threads


def selective_scan_backward(
    dy: Tensor, dlast_state: Tensor | None, states: Tensor, inputs: Inputs
) -> list[Tensor | None]:
    """The gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where there is none."""
    u, delta, A, B, C, D, z, delta_bias, _, initial_state, _ = inputs
    (width, N), texts = A.shape, inputs.texts
    arguments = operands(inputs)
    groups = arguments["GROUPS"]
    blocks = triton.cdiv(width // groups, arguments["BLOCK_D"])
    slots, blocks_per_slot = slots_of(blocks, texts * groups)

    def sums(*shape: int) -> Tensor:
        return torch.zeros(texts, *shape, dtype=torch.float32, device=u.device)

    def parts(matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return sums(N, width)
        return torch.empty(slots, u.shape[0], groups, N, u.shape[2], dtype=torch.float32, device=u.device)

    dstate, dA, dB, dC = sums(N, width), sums(N, width), parts(B), parts(C)
    if dlast_state is not None:
        dstate.copy_(dlast_state.mT)
    dD, ddelta_bias = (None if vector is None else sums(width) for vector in (D, delta_bias))
    du, ddelta = laid_out_like(u, u.dtype), laid_out_like(u, delta.dtype)
    dz = None if z is None else laid_out_like(u, z.dtype)
    launch(
        selective_scan_backward_kernel,
        (texts * groups * slots,),
        **arguments,
        dy=strided(dy),
        states_ptr=states,
        out=Gradients(du, ddelta, dz, du.stride(), dstate, dA, dB, dC, dD, ddelta_bias),
        batch=u.shape[0],
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        num_warps=min(16, max(1, numbers_of_a_tile(arguments) // (512 if N <= FEW_MODES else 256))),
        num_stages=1,
    )

    def summed(part: Tensor, matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return part.sum(0).mT.contiguous().to(matrix.dtype)
        of_matrix = by_group(matrix).shape[1]
        return part.unflatten(2, (of_matrix, -1)).sum((0, 3)).reshape(matrix.shape).to(matrix.dtype)

    def of_channels(part: Tensor | None, vector: Tensor | None) -> Tensor | None:
        return None if part is None or vector is None else part.sum(0).to(vector.dtype)

    of_matrices = [summed(dA, A), summed(dB, B), summed(dC, C)]
    of_state = None if initial_state is None else dstate.mT.contiguous().to(initial_state.dtype)
    return [du, ddelta, *of_matrices, of_channels(dD, D), dz, of_channels(ddelta_bias, delta_bias), of_state]
