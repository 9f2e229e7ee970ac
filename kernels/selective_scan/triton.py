"""Mamba's selective scan for a real A in Triton: a block of steps at once, the state carried from block to block.

A tile is [steps, modes, channels], so that the steps of a channel's mode lie in one thread, which scans them alone.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch
from ..common.triton_tiles import slots_of, strides
from .inputs import Inputs
from .shapes import FEW_MODES, block_of_channels, block_of_steps, blocks_of_steps, laid_out_like, power_of_two

_LOG2_E = tl.constexpr(math.log2(math.e))
# ln 2 in two parts, the first of 15 bits: a small integer times it is exact.
_LN_2_HIGH, _LN_2_LOW = tl.constexpr(0.693145751953125), tl.constexpr(1.42860682030941723212e-6)


@triton.jit
def _compose(decay, value, next_decay, next_value):
    """What h -> decay h + value and then h -> next_decay h + next_value do together."""
    return decay * next_decay, next_decay * value + next_value


@triton.jit
def _exp_of_minus(size):
    """e^-size of size >= 0 to two roundings: those of size times log2 e would count for as much as size is large."""
    size = tl.where(size > 200, 200.0, size)
    whole = tl.floor(size * _LOG2_E + 0.5)
    return tl.exp2(-whole) * tl.exp2(((whole * _LN_2_HIGH - size) + whole * _LN_2_LOW) * _LOG2_E)


@triton.jit
def _sigmoid(x, e):
    """1 / (1 + e^-x), with e = e^-|x|."""
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _softplus(x, e):
    """log(1 + e^x), with e = e^-|x|: max(x, 0) + 2 artanh(e / (2 + e)), whose series at 1/3 has an error of 2e-9.

    From 20 on this is x, where torch's formula ends.
    """
    ratio = e / (2 + e)
    s = ratio * ratio
    series = 1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13 + s / 15))))))
    return tl.maximum(x, 0.0) + 2 * ratio * series


@triton.jit
def _text(cu_seqlens_ptr, row, L, BLOCK_L: tl.constexpr):
    """Of the text `row` (int64): its row of u, where it begins and ends, and the number of its first block of steps."""
    if cu_seqlens_ptr is None:
        first = row * 0
        end = first + L
        number = row * tl.cdiv(L, BLOCK_L)
    else:
        first = tl.load(cu_seqlens_ptr + row).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + row + 1).to(tl.int64)
        number = first // BLOCK_L + row
        row = row * 0
    return row, first, end, number


@triton.jit
def _channels(block, group, GROUP_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The channels d [BLOCK_D] (int64) of a block of a group, and which of them exist.

    The last one stands for those beyond it: with addresses that are not linear in `block` no register is spent on
    counting each of them up, and they are many.
    """
    within = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d = group * GROUP_WIDTH + tl.minimum(within, GROUP_WIDTH - 1)
    return d.to(tl.int64), within < GROUP_WIDTH


@triton.jit
def _of_channels(ptr, stride, d, d_inside):
    return tl.load(ptr + d * stride[0], mask=d_inside, other=0.0).to(tl.float32)


@triton.jit
def _offsets(stride, row, t, d):
    """Of [BLOCK_L, BLOCK_D] in [batch,D,L]."""
    return (row * stride[0] + t * stride[2])[:, None] + (d * stride[1])[None, :]


@triton.jit
def _sequence(ptr, stride, row, t, d, inside):
    """[BLOCK_L, BLOCK_D] of [batch,D,L] in float32, 0 where not inside."""
    return tl.load(ptr + _offsets(stride, row, t, d), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _steps(
    delta_ptr, delta_stride, delta_bias_ptr, delta_bias_stride, row, t, d, inside, d_inside, SOFTPLUS: tl.constexpr
):
    """delta [BLOCK_L, BLOCK_D] as the recurrence has it, and its derivative by what came in; 0 where not inside."""
    delta = _sequence(delta_ptr, delta_stride, row, t, d, inside)
    if delta_bias_ptr is not None:
        delta += _of_channels(delta_bias_ptr, delta_bias_stride, d, d_inside)[None, :]
    slope = 1.0
    if SOFTPLUS:
        e = _exp_of_minus(tl.abs(delta))
        slope = _sigmoid(delta, e)
        delta = _softplus(delta, e)
    return tl.where(inside, delta, 0.0), slope


@triton.jit
def _matrix(ptr, stride, row, group, t, t_inside, n, d, d_inside, N: tl.constexpr, GROUPS: tl.constexpr):
    """B or C in float32: [BLOCK_L, BLOCK_N, 1], or [1, BLOCK_N, BLOCK_D] where constant in time (GROUPS = 0)."""
    if GROUPS == 0:
        tile = ptr + n[:, None] * stride[1] + d[None, :] * stride[0]
        matrix = tl.load(tile, mask=(n < N)[:, None] & d_inside[None, :], other=0.0)[None, :, :]
    else:
        tile = ptr + row * stride[0] + group * stride[1] + n[None, :] * stride[2] + t[:, None] * stride[3]
        matrix = tl.load(tile, mask=t_inside[:, None] & (n < N)[None, :], other=0.0)[:, :, None]
    return matrix.to(tl.float32)


@triton.jit
def _scan(step, u, A2, B, h, BLOCK_L: tl.constexpr):
    """The states [BLOCK_L, BLOCK_N, BLOCK_D] after steps from the state h: 2^(step A2) h + step B u.

    A step of 0 changes nothing.
    """
    decay = tl.exp2(step[:, None, :] * A2[None, :, :])
    value = (step * u)[:, None, :] * B
    i = tl.arange(0, BLOCK_L)[:, None, None]
    value += tl.where(i == 0, decay * h[None, :, :], 0.0)
    return _scanned(decay, value, BLOCK_L)


@triton.jit
def _scanned(decay, value, BLOCK_L: tl.constexpr):
    if BLOCK_L > 1:
        _, value = tl.associative_scan((decay, value), 0, _compose)
    return value


@triton.jit
def _last(x, BLOCK_L: tl.constexpr):
    """x[-1]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_L)[:, None, None] == BLOCK_L - 1, x, 0.0), 0)


@triton.jit
def _first(x, BLOCK_L: tl.constexpr):
    """x[0]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_L)[:, None, None] == 0, x, 0.0), 0)


@triton.jit
def _turned(x, BLOCK_L: tl.constexpr):
    """The last step first."""
    if BLOCK_L > 1:
        x = tl.flip(x, 0)
    return x


@triton.jit
def selective_scan_kernel(
    u_ptr,  # [batch,D,L]
    u_strides,
    delta_ptr,  # [batch,D,L]
    delta_strides,
    A_ptr,  # [D,N]
    A_strides,
    B_ptr,  # [batch,B_GROUPS,N,L], or [D,N]
    B_strides,
    C_ptr,  # [batch,C_GROUPS,N,L], or [D,N]
    C_strides,
    D_ptr,  # [D] or None
    D_strides,
    z_ptr,  # [batch,D,L] or None
    z_strides,
    delta_bias_ptr,  # [D] or None
    delta_bias_strides,
    initial_state_ptr,  # [texts,D,N], or None: 0
    initial_state_strides,
    cu_seqlens_ptr,  # [texts + 1], or None: a text is a row
    y_ptr,  # [batch,D,L]
    y_strides,
    last_state_ptr,  # [texts,D,N] float32, contiguous
    states_ptr,  # [blocks of all texts,N,D] float32, contiguous: the state before each block of steps; or None
    L,
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
    """A program BLOCK_D channels of a group, of a text."""
    blocks: tl.constexpr = tl.cdiv(WIDTH // GROUPS, BLOCK_D)
    group = tl.program_id(0) // blocks % GROUPS
    text = (tl.program_id(0) // (blocks * GROUPS)).to(tl.int64)
    d, d_inside = _channels(tl.program_id(0) % blocks, group, WIDTH // GROUPS, BLOCK_D)
    row, first, end, number = _text(cu_seqlens_ptr, text, L, BLOCK_L)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    tile = (n < N)[:, None] & d_inside[None, :]  # [BLOCK_N, BLOCK_D]
    A = tl.load(A_ptr + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], mask=tile, other=0.0).to(tl.float32)
    A2 = A * _LOG2_E
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if initial_state_ptr is not None:
        from_state = initial_state_ptr + text * initial_state_strides[0] + d[None, :] * initial_state_strides[1]
        h += tl.load(from_state + n[:, None] * initial_state_strides[2], mask=tile, other=0.0).to(tl.float32)
    for start in range(first, end, BLOCK_L):
        if states_ptr is not None:
            tl.store(states_ptr + (number * N + n[:, None]) * WIDTH + d[None, :], h, mask=tile)
            number += 1
        t = start + tl.arange(0, BLOCK_L).to(tl.int64)
        inside = (t < end)[:, None] & d_inside[None, :]
        step, _ = _steps(
            delta_ptr, delta_strides, delta_bias_ptr, delta_bias_strides, row, t, d, inside, d_inside, SOFTPLUS
        )
        u = _sequence(u_ptr, u_strides, row, t, d, inside)
        B = _matrix(B_ptr, B_strides, row, group * B_GROUPS // GROUPS, t, t < end, n, d, d_inside, N, B_GROUPS)
        C = _matrix(C_ptr, C_strides, row, group * C_GROUPS // GROUPS, t, t < end, n, d, d_inside, N, C_GROUPS)
        states = _scan(step, u, A2, B, h, BLOCK_L)
        h = _last(states, BLOCK_L)
        y = tl.sum(C * states, 1)
        if D_ptr is not None:
            y += _of_channels(D_ptr, D_strides, d, d_inside)[None, :] * u
        if z_ptr is not None:
            z = _sequence(z_ptr, z_strides, row, t, d, inside)
            y *= z * _sigmoid(z, _exp_of_minus(tl.abs(z)))
        tl.store(y_ptr + _offsets(y_strides, row, t, d), y, mask=inside)
    tl.store(last_state_ptr + (text * WIDTH + d[None, :]) * N + n[:, None], h, mask=tile)


@triton.jit
def _add(ptr, x, mask):
    tl.store(ptr, tl.load(ptr, mask=mask, other=0.0) + x, mask=mask)


@triton.jit
def selective_scan_backward_kernel(
    dy_ptr,  # [batch,D,L]
    dy_strides,
    u_ptr,  # [batch,D,L]
    u_strides,
    delta_ptr,  # [batch,D,L]
    delta_strides,
    A_ptr,  # [D,N]
    A_strides,
    B_ptr,  # [batch,B_GROUPS,N,L], or [D,N]
    B_strides,
    C_ptr,  # [batch,C_GROUPS,N,L], or [D,N]
    C_strides,
    D_ptr,  # [D] or None
    D_strides,
    z_ptr,  # [batch,D,L] or None
    z_strides,
    delta_bias_ptr,  # [D] or None
    delta_bias_strides,
    cu_seqlens_ptr,  # [texts + 1], or None: a text is a row
    states_ptr,  # [blocks of all texts,N,D] float32, contiguous: the state before each block of steps
    du_ptr,  # [batch,D,L]
    ddelta_ptr,  # [batch,D,L]
    dz_ptr,  # [batch,D,L] or None
    out_strides,  # of these three
    dstate_ptr,  # [texts,N,D] float32, contiguous: of the last state, and at the end of the initial one
    dA_ptr,  # [texts,N,D] float32, contiguous: added to
    dB_ptr,  # [slots,batch,GROUPS,N,L] float32, contiguous: a part for each slot; or as dA
    dC_ptr,
    dD_ptr,  # [texts,D] float32, contiguous: added to; or None
    ddelta_bias_ptr,
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
    """A program a slot of the channels of a group, of a text; backwards in time, a block of channels after the other.

        dh_t = C_t g_t + a_{t+1} dh_{t+1}           with a_t = exp(delta_t A) and g_t = dy_t silu(z_t)

    The states are made again from the one before the block of steps. dh is a forward scan of what is turned before and
    after: with the steps of a mode in one thread that only renames registers. What belongs to a channel alone is added
    up in memory that only this program touches; dB_t and dC_t, over the channels of the slot, in registers.
    """
    slot = (tl.program_id(0) % slots).to(tl.int64)
    group = tl.program_id(0) // slots % GROUPS
    text = (tl.program_id(0) // (slots * GROUPS)).to(tl.int64)
    row, first, end, number = _text(cu_seqlens_ptr, text, L, BLOCK_L)
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
            d, d_inside = _channels(slot * blocks_per_slot + block, group, WIDTH // GROUPS, BLOCK_D)
            tile = (n < N)[:, None] & d_inside[None, :]  # [BLOCK_N, BLOCK_D]
            A = tl.load(A_ptr + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], mask=tile, other=0.0)
            A = A.to(tl.float32)
            A2 = A * _LOG2_E

            # The state before each step.
            inside = before_inside[:, None] & d_inside[None, :]
            step, _ = _steps(
                delta_ptr, delta_strides, delta_bias_ptr, delta_bias_strides, row, t - 1, d, inside, d_inside,
                SOFTPLUS,
            )  # fmt: skip
            u = _sequence(u_ptr, u_strides, row, t - 1, d, inside)
            B = _matrix(B_ptr, B_strides, row, B_group, t - 1, before_inside, n, d, d_inside, N, B_GROUPS)
            own = n[:, None] * WIDTH + d[None, :]
            of_text = text * (N * WIDTH) + own
            h = tl.load(states_ptr + (number + of_time) * (N * WIDTH) + own, mask=tile, other=0.0)
            before = _scan(step, u, A2, B, h, BLOCK_L)

            inside = t_inside[:, None] & d_inside[None, :]
            step, _ = _steps(
                delta_ptr, delta_strides, delta_bias_ptr, delta_bias_strides, row, t, d, inside, d_inside, SOFTPLUS
            )
            u = _sequence(u_ptr, u_strides, row, t, d, inside)
            B = _matrix(B_ptr, B_strides, row, B_group, t, t_inside, n, d, d_inside, N, B_GROUPS)
            C = _matrix(C_ptr, C_strides, row, C_group, t, t_inside, n, d, d_inside, N, C_GROUPS)
            decay = tl.exp2(step[:, None, :] * A2[None, :, :])
            first_decay = _first(decay, BLOCK_L)
            kept = decay * before
            states = kept + (step * u)[:, None, :] * B
            grad = _sequence(dy_ptr, dy_strides, row, t, d, inside)
            if z_ptr is not None:
                z = _sequence(z_ptr, z_strides, row, t, d, inside)
                gate = _sigmoid(z, _exp_of_minus(tl.abs(z)))
                y = tl.sum(C * states, 1)
                if D_ptr is not None:
                    y += _of_channels(D_ptr, D_strides, d, d_inside)[None, :] * u
                dz = grad * y * gate * (1 + z * (1 - gate))
                tl.store(dz_ptr + _offsets(out_strides, row, t, d), dz, mask=inside)
                grad *= z * gate
            if C_GROUPS > 0:
                dC += states * grad[:, None, :]
            else:
                _add(dC_ptr + of_text, tl.sum(states * grad[:, None, :], 0), tile)

            inside_after = (t + 1 < end)[:, None] & d_inside[None, :]
            step_after, _ = _steps(
                delta_ptr, delta_strides, delta_bias_ptr, delta_bias_strides, row, t + 1, d, inside_after, d_inside,
                SOFTPLUS,
            )  # fmt: skip
            dh = C * grad[:, None, :]
            from_later = tl.load(dstate_ptr + of_text, mask=tile, other=0.0)[None, :, :]
            dh += tl.where((i == BLOCK_L - 1)[:, None, None], from_later, 0.0)
            decay_after = tl.exp2(step_after[:, None, :] * A2[None, :, :])
            dh = _turned(_scanned(_turned(decay_after, BLOCK_L), _turned(dh, BLOCK_L), BLOCK_L), BLOCK_L)
            tl.debug_barrier()  # until every thread has read what is now overwritten
            tl.store(dstate_ptr + of_text, first_decay * _first(dh, BLOCK_L), mask=tile)

            # Once more, since registers do not hold them over the scan.
            step, slope = _steps(
                delta_ptr, delta_strides, delta_bias_ptr, delta_bias_strides, row, t, d, inside, d_inside, SOFTPLUS
            )
            u = _sequence(u_ptr, u_strides, row, t, d, inside)
            B = _matrix(B_ptr, B_strides, row, B_group, t, t_inside, n, d, d_inside, N, B_GROUPS)
            if B_GROUPS > 0:
                dB += dh * (step * u)[:, None, :]
            else:
                _add(dB_ptr + of_text, tl.sum(dh * (step * u)[:, None, :], 0), tile)
            dinput = tl.sum(dh * B, 1)
            dh *= kept
            _add(dA_ptr + of_text, tl.sum(dh * step[:, None, :], 0), tile)
            ddelta = (tl.sum(dh * A[None, :, :], 1) + dinput * u) * slope
            tl.store(ddelta_ptr + _offsets(out_strides, row, t, d), ddelta, mask=inside)
            if ddelta_bias_ptr is not None:
                _add(ddelta_bias_ptr + text * WIDTH + d, tl.sum(tl.where(inside, ddelta, 0.0), 0), d_inside)
            du = dinput * step
            if D_ptr is not None:
                du += _of_channels(D_ptr, D_strides, d, d_inside)[None, :] * grad
                _add(dD_ptr + text * WIDTH + d, tl.sum(grad * u, 0), d_inside)
            tl.store(du_ptr + _offsets(out_strides, row, t, d), du, mask=inside)
        part = (((slot * batch + row) * GROUPS + group) * N + n[None, :]) * L + t[:, None]
        inside = t_inside[:, None] & (n < N)[None, :]
        if B_GROUPS > 0:
            tl.store(dB_ptr + part, tl.sum(dB, 2), mask=inside)
        if C_GROUPS > 0:
            tl.store(dC_ptr + part, tl.sum(dC, 2), mask=inside)
        tl.debug_barrier()  # what was written to memory is read again, maybe by other threads


def _by_group(matrix: Tensor) -> Tensor:
    """B or C with an axis of groups, unless it is constant in time."""
    return matrix.unsqueeze(1) if matrix.ndim == 3 else matrix


def _groups(*matrices: Tensor) -> int:
    """Of channels that share B and C."""
    return math.lcm(*(matrix.shape[1] for matrix in map(_by_group, matrices) if matrix.ndim == 4))


def _operands(inputs: Inputs) -> dict:
    """What the kernels have in common."""
    u, _, A, B, C, *_ = inputs
    tensors = {"u": u, "delta": inputs.delta, "A": A, "B": _by_group(B), "C": _by_group(C), "D": inputs.D}
    tensors |= {"z": inputs.z, "delta_bias": inputs.delta_bias}
    (width, N), groups = A.shape, _groups(B, C)
    return {
        **{f"{name}_ptr": tensor for name, tensor in tensors.items()},
        **{f"{name}_strides": strides(tensor) for name, tensor in tensors.items()},
        "cu_seqlens_ptr": inputs.cu_seqlens,
        "L": u.shape[2],
        "WIDTH": width,
        "N": N,
        "GROUPS": groups,
        "B_GROUPS": tensors["B"].shape[1] if B.ndim > 2 else 0,
        "C_GROUPS": tensors["C"].shape[1] if C.ndim > 2 else 0,
        "SOFTPLUS": inputs.softplus,
        "BLOCK_L": block_of_steps(N, u.shape[2]),
        "BLOCK_N": power_of_two(N),
        "BLOCK_D": block_of_channels(N, width // groups),
    }


def _numbers(arguments: dict) -> int:
    """In a tile."""
    return arguments["BLOCK_L"] * arguments["BLOCK_N"] * arguments["BLOCK_D"]


def selective_scan(inputs: Inputs, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y in the dtype of u, the last state [texts,D,N] float32, and the states before blocks of steps."""
    (width, N), u, texts = inputs.A.shape, inputs.u, inputs.texts
    arguments = _operands(inputs)
    y = laid_out_like(u, u.dtype)
    last_state = torch.empty(texts, width, N, dtype=torch.float32, device=u.device)
    blocks = blocks_of_steps(u, N, inputs.cu_seqlens) if keep_states else 0
    states = torch.empty(blocks, N, width, dtype=torch.float32, device=u.device)
    groups = arguments["GROUPS"]
    launch(
        selective_scan_kernel,
        (texts * groups * triton.cdiv(width // groups, arguments["BLOCK_D"]),),
        **arguments,
        initial_state_ptr=inputs.initial_state,
        initial_state_strides=strides(inputs.initial_state),
        y_ptr=y,
        y_strides=y.stride(),
        last_state_ptr=last_state,
        states_ptr=states if keep_states else None,
        num_warps=min(16, max(1, _numbers(arguments) // 1024)),
    )
    return y, last_state, states


def selective_scan_backward(
    dy: Tensor, dlast_state: Tensor | None, states: Tensor, inputs: Inputs
) -> list[Tensor | None]:
    """The gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where there is none."""
    u, delta, A, B, C, D, z, delta_bias, _, initial_state, _ = inputs
    (width, N), texts = A.shape, inputs.texts
    arguments = _operands(inputs)
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
    du, ddelta, dz = (None if x is None else laid_out_like(u, x.dtype) for x in (u, delta, z))
    launch(
        selective_scan_backward_kernel,
        (texts * groups * slots,),
        **arguments,
        dy_ptr=dy,
        dy_strides=dy.stride(),
        states_ptr=states,
        du_ptr=du,
        ddelta_ptr=ddelta,
        dz_ptr=dz,
        out_strides=du.stride(),
        dstate_ptr=dstate,
        dA_ptr=dA,
        dB_ptr=dB,
        dC_ptr=dC,
        dD_ptr=dD,
        ddelta_bias_ptr=ddelta_bias,
        batch=u.shape[0],
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        num_warps=min(16, max(1, _numbers(arguments) // (512 if N <= FEW_MODES else 256))),
        num_stages=1,
    )

    def summed(part: Tensor, matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return part.sum(0).mT.contiguous().to(matrix.dtype)
        of_matrix = _by_group(matrix).shape[1]
        return part.unflatten(2, (of_matrix, -1)).sum((0, 3)).reshape(matrix.shape).to(matrix.dtype)

    def of_channels(part: Tensor | None, vector: Tensor | None) -> Tensor | None:
        return None if vector is None else part.sum(0).to(vector.dtype)

    of_matrices = [summed(dA, A), summed(dB, B), summed(dC, C)]
    of_state = None if initial_state is None else dstate.mT.contiguous().to(initial_state.dtype)
    return [du, ddelta, *of_matrices, of_channels(dD, D), dz, of_channels(ddelta_bias, delta_bias), of_state]
