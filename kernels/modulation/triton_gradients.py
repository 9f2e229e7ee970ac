"""Parts shared by the backward passes of both FiLMs, for few grids (docs/mathematics.md, 2a).

Two kernels read all tokens. One sums over columns, in parts of the columns; the other over tokens, a slot of them to a
program. What it sums is w^T [e n, e], a product, so that threads exchange nothing. The bias is there one more grid, G,
whose weight is 1 for every token. The gradients of gate and norm follow from these sums: with f = 1 + gate gamma

    sum_t e f = sum_g (gate table_g + [g = G]) sum_t w_tg e,    and the same for e n.

Shapes: B rows of T tokens and G grids, D columns; w [B,T,G], table [B,G,2D] with gamma's half first. In kernels b is a
number, t, grid and d the indices of a block.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..common.strided import load
from .triton_rows import kept

# With the bias as many as a product has rows at least: more sums would not fit in registers beside all else.
MOST_GRIDS = 15
BLOCK_G = 16
# Of sums over columns: each of two warps has rows of its own in every product, and none twice.
BLOCK_T, BLOCK_D = 32, 32
# Up to so many tokens the columns are divided into parts: else too few programs would wait for memory at a time.
FEW_TOKENS = 2**15
MOST_PARTS = 4


class RowSums(NamedTuple):
    """Weights of tokens, and sums over parts of the columns that their gradients need; float32, contiguous."""

    w: Any  # [B,T,G]
    dw: Any  # [B,T,PARTS,G]
    dn: Any  # [B,T,PARTS]: of the gradient dn of what is normalised
    dn_n: Any  # [B,T,PARTS]: of dn n
    PARTS: tl.constexpr

    do_not_specialize_on_alignment = ("dn", "dn_n")


class TokenSums(NamedTuple):
    """Sums that programs leave, each over a slot of the tokens of a row; float32, contiguous."""

    table: Any  # [B * slots,G+1,2D]: w^T [e u, e], the last row for the bias
    norm: Any  # [B * slots,2,D]: the gradients of a norm's weight and bias, or None
    gate: Any  # [B * slots,column blocks]: the gradient of the gate


@triton.jit
def _terms(a):
    """a as a sum of two bfloat16 numbers, right to 2^-18; the first is rounded as an integer, which GPUs do faster."""
    high = ((a.to(tl.int32, bitcast=True) + 32768) & -65536).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), (a - high).to(tl.bfloat16)


@triton.jit
def dot_terms(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32: with bf16x3, a float32 operand is two bfloat16 terms and a bfloat16 one is itself."""
    if a.dtype == b.dtype and a.dtype.primitive_bitwidth == 16:
        acc = tl.dot(a, b, acc)
    elif PRECISION != "bf16x3":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    elif a.dtype == tl.bfloat16:
        high, low = _terms(b)
        acc = tl.dot(a, low, tl.dot(a, high, acc))
    elif b.dtype == tl.bfloat16:
        high, low = _terms(a)
        acc = tl.dot(low, b, tl.dot(high, b, acc))
    else:
        a_high, a_low = _terms(a.to(tl.float32))
        b_high, b_low = _terms(b.to(tl.float32))
        acc = tl.dot(a_low, b_high, tl.dot(a_high, b_low, tl.dot(a_high, b_high, acc)))
    return acc


@triton.jit
def columns(first, D: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """The BLOCK columns from `first` on, and which of them are below D: all, if D is a multiple of STEP."""
    d = first + tl.arange(0, BLOCK)
    if D % STEP == 0:
        exists = tl.full([BLOCK], True, tl.int1)
    else:
        exists = d < D
    return d, exists


@triton.jit
def vector(ptr, d, exists):
    """The columns d of a vector in float32."""
    return tl.load(ptr + d, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def row_means(rows, row, mask, D: tl.constexpr):
    """The means of dn and of dn n over the columns, of the tokens `row` among all."""
    dn = tl.zeros(row.shape, tl.float32)
    dn_n = dn
    for part in tl.static_range(rows.PARTS):
        dn += tl.load(rows.dn + row * rows.PARTS + part, mask=mask, other=0.0)
        dn_n += tl.load(rows.dn_n + row * rows.PARTS + part, mask=mask, other=0.0)
    return dn / D, dn_n / D


@triton.jit
def slot_of_tokens(T, BLOCK_T: tl.constexpr, blocks_per_slot):
    """The row b of a program's slot of tokens, and the first of them, both int64."""
    slots = tl.cdiv(tl.cdiv(T, BLOCK_T), blocks_per_slot)
    first = (tl.program_id(0) % slots).to(tl.int64) * blocks_per_slot * BLOCK_T
    return (tl.program_id(0) // slots).to(tl.int64), first


@triton.jit
def table_tile(film, b, grid, column, exists, G):
    """Columns of the table [BLOCK_G, BLOCK_D]; masked grids are zero."""
    inside = kept(film.grid_mask, b, grid, G)[:, None] & exists[None, :]
    return load(film.table, (b, grid.to(tl.int64)[:, None], column[None, :]), inside)


@triton.jit
def store_token_sums(sums, film, gamma, gate, en_sums, e_sums, norm, b, d, exists, G, D: tl.constexpr):
    """Write what a program has summed of w^T [e n, e], [BLOCK_G, BLOCK_D]; with a norm u = n weight + bias, else n."""
    program = tl.program_id(0).to(tl.int64)
    grid = tl.arange(0, en_sums.shape[0])
    bias = (grid == G)[:, None]
    gamma = tl.where(bias, vector(film.bias, d, exists)[None, :], gamma.to(tl.float32))
    beta = table_tile(film, b, grid, D + d, exists, G).to(tl.float32)
    beta = tl.where(bias, vector(film.bias + D, d, exists)[None, :], beta)
    eu_sums = en_sums
    if norm is not None:
        eu_sums = en_sums * vector(norm.weight, d, exists)[None, :] + e_sums * vector(norm.bias, d, exists)[None, :]
        factor = tl.where(bias, 1.0, 0.0) + gate * gamma
        row = sums.norm + program * 2 * D + d
        tl.store(row, tl.sum(en_sums * factor, 0), mask=exists)
        tl.store(row + D, tl.sum(e_sums * factor, 0), mask=exists)
    tile = sums.table + (program * (G + 1) + grid[:, None]) * 2 * D + d[None, :]
    inside = (grid <= G)[:, None] & exists[None, :]
    tl.store(tile, eu_sums, mask=inside)
    tl.store(tile + D, e_sums, mask=inside)
    dgate = tl.sum(tl.sum(eu_sums * gamma + e_sums * beta, 1), 0)
    tl.store(sums.gate + program * tl.num_programs(1) + tl.program_id(1), dgate)


def parts_of_columns(tokens: int, D: int) -> int:
    """Number of parts into which the columns are divided, so that few tokens still fill a GPU."""
    return min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(D, BLOCK_D))) if tokens <= FEW_TOKENS else 1


def new_token_sums(programs: int, column_blocks: int, G: int, D: int, device: torch.device, *, norm: bool) -> TokenSums:
    """Allocate the sums of programs that each take a slot of tokens and one of `column_blocks` blocks of columns."""
    new = {"dtype": torch.float32, "device": device}
    return TokenSums(
        torch.empty(programs, G + 1, 2 * D, **new),
        torch.empty(programs, 2, D, **new) if norm else None,
        torch.empty(programs, column_blocks, **new),
    )
