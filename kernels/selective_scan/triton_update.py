"""One step of Mamba's selective scan in Triton, the state in place. Shapes: `heads.py`."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, store, strided
from ..launch import launch
from .heads import Step
from .shapes import MODES, WARP, power_of_two
from .triton_blocks import LOG2_E, exp_of_minus, sigmoid, steps_of

# Of a tile, in each thread.
NUMBERS = 8


class Given(NamedTuple):
    """The tensors of a step as the kernel takes them: those of `Step` that it only reads."""

    x: Strided
    dt: Strided
    A: Strided
    B: Strided
    C: Strided
    D: Strided | None
    z: Strided | None
    dt_bias: Strided | None


@triton.jit
def selective_state_update_kernel(
    state,  # Strided [B,H,P,N]
    given,  # Given
    y_ptr,  # [B,H,P], contiguous
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,  # P
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each program takes BLOCK_P channels of a head, of a row."""
    blocks: tl.constexpr = tl.cdiv(WIDTH, BLOCK_P)
    head = (tl.program_id(0) // blocks % HEADS).to(tl.int64)
    row = (tl.program_id(0) // (blocks * HEADS)).to(tl.int64)
    group = head * GROUPS // HEADS
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    inside, known = p < WIDTH, (p < WIDTH)[:, None] & (n < N)[None, :]
    h = load(state, (row, head, p[:, None], n[None, :]), mask=known).to(tl.float32)
    A = load(given.A, (head, p[:, None], n[None, :]), mask=known).to(tl.float32)
    B = load(given.B, (row, group, n), mask=n < N).to(tl.float32)
    C = load(given.C, (row, group, n), mask=n < N).to(tl.float32)
    x = load(given.x, (row, head, p), mask=inside).to(tl.float32)
    dt = load(given.dt, (row, head, p), mask=inside).to(tl.float32)
    if given.dt_bias is not None:
        dt += load(given.dt_bias, (head, p), mask=inside).to(tl.float32)
    step, _ = steps_of(dt, inside, SOFTPLUS)
    h = tl.exp2(step[:, None] * (A * LOG2_E)) * h + (step * x)[:, None] * B[None, :]
    store(state, (row, head, p[:, None], n[None, :]), h, mask=known)
    y = tl.sum(C[None, :] * h, 1)
    if given.D is not None:
        y += load(given.D, (head, p), mask=inside).to(tl.float32) * x
    if given.z is not None:
        z = load(given.z, (row, head, p), mask=inside).to(tl.float32)
        y *= z * sigmoid(z, exp_of_minus(tl.abs(z)))
    tl.store(y_ptr + (row * HEADS + head) * WIDTH + p, y, mask=inside)


def selective_state_update(step: Step) -> Tensor:
    """Change the state, and compute y [B,H,P] in the dtype of x."""
    state, x, dt, A, B, C, D, z, dt_bias, softplus = step
    rows, heads, width, N = state.shape
    y = torch.empty(rows, heads, width, dtype=x.dtype, device=x.device)
    block_n = power_of_two(N)
    block_p = min(power_of_two(width), max(1, MODES // block_n))
    launch(
        selective_state_update_kernel,
        (rows * heads * triton.cdiv(width, block_p),),
        state=strided(state),
        given=Given(
            *(strided(tensor) for tensor in (x, dt, A, B, C)), *(strided(tensor) for tensor in (D, z, dt_bias))
        ),
        y_ptr=y,
        HEADS=heads,
        WIDTH=width,
        N=N,
        GROUPS=B.shape[1],
        SOFTPLUS=softplus,
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        num_warps=min(4, max(1, block_p * block_n // (WARP * NUMBERS))),
    )
    return y
