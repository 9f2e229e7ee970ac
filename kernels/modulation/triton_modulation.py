"""Parts shared by the kernels of both FiLMs (docs/mathematics.md, 2a).

With [gamma, beta] = w table + bias, u what is modulated and e the gradient of u (1 + gate gamma) + gate beta, the
backward pass has

    du = e (1 + gate gamma)     dtable = gate w^T [e u, e]     dw = gate [e u, e] table^T     dbias = gate sum [e u, e]

and dgate = [e u, e] . [gamma, beta], which is the inner product of those sums, before the gate, with table and bias.

Shapes: B rows of T tokens and G grids, D columns; w [B,T,G], table [B,G,2D] with gamma's half first. In kernels b is a
number, t, grid and d the indices of a block.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load
from ..common.triton_tiles import HALF, block_of, block_of_tokens, dot, pipeline_stages
from .triton_rows import kept


class Film(NamedTuple):
    """A modulation as a kernel takes it: [gamma, beta] = w table + bias, both times the gate."""

    w: Strided | None  # [B,T,G]; None: not there yet, or apart from this
    table: Strided  # [B,G,2D]
    grid_mask: Strided | None  # [B,G]
    bias: Any  # [2D], contiguous
    gate: Any  # one number

    do_not_specialize_on_alignment = ("w", "grid_mask")


@triton.jit
def modulation(film, w, b, t, d, T, G, D: tl.constexpr, BLOCK_G: tl.constexpr, PRECISION: tl.constexpr):
    """Compute gamma and beta [BLOCK_T, BLOCK_D] of the columns d; w [BLOCK_T, BLOCK_G] None: read in blocks."""
    gamma = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    beta = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    if w is not None:
        gamma_tile, beta_tile = table_tiles(film, b, tl.arange(0, BLOCK_G), d, G, D)
        gamma += dot(w, gamma_tile, PRECISION)
        beta += dot(w, beta_tile, PRECISION)
    else:
        for start in range(0, G, BLOCK_G):
            grid = start + tl.arange(0, BLOCK_G)
            w_tile = weights_tile(film.w, b, t, grid, T, G)
            gamma_tile, beta_tile = table_tiles(film, b, grid, d, G, D)
            gamma += dot(w_tile, gamma_tile, PRECISION)
            beta += dot(w_tile, beta_tile, PRECISION)
    gamma += tl.load(film.bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    beta += tl.load(film.bias + D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    return gamma, beta


@triton.jit
def table_tiles(film, b, grid, d, G, D: tl.constexpr):
    """Gamma's and beta's half of the table [BLOCK_G, BLOCK_D]; masked grids are zero."""
    inside = kept(film.grid_mask, b, grid, G)[:, None] & (d < D)[None, :]
    row = grid.to(tl.int64)[:, None]
    return load(film.table, (b, row, d[None, :]), inside), load(film.table, (b, row, (D + d)[None, :]), inside)


@triton.jit
def weights_tile(w, b, t, grid, T, G):
    """w [BLOCK_T, BLOCK_G]."""
    return load(w, (b, t[:, None], grid.to(tl.int64)[None, :]), (t < T)[:, None] & (grid < G)[None, :])


@triton.jit
def row_tile(x, b, t, d, token_kept, D: tl.constexpr):
    """x [BLOCK_T, BLOCK_D] in float32, zero where a token is not kept."""
    return load(x, (b, t[:, None], d[None, :]), token_kept[:, None] & (d < D)[None, :]).to(tl.float32)


@triton.jit
def residual_tile(y_tile, x, gate, gamma, beta, b, t, d, T, D: tl.constexpr):
    """r = x + y (1 + gate gamma) + gate beta, [BLOCK_T, BLOCK_D] float32."""
    return row_tile(x, b, t, d, t < T, D) + y_tile * (1 + gate * gamma) + gate * beta


@triton.jit
def merge_statistics(x, mean, m2, start, d, D: tl.constexpr):
    """Mean and sum of squared deviations of the columns so far, `start` of them, and the block x (Chan et al. 1979)."""
    count = tl.minimum(D - start, d.shape[0])
    inside = (d < D)[None, :]
    block_mean = tl.sum(tl.where(inside, x, 0.0), 1) / count
    deviation = tl.where(inside, x - block_mean[:, None], 0.0)
    delta = block_mean - mean
    share = count / (start + count)
    return mean + delta * share, m2 + tl.sum(deviation * deviation, 1) + delta * delta * start * share


@triton.jit
def store_column_sums(columns_ptr, e, eu, dln_weight, dln_bias, d, D: tl.constexpr):
    """Write the sums over the block of tokens to this program's four rows."""
    row = columns_ptr + tl.program_id(0).to(tl.int64) * 4 * D + d
    tl.store(row, tl.sum(eu, 0), mask=d < D)
    tl.store(row + D, tl.sum(e, 0), mask=d < D)
    tl.store(row + 2 * D, tl.sum(dln_weight, 0), mask=d < D)
    tl.store(row + 3 * D, tl.sum(dln_bias, 0), mask=d < D)


def tiles(B: int, T: int, G: int, most_grids: int, *tensors: Tensor, backward: bool = False) -> dict:
    """Blocks, warps and stages of a kernel that holds w of up to `most_grids` grids and walks through the columns.

    The largest of those tried that spill nothing for any of the targets of the compile report.
    """
    half = all(tensor.dtype in HALF for tensor in tensors)
    few = most_grids >= G
    return {
        "BLOCK_T": block_of_tokens(B, T) if half and (G <= 32 or not few) else 16,
        "BLOCK_G": block_of(G) if few else 32,
        "BLOCK_D": 64 if half and not backward else 32,
        "num_warps": 4,
        "num_stages": 1 if backward else pipeline_stages(*tensors),
    }


def new_rows(x: Tensor, channels_first: bool) -> Tensor:
    """Allocate a tensor like x [B,T,D], contiguous or, with `channels_first`, in memory as [B,D,T]."""
    T, D = x.shape[1:]
    return x.new_empty_strided(x.shape, (T * D, 1, T) if channels_first else (T * D, D, 1))


def parameter_gradients(
    dtable: Tensor, columns: Tensor, table: Tensor, bias: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute dtable, dbias, dgate, dln_weight and dln_bias from w^T [e u, e] and the columns [programs,4,D]."""
    dbias = columns[:, :2].sum(0).flatten()
    dgate = (dtable * table.float()).sum() + (dbias * bias.float()).sum()
    factor = gate.float().reshape(())
    dbias = (factor * dbias).to(bias.dtype)
    dgate = dgate.to(gate.dtype).reshape(gate.shape)
    return factor * dtable, dbias, dgate, columns[:, 2].sum(0), columns[:, 3].sum(0)
