"""The weights of grids for tokens (docs/mathematics.md, section 2), shared by correlation_context and grounded_film.

Scores, the selection and the softmax of few grids live in registers, one head at a time; only the mean over heads
leaves the program, and the backward pass makes all else again. With more grids the scores of one head at a time go
through memory, [B,T,G].
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .random import DRAW_BITS
from .triton_rows import rows_from_table, table_from_rows
from .triton_tiles import (
    HALF,
    block_of,
    block_of_tokens,
    dot,
    dot_precision,
    kept_grids,
    kept_tokens,
    random_bits,
    slots_of,
    strides,
    token_block,
)

# How the K largest of a row are found: not at all, by K passes, by removing the G - K smallest, or by bisection.
ALL, LARGEST, SMALLEST, BISECTION = (tl.constexpr(value) for value in range(4))
MOST_PASSES = 24
# With more grids the scores of a head go through memory: their tile no longer fits in registers, or not beside dk.
MOST_GRIDS_IN_REGISTERS = 64
MOST_GRIDS_BESIDE_DK = 32
NUMBERS_OF_A_TILE = 2048
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _among(scores, grid, value, cut):
    """The scores above `value`, and of those equal to it the ones of grids before `cut`."""
    return (scores > value[:, None]) | ((scores == value[:, None]) & (grid[None, :] < cut[:, None]))


@triton.jit
def _kth_largest(scores, grid, G, K, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, SELECT: tl.constexpr):
    """(value, cut) [BLOCK_T] of which `_among` makes exactly the K largest; of equals the lower index comes first.

    Columns from G on hold -inf and are never among them before a column of a grid is.
    """
    if SELECT == LARGEST:
        value = tl.full([BLOCK_T], INFINITY, tl.float32)
        cut = tl.zeros([BLOCK_T], tl.int32)
        for _ in range(K):
            taken = _among(scores, grid, value, cut)
            value = tl.max(tl.where(taken, -INFINITY, scores), 1)
            candidates = (scores == value[:, None]) & ~taken
            cut = tl.min(tl.where(candidates, grid[None, :], BLOCK_G), 1) + 1
    elif SELECT == SMALLEST:
        value = tl.full([BLOCK_T], -INFINITY, tl.float32)
        cut = tl.full([BLOCK_T], 0, tl.int32) + G
        for _ in range(G - K):
            left = _among(scores, grid, value, cut)
            value = tl.min(tl.where(left, scores, INFINITY), 1)
            candidates = (scores == value[:, None]) & left
            cut = tl.max(tl.where(candidates, grid[None, :], -1), 1)
    else:
        # An unsigned integer in the order of the scores; 0, which no score has, where there is no grid.
        bits = (scores + 0.0).to(tl.int32, bitcast=True)
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
        key = tl.where(grid[None, :] < G, key, 0)
        kth = tl.zeros([BLOCK_T], tl.uint32)
        bit = tl.full([BLOCK_T], 0x80000000, tl.uint32)
        for _ in range(32):
            enough = tl.sum((key >= (kth | bit)[:, None]).to(tl.int32), 1) >= K
            kth = tl.where(enough, kth | bit, kth)
            bit = bit >> 1
        equals = K - tl.sum((key > kth[:, None]).to(tl.int32), 1)
        cut = tl.zeros([BLOCK_T], tl.int32)
        step = tl.full([BLOCK_T], BLOCK_G, tl.int32)
        for _ in range(16):  # as many as 2^15 grids need
            few = tl.sum(((key == kth[:, None]) & (grid[None, :] < (cut + step)[:, None])).to(tl.int32), 1) <= equals
            cut = tl.where(few, cut + step, cut)
            step = step >> 1
        bits = (kth ^ 0x80000000).to(tl.int32, bitcast=True)
        value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value, cut


@triton.jit
def _softmax(
    scores,
    seed_ptr,
    b,
    h,
    t,
    grid,
    token_kept,
    grid_kept,
    T,
    G,
    K,
    scale,
    drop_threshold,
    H: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
):
    """The softmax p [BLOCK_T, BLOCK_G] of a head's products q.k, and which entries of p count.

    A row of -inf alone is zero. What lies under a mask is not seen, were it NaN.
    """
    kept = token_kept[:, None] & grid_kept[None, :]
    scores = tl.where(kept, scores * scale, -INFINITY)
    chosen = kept & (scores > -INFINITY)
    if SELECT != ALL:
        value, cut = _kth_largest(scores, grid, G, K, scores.shape[0], scores.shape[1], SELECT)
        chosen &= _among(scores, grid, value, cut)
        if RENORMALIZE:
            scores = tl.where(chosen, scores, -INFINITY)
    highest = tl.max(scores, 1)
    p = tl.exp(scores - tl.where(highest == -INFINITY, 0.0, highest)[:, None])
    total = tl.sum(p, 1)
    p /= tl.where(total == 0, 1.0, total)[:, None]
    if seed_ptr is not None:
        index = (((b * H + h) * T + t) * G)[:, None] + grid[None, :]
        chosen &= random_bits(tl.load(seed_ptr), index) >= drop_threshold
    return p, chosen


@triton.jit
def _head_softmax(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    seed_ptr,
    b,
    h,
    t,
    grid,
    token_kept,
    grid_kept,
    T,
    G,
    K,
    scale,
    drop_threshold,
    H: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q and k of a head, the softmax p of their scores, and which entries of p count."""
    d = tl.arange(0, BLOCK_DH)
    q_rows = q_ptr + b * q_strides[0] + t[:, None] * q_strides[1] + h * q_strides[2] + d[None, :] * q_strides[3]
    q = tl.load(q_rows, mask=token_kept[:, None] & (d < DH)[None, :], other=0.0)
    k_rows = k_ptr + b * k_strides[0] + grid.to(tl.int64)[:, None] * k_strides[1]
    k_rows += h * k_strides[2] + d[None, :] * k_strides[3]
    k = tl.load(k_rows, mask=grid_kept[:, None] & (d < DH)[None, :], other=0.0)
    p, counts = _softmax(
        dot(q, tl.trans(k), PRECISION), seed_ptr, b, h, t, grid, token_kept, grid_kept, T, G, K, scale,
        drop_threshold, H, RENORMALIZE, SELECT,
    )  # fmt: skip
    return q, k, p, counts


@triton.jit
def token_weights(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    seed_ptr,
    b,
    t,
    grid,
    token_kept,
    grid_kept,
    T,
    G,
    K,
    scale,
    drop_threshold,
    shares,
    H: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """w [BLOCK_T, BLOCK_G] float32 of the tokens t (int64) of row b (int64): the mean over heads of their weights."""
    w = tl.zeros([t.shape[0], grid.shape[0]], tl.float32)
    for h in range(H):
        _, _, p, counts = _head_softmax(
            q_ptr, q_strides, k_ptr, k_strides, seed_ptr, b, h, t, grid, token_kept, grid_kept, T, G, K, scale,
            drop_threshold, H, DH, BLOCK_DH, RENORMALIZE, SELECT, PRECISION,
        )  # fmt: skip
        w += tl.where(counts, p, 0.0)
    return w / shares


@triton.jit
def grid_weights_kernel(
    q_ptr,  # [B,T,H,DH]
    q_strides,
    k_ptr,  # [B,G,H,DH]
    k_strides,
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    seed_ptr,  # one int64, or None: no dropout
    w_ptr,  # [B,T,G] float32, contiguous
    T,
    G,
    K,
    scale,  # of the scores
    drop_threshold,  # an element is dropped when its 24 bits are below
    shares,  # what the sum over heads is divided by: H (1 - p)
    H: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
    w = token_weights(
        q_ptr, q_strides, k_ptr, k_strides, seed_ptr, b, t, grid, token_kept, grid_kept, T, G, K, scale,
        drop_threshold, shares, H, DH, BLOCK_DH, RENORMALIZE, SELECT, PRECISION,
    )  # fmt: skip
    tl.store(w_ptr + (b * T + t[:, None]) * G + grid[None, :], w, mask=(t < T)[:, None] & (grid < G)[None, :])


@triton.jit
def _score_gradients(p, counts, dw_ptr, b, t, grid, T, G, scale, shares):
    """ds = p (da - sum p da) scale, with da = dw / shares where an entry counts and 0 where not."""
    da = tl.load(dw_ptr + (b * T + t[:, None]) * G + grid[None, :], mask=counts, other=0.0) / shares
    return p * (da - tl.sum(p * da, 1)[:, None]) * scale


@triton.jit
def grid_weights_backward_kernel(
    q_ptr,  # [B,T,H,DH]
    q_strides,
    k_ptr,  # [B,G,H,DH]
    k_strides,
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    seed_ptr,  # one int64, or None: no dropout
    dw_ptr,  # [B,T,G] float32, contiguous
    dq_ptr,  # [B,T,H,DH], contiguous
    dk_ptr,  # [slots,B,G,H,DH] float32, contiguous: a part for each slot
    B,
    T,
    G,
    K,
    scale,
    drop_threshold,
    shares,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    H: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a head of a row and a slot of its tokens: dq = ds k, dk = ds^T q."""
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    slot = tl.program_id(1).to(tl.int64)
    grid = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_DH)
    grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
    dk = tl.zeros([BLOCK_G, BLOCK_DH], tl.float32)
    for block in range(blocks_per_slot):
        t = (slot * blocks_per_slot + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
        q, k, p, counts = _head_softmax(
            q_ptr, q_strides, k_ptr, k_strides, seed_ptr, b, h, t, grid, token_kept, grid_kept, T, G, K, scale,
            drop_threshold, H, DH, BLOCK_DH, RENORMALIZE, SELECT, PRECISION,
        )  # fmt: skip
        ds = _score_gradients(p, counts, dw_ptr, b, t, grid, T, G, scale, shares)
        dq_rows = dq_ptr + ((b * T + t[:, None]) * H + h) * DH + d[None, :]
        tl.store(dq_rows, dot(ds, k, PRECISION), mask=(t < T)[:, None] & (d < DH)[None, :])
        dk += dot(tl.trans(ds), q, PRECISION)
    dk_rows = dk_ptr + (((slot * B + b) * G + grid[:, None]) * H + h) * DH + d[None, :]
    tl.store(dk_rows, dk, mask=(grid < G)[:, None] & (d < DH)[None, :])


@triton.jit
def many_grids_kernel(
    scores_ptr,  # [B,T,G] float32, contiguous: the products q.k of head h; with dw their gradients take their place
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    seed_ptr,  # one int64, or None: no dropout
    w_ptr,  # [B,T,G] float32, contiguous: gets the head's weights added; None where there is dw
    dw_ptr,  # [B,T,G] float32, contiguous, or None
    h,
    T,
    G,
    K,
    scale,
    drop_threshold,
    shares,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
):
    """What follows the scores of a head, a program a few tokens of a row: w += its weights, or scores = ds."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
    tile = (b * T + t[:, None]) * G + grid[None, :]
    inside = (t < T)[:, None] & (grid < G)[None, :]
    scores = tl.load(scores_ptr + tile, mask=inside, other=0.0)
    p, counts = _softmax(
        scores, seed_ptr, b, h, t, grid, token_kept, grid_kept, T, G, K, scale, drop_threshold, H, RENORMALIZE, SELECT
    )
    if dw_ptr is None:
        w = tl.where(counts, p, 0.0) / shares
        if h > 0:
            w += tl.load(w_ptr + tile, mask=inside, other=0.0)
        tl.store(w_ptr + tile, w, mask=inside)
    else:
        ds = _score_gradients(p, counts, dw_ptr, b, t, grid, T, G, scale, shares)
        tl.store(scores_ptr + tile, ds, mask=inside)


def selection(G: int, top_k: int) -> int:
    """How the `top_k` largest of G are found: by passes while they are few, beyond `MOST_PASSES` by bisection."""
    if not 0 < top_k < G:
        return ALL.value
    if min(top_k, G - top_k) > MOST_PASSES:
        return BISECTION.value
    return LARGEST.value if top_k <= G - top_k else SMALLEST.value


def weight_arguments(
    q: Tensor,
    k: Tensor,
    top_k: int,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> dict:
    """The arguments by name that every kernel with weights in it has."""
    G, H, DH = k.shape[1:]
    return {
        "q_ptr": q,
        "q_strides": q.stride(),
        "k_ptr": k,
        "k_strides": k.stride(),
        "grid_mask_ptr": grid_mask,
        "grid_mask_strides": strides(grid_mask),
        "text_mask_ptr": text_mask,
        "text_mask_strides": strides(text_mask),
        "seed_ptr": seed if dropout_p > 0 else None,
        "T": q.shape[1],
        "G": G,
        "K": top_k,
        "scale": 1 / math.sqrt(DH),
        "drop_threshold": round(dropout_p * 2**DRAW_BITS),
        "shares": H * (1 - dropout_p),
        "H": H,
        "DH": DH,
        "BLOCK_DH": block_of(DH),
        "RENORMALIZE": renormalize,
        "SELECT": selection(G, top_k),
    }


def _without(arguments: dict, *names: str) -> dict:
    return {name: value for name, value in arguments.items() if name not in names}


def _many_grids(q: Tensor, k: Tensor, h: int, arguments: dict, *, w: Tensor | None, dw: Tensor | None) -> Tensor:
    """Add the weights of head h to w, or return the gradients [B,T,G] of its scores from dw."""
    B, T, G = q.shape[0], q.shape[1], k.shape[1]
    scores = torch.empty(B, T, G, dtype=torch.float32, device=q.device)
    rows_from_table(q[:, :, h], k[:, :, h].mT, None, out=scores)
    block_g = block_of(G)
    block_t = max(1, NUMBERS_OF_A_TILE // block_g)
    launch(
        many_grids_kernel,
        (B * triton.cdiv(T, block_t),),
        **_without(arguments, "q_ptr", "q_strides", "k_ptr", "k_strides", "DH", "BLOCK_DH"),
        scores_ptr=scores,
        w_ptr=w,
        dw_ptr=dw,
        h=h,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        num_warps=min(16, max(4, block_t * block_g // 512)),
    )
    return scores


def grid_weights(q: Tensor, k: Tensor, *options) -> Tensor:
    """w [B,T,G] in float32; `options` from top_k on as in `weight_arguments`."""
    B, T, G = q.shape[0], q.shape[1], k.shape[1]
    w = torch.empty(B, T, G, dtype=torch.float32, device=q.device)
    arguments = weight_arguments(q, k, *options)
    if G > MOST_GRIDS_IN_REGISTERS:
        for h in range(q.shape[2]):
            _many_grids(q, k, h, arguments, w=w, dw=None)
        return w
    block_t = 16 if G > 32 else block_of_tokens(T)
    launch(
        grid_weights_kernel,
        (B * triton.cdiv(T, block_t),),
        **arguments,
        w_ptr=w,
        BLOCK_T=block_t,
        BLOCK_G=block_of(G),
        PRECISION=dot_precision(grid_weights_kernel, q, k),
        num_warps=4,
    )
    return w


def grid_weights_backward(dw: Tensor, q: Tensor, k: Tensor, *options) -> tuple[Tensor, Tensor]:
    """dq and dk in the dtypes of q and k, from dw [B,T,G] float32, contiguous; `options` as in `weight_arguments`."""
    B, T, H, _ = q.shape
    G = k.shape[1]
    arguments = weight_arguments(q, k, *options)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if G > MOST_GRIDS_BESIDE_DK:
        dk = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        for h in range(H):
            ds = _many_grids(q, k, h, arguments, w=None, dw=dw)
            rows_from_table(ds, k[:, :, h], arguments["grid_mask_ptr"], out=dq[:, :, h])
            dk[:, :, h] = table_from_rows(ds, q[:, :, h], arguments["text_mask_ptr"])
        return dq, dk
    block_t = block_of_tokens(T) if q.dtype in HALF and k.dtype in HALF else 16
    slots, blocks_per_slot = slots_of(triton.cdiv(T, block_t), B * H)
    dk = torch.empty(slots, *k.shape, dtype=torch.float32, device=k.device)
    launch(
        grid_weights_backward_kernel,
        (B * H, slots),
        **arguments,
        dw_ptr=dw,
        dq_ptr=dq,
        dk_ptr=dk,
        B=B,
        blocks_per_slot=blocks_per_slot,
        BLOCK_T=block_t,
        BLOCK_G=block_of(G),
        PRECISION=dot_precision(grid_weights_backward_kernel, q, k),
        num_warps=4,
    )
    return dq, dk.sum(0).to(k.dtype)
