"""Tokens' rows of a table of the grids, by their weights, in Triton (mathematics.md, 2a): rows = w table.

Shapes: B rows of T tokens and G grids, D columns; rows [B,T,D], w [B,T,G], table [B,G,D]; masks [B,T] and [B,G]. In
kernels b is a number, t, grid and d are the indices of a block.
"""

from typing import Any, NamedTuple, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, at, load, store, strided
from ..common.triton_tiles import (
    BLOCK_OF_TOKENS,
    HALF,
    PROGRAMS,
    block_of,
    dot,
    dot_precision,
    pipeline_stages,
    token_block,
)
from ..configurations import configured
from ..launch import launch

BLOCK_G, BLOCK_D = 32, 32
# Rows of weights begin at multiples of this, so that vectors of them are loaded whatever the number of grids.
_VECTOR = tl.constexpr(16)


class Norm(NamedTuple):
    """A LayerNorm of rows [B,T,D] with its statistics, as a kernel takes it; all contiguous."""

    weight: Any  # [D]
    bias: Any  # [D], or None where it does not count
    mean: Any  # [B,T] float32
    rstd: Any  # [B,T] float32, 1 / standard deviation

    do_not_specialize_on_alignment = ("mean", "rstd")


class Weights(NamedTuple):
    """Weights [B,H,T,width] as a kernel takes them: the sum of two terms of few bits, or one term.

    The last axis has the grids, and zeros after them if it is longer (`new_weights`).
    """

    first: Strided
    rest: Strided | None
    width: int

    @classmethod
    def of(cls, first: Tensor, rest: Tensor | None) -> "Weights":
        """Those of tensors with heads, or [B,T,width] without."""
        return cls(strided(with_heads(first)), strided(with_heads(rest)), first.shape[-1])


def new_weights(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate weights of G grids in whole vectors, [..,width], for a kernel that writes zeros after the last grid."""
    *rows, G = shape
    return torch.empty(*rows, triton.cdiv(G, _VECTOR.value) * _VECTOR.value, dtype=dtype, device=device)


@triton.jit
def width_of_weights(G):
    """The last axis of `new_weights`."""
    return tl.cdiv(G, _VECTOR) * _VECTOR


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
def tokens_and_grids(selection, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr):
    """The row b and the tokens t of a program's block, all grids, and which of the tokens and grids are kept."""
    b, t = token_block(selection.T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    return b, t, grid, kept(selection.text_mask, b, t, selection.T), kept(selection.grid_mask, b, grid, selection.G)


@triton.jit
def load_statistics(norm, b, t, T, mask):
    """mean and rstd of the tokens t, which `Norm` has; 0 where `mask` is False."""
    row = b * T + t
    return tl.load(norm.mean + row, mask=mask, other=0.0), tl.load(norm.rstd + row, mask=mask, other=0.0)


@triton.jit
def store_statistics(norm, b, t, T, mean, rstd):
    """Write mean and rstd of the tokens t."""
    tl.store(norm.mean + b * T + t, mean, mask=t < T)
    tl.store(norm.rstd + b * T + t, rstd, mask=t < T)


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
        of_w = (t < T)[:, None] & (start + grid < w.width)[None, :]
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


def rows_from_table(
    w: Tensor, table: Tensor, grid_mask: Tensor | None, out: Tensor, rest: Tensor | None = None
) -> None:
    """Write (w + rest) table to `out`: w [B,T,width], table [B,G,D], out [B,T,D], or all with heads, [B,H,..]."""
    table, out = with_heads(table), with_heads(out)
    (B, H, T, D), G = out.shape, table.shape[2]
    sizes = sizes_of_product(B * H, T, D, w, table)
    if G <= 64:  # a short product waits for what it writes: narrow tiles lose nothing
        sizes |= {"BLOCK_D": min(sizes["BLOCK_D"], 128)}
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
        sizes = (min(BLOCK_OF_TOKENS, block_of(T)), BLOCK_G, BLOCK_D, 4, pipeline_stages(*operands))
    elif T <= 64:
        sizes = (block_of(T), 32, 128, 4, 3)
    elif rows * triton.cdiv(T, 128) * triton.cdiv(columns, 256) < PROGRAMS // 2:
        sizes = (128, 32, 128, 8, 4)
    else:
        sizes = (128, 32, 256, 8, 3)
    return sizes_of(*sizes)


def sizes_of(block_t: int, block_g: int, block_d: int, warps: int, stages: int) -> dict[str, int]:
    names = "BLOCK_T", "BLOCK_G", "BLOCK_D", "num_warps", "num_stages"
    return dict(zip(names, (block_t, block_g, block_d, warps, stages)))
