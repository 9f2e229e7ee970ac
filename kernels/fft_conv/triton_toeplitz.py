"""Causal convolution in time as products of Toeplitz blocks with chunks of the rows, in Triton.

B rows of D channels and L steps, K taps a channel. A row, or a packed sequence, is cut into chunks of CHUNK steps; each
is a column, and a program has COLUMNS of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import HALF, block_of, contiguous, dot, dot_precision, slots_of
from ..launch import launch

# Steps in a chunk.
CHUNK = 64
# How taps enter products: in float32; as two terms of the inputs' 16 bits; as one.
WIDE, SPLIT, SINGLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _columns(table_ptr, column, columns, B, L):
    """Load a column's row, the start and length of its sequence, and which of its chunks it is (-1: none).

    Without packing the columns are (chunk, row), so that a block of them has few chunks and one row makes many columns.
    """
    if table_ptr is None:
        row = (column % B).to(tl.int64)
        start = column * 0
        length = start + L
        chunk = tl.where(column < columns, column // B, -1)
    else:
        row = (column * 0).to(tl.int64)
        start = tl.load(table_ptr + column, mask=column < columns, other=0)
        length = tl.load(table_ptr + columns + column, mask=column < columns, other=0)
        chunk = tl.load(table_ptr + 2 * columns + column, mask=column < columns, other=-1)
    return row, start, length, chunk


@triton.jit
def _steps(start, length, chunk, j, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """Compute the positions in a row [steps, COLUMNS] of the steps j of chunks, and which of them exist."""
    t = chunk[None, :] * CHUNK + j[:, None]
    inside = (chunk >= 0)[None, :] & (t < length[None, :])
    if REVERSE:
        t = length[None, :] - 1 - t
    return (start[None, :] + t).to(tl.int64), inside


@triton.jit
def _gated(x, gate, row, d, t, inside):
    """x as it is, or gate x in float32."""
    tile = load(x, (row[None, :], d, t), mask=inside)
    if gate is not None:
        tile = tile.to(tl.float32) * load(gate, (row[None, :], d, t), mask=inside).to(tl.float32)
    return tile


@triton.jit
def toeplitz_kernel(
    x,  # Strided [B,D,L]
    k,  # Strided [D,K]
    d_skip_ptr,  # [D], contiguous, or None
    gate,  # Strided [B,D,L] or None
    table_ptr,  # [3,columns] int32, contiguous, or None: of each column the sequence's start and length, and its chunk
    y_ptr,  # [B,D,L], contiguous
    B,
    L,
    K,
    columns,
    D: tl.constexpr,
    REVERSE: tl.constexpr,  # time runs backwards, which is the transposed product, and the gate is the input's
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,  # of a chunk in one product
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes COLUMNS chunks of a channel: y[:, c] = sum_m T_m x[:, c - m], T_m[i, j] = k[CHUNK m + i - j].

    Error against float64, rms of the output, in Triton's interpreter with products taken apart as a GPU does, L = 500
    to 2000: 1e-7 in bf16x6 and in float32, 4e-6 in bf16x3, 2e-3 of bfloat16 operands, 3e-4 of float16 ones.
    """
    blocks = tl.cdiv(columns, COLUMNS)
    d = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    row, start, length, chunk = _columns(table_ptr, column, columns, B, L)
    i = tl.arange(0, CHUNK)
    acc = tl.zeros([CHUNK, COLUMNS], tl.float32)
    parts: tl.constexpr = CHUNK // STEPS
    for part in range(0, (tl.minimum(tl.max(chunk, 0), (K + CHUNK - 2) // CHUNK) + 1) * parts):
        m, j = part // parts, part % parts * STEPS + tl.arange(0, STEPS)
        lag = m * CHUNK + i[:, None] - j[None, :]
        inside = (lag >= 0) & (lag < K)
        taps = load(k, (d, lag.to(tl.int64)), mask=inside)
        t, inside = _steps(start, length, chunk - m, j, CHUNK, REVERSE)
        if REVERSE:
            tile = _gated(x, gate, row, d, t, inside)
        else:
            tile = _gated(x, None, row, d, t, inside)
        if OPERANDS == WIDE:
            acc += dot(taps.to(tl.float32), tile, PRECISION)
        else:
            tile = tile.to(x.ptr.dtype.element_ty)
            high = taps.to(tile.dtype)
            acc += dot(high, tile, PRECISION)
            if OPERANDS == SPLIT:
                acc += dot((taps.to(tl.float32) - high.to(tl.float32)).to(tile.dtype), tile, PRECISION)
    t, inside = _steps(start, length, chunk, i, CHUNK, REVERSE)
    if d_skip_ptr is not None:
        if REVERSE:
            tile = _gated(x, gate, row, d, t, inside)
        else:
            tile = _gated(x, None, row, d, t, inside)
        acc += tl.load(d_skip_ptr + d).to(tl.float32) * tile.to(tl.float32)
    if gate is not None and not REVERSE:
        acc *= load(gate, (row[None, :], d, t), mask=inside).to(tl.float32)
    tl.store(y_ptr + (row[None, :] * D + d) * L + t, acc, mask=inside)


@triton.jit
def toeplitz_taps_kernel(
    late,  # Strided [B,D,L]
    gate,  # Strided [B,D,L] or None: factors of `late`
    early,  # Strided [B,D,L]
    table_ptr,  # as in `toeplitz_kernel`
    sums_ptr,  # [slots,D,lag_blocks,2,CHUNK] float32, contiguous
    B,
    L,
    columns,
    lag_blocks,
    blocks_per_slot,  # how many blocks of columns a program walks through
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a channel, the lags around CHUNK m and a slot of the columns: sum_t late_t early_{t - lag}.

    A = sum over columns late[:, c] early[:, c - m]^T has the lag CHUNK m + i - j at [i, j]: its diagonals are summed.
    """
    d, m = (tl.program_id(0) // lag_blocks).to(tl.int64), tl.program_id(0) % lag_blocks
    slot = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, CHUNK)
    acc = tl.zeros([CHUNK, CHUNK], tl.float32)
    first = tl.program_id(1) * blocks_per_slot
    end = tl.minimum(first + blocks_per_slot, tl.cdiv(columns, COLUMNS))
    if table_ptr is None:
        first = tl.maximum(first, m * B // COLUMNS)  # earlier columns are of chunks before m
    for block in range(first, end):
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        row, start, length, chunk = _columns(table_ptr, column, columns, B, L)
        t, inside = _steps(start, length, chunk, i, CHUNK, False)
        late_tile = _gated(late, gate, row, d, t, inside)
        t, inside = _steps(start, length, chunk - m, i, CHUNK, False)
        early_tile = load(early, (row[None, :], d, t), mask=inside)
        if SINGLE:
            late_tile = late_tile.to(early_tile.dtype)
        acc += dot(late_tile, tl.trans(early_tile), PRECISION)
    back = i[:, None] - i[None, :]  # j of the lag CHUNK m + r, r = 0 .. CHUNK - 1
    on = tl.where(back >= 0, tl.gather(acc, tl.maximum(back, 0), 1), 0.0)
    before = tl.where(back < 0, tl.gather(acc, tl.where(back < 0, back + CHUNK, 0), 1), 0.0)
    sums = sums_ptr + ((slot * D + d) * lag_blocks + m) * 2 * CHUNK + i
    tl.store(sums, tl.sum(on, 0))
    tl.store(sums + CHUNK, tl.sum(before, 0))


def _table(cu_seqlens: Tensor, L: int, chunk: int) -> Tensor:
    """The columns of packed sequences, as many as there can be: [3, columns], made on the device without a wait."""
    columns = torch.arange(triton.cdiv(L, chunk) + cu_seqlens.numel() - 1, device=cu_seqlens.device)
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    ends = ((lengths + (chunk - 1)) // chunk).cumsum(0)
    text = torch.searchsorted(ends, columns, right=True)
    there = text < lengths.numel()
    text = torch.where(there, text, 0)
    number = columns - torch.where(text > 0, ends[text - 1], 0)
    return torch.stack([starts[text], lengths[text], torch.where(there, number, -1)]).int()


class _Chunks:
    """Division of the rows of u [B,D,L] into chunks: their size, and the arguments that give their positions."""

    def __init__(self, u: Tensor, cu_seqlens: Tensor | None):
        B, _, L = u.shape
        self.size = min(CHUNK, block_of(L))
        table = None if cu_seqlens is None else _table(cu_seqlens, L, self.size)
        self.columns = B * triton.cdiv(L, self.size) if table is None else table.shape[1]
        self.arguments = {"table_ptr": table, "B": B, "L": L, "columns": self.columns, "CHUNK": self.size}


def _operands(x: Tensor, k: Tensor, gated: bool, dtype: torch.dtype, fast: bool) -> int:
    """WIDE, SPLIT or SINGLE, of x as it is or `gated`. Float16 has not the range to take taps of float32 apart."""
    if x.dtype not in HALF:
        return WIDE.value
    if fast or (k.dtype == x.dtype and not gated):
        return SINGLE.value
    return SPLIT.value if x.dtype == dtype == torch.bfloat16 and not gated else WIDE.value


def _convolve(
    x: Tensor,
    k: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    chunks: _Chunks,
    dtype: torch.dtype,
    fast: bool,
    reverse: bool = False,
) -> Tensor:
    """gate (k * x + d x) in `dtype`, or the transpose of this applied to x."""
    _, D, L = x.shape
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    operands = _operands(x, k, reverse and gate is not None, dtype, fast)
    columns = min(32, block_of(chunks.columns))
    given = [x, y] if gate is None else [x, y, gate]
    launch(
        toeplitz_kernel,
        (D * triton.cdiv(chunks.columns, columns),),
        x=strided(x),
        k=strided(k),
        d_skip_ptr=contiguous(d_skip),
        gate=strided(gate),
        y_ptr=y,
        K=min(k.shape[1], L),
        D=D,
        REVERSE=reverse,
        COLUMNS=columns,
        STEPS=chunks.size if operands == SINGLE.value else min(chunks.size, 32),
        OPERANDS=operands,
        PRECISION=dot_precision(toeplitz_kernel, *given),
        num_warps=4,
        num_stages=1 if operands == WIDE.value else 2,
        **chunks.arguments,
    )
    return y


def _of_taps(
    dy: Tensor, u: Tensor, gate: Tensor | None, chunks: _Chunks, K: int, fast: bool, *rounded_to: Tensor
) -> Tensor:
    """sum_t (gate dy)_t u_{t - l} of l = 0 .. K - 1, [D,K] float32, to be rounded to dtypes of the last tensors."""
    _, D, L = u.shape
    taps = min(K, L)
    lag_blocks = (taps + chunks.size - 2) // chunks.size + 1
    single = fast and u.dtype in HALF
    exact = u.dtype in HALF and gate is None
    columns = min(32 if single or exact else 16, block_of(chunks.columns))
    slots, blocks_per_slot = slots_of(triton.cdiv(chunks.columns, columns), D * lag_blocks)
    sums = torch.empty(slots, D, lag_blocks, 2, chunks.size, dtype=torch.float32, device=u.device)
    launch(
        toeplitz_taps_kernel,
        (D * lag_blocks, slots),
        late=strided(dy),
        gate=strided(gate),
        early=strided(u),
        sums_ptr=sums,
        lag_blocks=lag_blocks,
        blocks_per_slot=blocks_per_slot,
        D=D,
        COLUMNS=columns,
        SINGLE=single,
        PRECISION=dot_precision(toeplitz_taps_kernel, u, *rounded_to),
        num_warps=4,
        num_stages=1,
        **chunks.arguments,
    )
    on, before = sums.sum(0).unbind(2)
    on[:, :-1] += before[:, 1:]
    dk = sums.new_zeros(D, K)
    dk[:, :taps] = on.flatten(1)[:, :taps]
    return dk


def toeplitz(
    u: Tensor, k: Tensor, d_skip: Tensor | None, gate: Tensor | None, cu_seqlens: Tensor | None, fast: bool
) -> Tensor:
    """y [B,D,L] in the dtype of u [B,D,L]; k [D,K], d_skip [D], gate [B,D,L]; cu_seqlens as in the op."""
    return _convolve(u, k, d_skip, gate, _Chunks(u, cu_seqlens), u.dtype, fast)


def toeplitz_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    fast: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of u, k, d_skip and gate in their dtypes; None where there is none."""
    chunks = _Chunks(u, cu_seqlens)
    du = _convolve(dy, k, d_skip, gate, chunks, u.dtype, fast, reverse=True)
    dk = _of_taps(dy, u, gate, chunks, k.shape[1], fast, k, *([] if d_skip is None else [d_skip]))
    # The skip is one more weight at lag 0.
    dd_skip = None if d_skip is None else dk[:, 0].to(d_skip.dtype, copy=True)
    dgate = None if gate is None else _convolve(u, k, d_skip, dy, chunks, gate.dtype, fast)
    return du, dk.to(k.dtype), dd_skip, dgate


def skip_gradient(dy: Tensor, u: Tensor, gate: Tensor | None, d_skip: Tensor | None) -> Tensor | None:
    """The gradient of d_skip where k is not among the tensors: the skip is one weight at lag 0. None for None."""
    if d_skip is None:
        return None
    return _of_taps(dy, u, gate, _Chunks(u, None), 1, False, d_skip)[:, 0].to(d_skip.dtype, copy=True)
