"""Products between tokens' rows and a table of the grids, by their weights, in Triton (mathematics.md, 2a).

    rows     e [B,T,D]                   table [B,G,D]        rows = w table, dw = e table^T, dtable = w^T e

With FiLM a row stands for two: the table has 2 D columns, gamma's half first, and the gradients of gamma and beta
are e u and e, where u is what was modulated, given as it is or as LayerNorm(u) from its statistics.

Shapes: B rows of T tokens and G grids, D columns; w [B,T,G]; masks [B,T] and [B,G]. In kernels b is a number, t, grid
and d are the indices of a block.
"""

from typing import Any, NamedTuple, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, at, load, store, strided
from ..common.triton_tiles import (
    HALF,
    PROGRAMS,
    block_of,
    block_of_tokens,
    dot,
    dot_precision,
    pipeline_stages,
    slots_of,
    token_block,
)
from ..configurations import configured
from ..launch import launch

BLOCK_G, BLOCK_D = 32, 32


class Norm(NamedTuple):
    """A LayerNorm of rows [B,T,D] with its statistics, as a kernel takes it; all contiguous."""

    weight: Any  # [D]
    bias: Any  # [D], or None where it does not count
    mean: Any  # [B,T] float32
    rstd: Any  # [B,T] float32, 1 / standard deviation

    do_not_specialize_on_alignment = ("mean", "rstd")


class Weights(NamedTuple):
    """Weights [B,H,T,G] as a kernel takes them: the sum of two terms of few bits, or one term."""

    first: Strided
    rest: Strided | None

    @classmethod
    def of(cls, first: Tensor, rest: Tensor | None) -> "Weights":
        """Those of tensors with heads, or [B,T,G] without."""
        return cls(strided(with_heads(first)), strided(with_heads(rest)))


@overload
def with_heads(tensor: Tensor) -> Tensor: ...


@overload
def with_heads(tensor: Tensor | None) -> Tensor | None: ...


def with_heads(tensor: Tensor | None) -> Tensor | None:
    """[B,1,..] of [B,..] in three dimensions; what has four, and None, stays."""
    return tensor if tensor is None or tensor.ndim == 4 else tensor[:, None]


@triton.jit
def kept(mask, b, index, size):
    """Tell which tokens or grids `index` of row b exist: those below `size`, and True in `mask` [B,size] if given."""
    exists = index < size
    if mask is not None:
        exists &= load(mask, (b, index), exists, other=0) != 0
    return exists


@triton.jit
def store_rows(ptr, b, t, T, d, D, value):
    """Write `value` [BLOCK_T, BLOCK_D] to the tokens t and columns d of a contiguous [B,T,D]."""
    tl.store(ptr + (b * T + t[:, None]) * D + d[None, :], value, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def normalised(u, mean, rstd, norm, d, D):
    """LayerNorm of u [BLOCK_T, BLOCK_D] from its statistics: (n, weight, n weight + bias), n = (u - mean) rstd."""
    n = (u - mean[:, None]) * rstd[:, None]
    weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
    bias = tl.load(norm.bias + d, mask=d < D, other=0.0).to(tl.float32)
    return n, weight, n * weight[None, :] + bias[None, :]


@triton.jit
def _film_rows(e, u, norm, b, h, t, T, d, D, token_kept):
    """e and e u, [BLOCK_T, BLOCK_D] float32; without u, e twice."""
    index = (b, h, t[:, None], d[None, :])
    inside = token_kept[:, None] & (d < D)[None, :]
    e_tile = load(e, index, inside)
    eu_tile = e_tile
    if u is not None:
        u_tile = load(u, index, inside).to(tl.float32)
        if norm is not None:
            mean = tl.load(norm.mean + b * T + t, mask=token_kept, other=0.0)
            rstd = tl.load(norm.rstd + b * T + t, mask=token_kept, other=0.0)
            _, _, u_tile = normalised(u_tile, mean, rstd, norm, d, D)
        eu_tile = e_tile.to(tl.float32) * u_tile
    return e_tile, eu_tile


@triton.jit
def product(
    w,
    table,
    grid_mask,
    b,
    h,
    t,
    column,
    column_exists,
    T,
    G,
    BLOCK_G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The product of `Weights` w of the tokens t with columns of a table [B,H,G,..], float32."""
    grid = tl.arange(0, BLOCK_G)
    w_at = at(w.first, (b, h, t[:, None], grid[None, :]))
    rest_at = w_at
    if w.rest is not None:
        rest_at = at(w.rest, (b, h, t[:, None], grid[None, :]))
    table_at = at(table, (b, h, grid.to(tl.int64)[:, None], column[None, :]))
    acc = tl.zeros([t.shape[0], column.shape[0]], tl.float32)
    for start in range(0, G, BLOCK_G):
        of_w = (t < T)[:, None] & (start + grid < G)[None, :]
        of_table = kept(grid_mask, b, start + grid, G)[:, None] & column_exists[None, :]
        table_tile = tl.load(table_at, mask=of_table, other=0.0)
        acc += dot(tl.load(w_at, mask=of_w, other=0.0), table_tile, PRECISION)
        if w.rest is not None:
            acc += dot(tl.load(rest_at, mask=of_w, other=0.0), table_tile, PRECISION)
            rest_at += BLOCK_G * w.rest.strides[3]
        w_at += BLOCK_G * w.first.strides[3]
        table_at += BLOCK_G * table.strides[2]
    return acc


@triton.jit(do_not_specialize=["T", "G"])
def rows_from_table_kernel(
    w,  # Weights
    table,  # [B,H,G,D]
    grid_mask,  # [B,G] or None
    out,  # [B,H,T,D]
    T,
    G,
    D,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row, a block of columns and a head; it walks through the grids."""
    b, t = token_block(T, BLOCK_T)
    h = tl.program_id(2)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = product(w, table, grid_mask, b, h, t, d, d < D, T, G, BLOCK_G, PRECISION)
    store(out, (b, h, t[:, None], d[None, :]), acc, (t < T)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["T", "G"])
def weights_from_rows_kernel(
    e,  # [B,1,T,D]
    u,  # [B,1,T,D], or None: no FiLM
    norm,  # Norm of u, or None: u is not normalised
    table,  # [B,G,D], with FiLM [B,G,2D]
    gate_ptr,  # a factor of the sum, or None
    grid_mask,  # [B,G] or None
    text_mask,  # [B,T] or None
    dw,  # [B,T,G] or None: added
    out_ptr,  # [B,T,G] float32, contiguous
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and a block of grids; it walks through the columns."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    token_kept = kept(text_mask, b, t, T)
    grid_kept = kept(grid_mask, b, grid, G)
    acc = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        e_tile, eu_tile = _film_rows(e, u, norm, b, 0, t, T, d, D, token_kept)
        inside = (d < D)[:, None] & grid_kept[None, :]
        acc += dot(eu_tile, load(table, (b, grid[None, :], d[:, None]), inside), PRECISION)
        if u is not None:
            acc += dot(e_tile, load(table, (b, grid[None, :], (D + d)[:, None]), inside), PRECISION)
    if gate_ptr is not None:
        acc *= tl.load(gate_ptr).to(tl.float32)
    if dw is not None:
        inside = (t < T)[:, None] & (grid < G)[None, :]
        acc += load(dw, (b, t[:, None], grid[None, :]), inside).to(tl.float32)
    store_rows(out_ptr, b, t, T, grid, G, acc)


@triton.jit(do_not_specialize=["B", "T", "G", "blocks_per_slot"])
def table_from_rows_kernel(
    w,  # [B,H,T,G]
    e,  # [B,H,T,D]
    u,  # [B,1,T,D], or None: no FiLM
    norm,  # Norm of u, or None: u is not normalised
    text_mask,  # [B,T] or None
    out_ptr,  # [slots,B,H,G,D], with FiLM [slots,B,1,G,2D], float32, contiguous: a part for each slot
    B,
    T,
    G,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a head of a row, a slot of its tokens, a block of grids and one of columns; it loops over the
    tokens."""
    row = tl.program_id(0).to(tl.int64)
    h = row % H
    b = row // H % B
    slot = row // H // B
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    acc_beta = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for block in range(blocks_per_slot):
        t = (slot * blocks_per_slot + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        token_kept = kept(text_mask, b, t, T)
        e_tile, eu_tile = _film_rows(e, u, norm, b, h, t, T, d, D, token_kept)
        w_tile = load(w, (b, h, t[None, :], grid[:, None]), token_kept[None, :] & (grid < G)[:, None])
        acc += dot(w_tile, eu_tile, PRECISION)
        if u is not None:
            acc_beta += dot(w_tile, e_tile, PRECISION)
    width = D if u is None else 2 * D
    rows = out_ptr + (row * G + grid[:, None]) * width + d[None, :]
    inside = (grid < G)[:, None] & (d < D)[None, :]
    tl.store(rows, acc, mask=inside)
    if u is not None:
        tl.store(rows + D, acc_beta, mask=inside)


def _block_t(T: int, film: bool) -> int:
    return 16 if film else block_of_tokens(T)


def rows_from_table(
    w: Tensor, table: Tensor, grid_mask: Tensor | None, out: Tensor, rest: Tensor | None = None
) -> None:
    """Write (w + rest) table to `out`: w [B,T,G], table [B,G,D], out [B,T,D], or all with heads, [B,H,..]."""
    table, out = with_heads(table), with_heads(out)
    (B, H, T, D), G = out.shape, table.shape[2]
    sizes = sizes_of_product(B * H, T, D, w, table)
    sizes = configured(rows_from_table_kernel, table, {"B": B * H, "T": T, "G": G, "D": D}, sizes)
    launch(
        rows_from_table_kernel,
        (B * triton.cdiv(T, sizes["BLOCK_T"]), triton.cdiv(D, sizes["BLOCK_D"]), H),
        w=Weights.of(w, rest),
        table=strided(table),
        grid_mask=strided(grid_mask),
        out=strided(out),
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(rows_from_table_kernel, table),
        **sizes,
    )


def sizes_of_product(rows: int, T: int, columns: int, *operands: Tensor) -> dict[str, int]:
    """Blocks, warps and stages of a kernel that multiplies weights by a table; BLOCK_D is of the table's columns.

    Of 16-bit operands a block is as large as registers allow, since each is read anew by every other block of rows or
    columns; narrower where too few programs would be left to fill a GPU.
    """
    if any(operand.dtype not in HALF or operand.dtype != operands[0].dtype for operand in operands):
        sizes = (block_of_tokens(T), BLOCK_G, BLOCK_D, 4, pipeline_stages(*operands))
    elif T <= 64:
        sizes = (block_of(T), 32, 128, 4, 3)
    elif rows * triton.cdiv(T, 128) * triton.cdiv(columns, 256) < PROGRAMS // 2:
        sizes = (128, 32, 128, 8, 4)
    else:
        sizes = (128, 32, 256, 8, 3)
    names = "BLOCK_T", "BLOCK_G", "BLOCK_D", "num_warps", "num_stages"
    return dict(zip(names, sizes))


def weights_from_rows(
    e: Tensor,
    table: Tensor,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    dw: Tensor | None,
    u: Tensor | None = None,
    norm: Norm | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Compute dw + gate e table^T, [B,T,G] float32; with `u`, e stands for [e u, e], normalised first if `norm` is."""
    (B, T, D), G = e.shape, table.shape[1]
    out = torch.empty(B, T, G, dtype=torch.float32, device=e.device)
    block_t, block_g = _block_t(T, film=u is not None), 16 if G <= 16 else BLOCK_G
    launch(
        weights_from_rows_kernel,
        (B * triton.cdiv(T, block_t), triton.cdiv(G, block_g)),
        e=strided(with_heads(e)),
        u=strided(with_heads(u)),
        norm=norm,
        table=strided(table),
        gate_ptr=gate,
        grid_mask=strided(grid_mask),
        text_mask=strided(text_mask),
        dw=strided(dw),
        out_ptr=out,
        T=T,
        G=G,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(weights_from_rows_kernel, e, table),
        num_warps=4,
        num_stages=pipeline_stages(e, table),
    )
    return out


def table_from_rows(
    w: Tensor, e: Tensor, text_mask: Tensor | None, u: Tensor | None = None, norm: Norm | None = None
) -> Tensor:
    """Compute w^T e, [B,G,D] float32, or with `u` (and `norm`, as in `weights_from_rows`) w^T [e u, e], [B,G,2D].

    w, e and what is returned may have an axis H of heads after B, without `u`.
    """
    heads = e.shape[1:-2]
    w, e, u = with_heads(w), with_heads(e), with_heads(u)
    (B, H, T, D), G = e.shape, w.shape[3]
    block_t, block_g = _block_t(T, film=u is not None), 16 if G <= 16 else BLOCK_G
    blocks, tiles = triton.cdiv(T, block_t), (triton.cdiv(G, block_g), triton.cdiv(D, BLOCK_D))
    slots, blocks_per_slot = slots_of(blocks, B * H * tiles[0] * tiles[1])
    out = torch.empty(slots, B, *heads, G, D if u is None else 2 * D, dtype=torch.float32, device=e.device)
    launch(
        table_from_rows_kernel,
        (B * H * slots, *tiles),
        w=strided(w),
        e=strided(e),
        u=strided(u),
        norm=norm,
        text_mask=strided(text_mask),
        out_ptr=out,
        B=B,
        T=T,
        G=G,
        blocks_per_slot=blocks_per_slot,
        H=H,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(table_from_rows_kernel, e),
        num_warps=4,
        num_stages=pipeline_stages(e),
    )
    return out[0] if slots == 1 else out.sum(0)
