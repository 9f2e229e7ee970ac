"""Operands of the products of `triton_toeplitz.py`, in Triton: shifted taps, padded rows, their scales.

They are written once, so that the loop of products has no gathers, no masks inside a chunk and no unaligned addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import contiguous
from ..launch import launch

# Copies of a channel's taps, each one step later than the one before: four numbers of 16 bits are loaded at once where
# they are aligned, and any four neighbours are so in one of the copies. Eight would halve the loads and double the
# table, which is predicted to take longer in all.
COPIES = 4
# Steps in a program that shifts taps.
BLOCK = 256
# Channels in a program that pads rows: where they are next to each other in memory, a sector has sixteen of them.
CHANNELS = 32


@triton.jit(do_not_specialize=["L"])
def scales_kernel(
    x,  # Strided [B,D,L]
    d_skip_ptr,  # [D], contiguous, or None: may be added to one of the numbers
    scales_ptr,  # [B,D] float32, contiguous
    L,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program finds the power of two that takes the largest number of a row between 2^13 and 2^14.

    It is a float32, and so is its inverse: of a row of zeros it is 2^126.
    """
    row, d = (tl.program_id(0) // D).to(tl.int64), (tl.program_id(0) % D).to(tl.int64)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, L, BLOCK):
        t = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.abs(load(x, (row, d, t.to(tl.int64)), mask=t < L).to(tl.float32)))
    largest = tl.max(most, 0)
    if d_skip_ptr is not None:
        largest += tl.abs(tl.load(d_skip_ptr + d).to(tl.float32))
    exponent = (largest.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    inverse = tl.maximum(tl.minimum(127 + 127 + 13 - exponent, 253), 1)
    tl.store(scales_ptr + tl.program_id(0), (inverse << 23).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["k_stride", "K", "width"], do_not_specialize_on_alignment=["k_ptr"])
def shifted_taps_kernel(
    k_ptr,  # [D,K], contiguous along K
    k_stride,  # along D
    d_skip_ptr,  # [D], contiguous, or None
    scales_ptr,  # [D] float32, contiguous, or None: factors of the taps
    taps_ptr,  # [D,TERMS,COPIES,width], contiguous
    K,
    width,
    CHUNK: tl.constexpr,
    TERMS: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program writes BLOCK steps of a channel: copy s has k[p - s - CHUNK] at p, and zeros where there is no tap.

    The skip is a part of k[0]. The first of TERMS terms is the tap rounded to the table's dtype, the next the rest.
    """
    d = tl.program_id(0).to(tl.int64)
    s, p = tl.arange(0, COPIES), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lag = p[None, :] - s[:, None] - CHUNK
    rest = tl.load(k_ptr + d * k_stride + lag, mask=(lag >= 0) & (lag < K), other=0.0).to(tl.float32)
    if d_skip_ptr is not None:
        rest += tl.where(lag == 0, tl.load(d_skip_ptr + d).to(tl.float32), 0.0)
    if scales_ptr is not None:
        rest *= tl.load(scales_ptr + d)
    taps = taps_ptr + d * TERMS * COPIES * width + s[:, None] * width + p[None, :]
    for term in tl.static_range(TERMS):
        part = rest.to(taps_ptr.dtype.element_ty)
        tl.store(taps + term * COPIES * width, part, mask=(p < width)[None, :])
        rest -= part.to(tl.float32)


@triton.jit(do_not_specialize=["L", "columns"])
def padded_rows_kernel(
    x,  # Strided [B,D,L]
    gate,  # Strided [B,D,L] or None: factors of x
    table_ptr,  # [3,columns] int32, contiguous, or None: see `packed_columns_kernel`
    rows_ptr,  # [B,D,chunks CHUNK], contiguous; of packed texts [1,D,columns CHUNK]
    L,
    columns,  # chunks of all rows
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Each program takes a chunk of CHANNELS channels: gate x, and zeros after the end of the row or text."""
    column, j = tl.program_id(0), tl.arange(0, CHUNK)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if table_ptr is None:
        chunks = tl.cdiv(L, CHUNK)
        row, place, chunk = column // chunks, column % chunks, column % chunks
        start, length = column * 0, L
    else:
        chunks = columns
        row, place, chunk = column * 0, column, tl.load(table_ptr + 2 * columns + column)
        start, length = tl.load(table_ptr + column), tl.load(table_ptr + columns + column)
    t = chunk * CHUNK + j
    inside = (d < D)[:, None] & (t < tl.where(chunk >= 0, length, -CHUNK))[None, :]
    index = row.to(tl.int64), d[:, None].to(tl.int64), (start + t)[None, :].to(tl.int64)
    tile = load(x, index, mask=inside)
    if gate is not None:
        tile = tile.to(tl.float32) * load(gate, index, mask=inside).to(tl.float32)
    rows = rows_ptr + (row.to(tl.int64) * D + d[:, None]) * chunks * CHUNK + place * CHUNK + j[None, :]
    tl.store(rows, tile, mask=(d < D)[:, None])


def scales_of(x: Tensor, L: int, d_skip: Tensor | None = None) -> Tensor:
    """Powers of two [B,D] that take the first L numbers of each row of x [B,D,*], plus d_skip [D], near 2^14."""
    B, D, _ = x.shape
    scales = torch.empty(B, D, dtype=torch.float32, device=x.device)
    launch(
        scales_kernel,
        (B * D,),
        x=strided(x),
        d_skip_ptr=contiguous(d_skip),
        scales_ptr=scales,
        L=L,
        D=D,
        BLOCK=1024,
        num_warps=4,
    )
    return scales


def shifted_taps(
    k: Tensor,
    d_skip: Tensor | None,
    scales: Tensor | None,
    K: int,
    width: int,
    chunk: int,
    dtype: torch.dtype,
    terms: int,
) -> Tensor:
    """The first K taps of k [D,K], the skip [D] among them, times scales [D], as [D, terms, COPIES, width]."""
    D = k.shape[0]
    taps = torch.empty(D, terms, COPIES, width, dtype=dtype, device=k.device)
    k = k if k.stride(1) == 1 else k.contiguous()
    launch(
        shifted_taps_kernel,
        (D, triton.cdiv(width, BLOCK)),
        k_ptr=k,
        k_stride=k.stride(0),
        d_skip_ptr=contiguous(d_skip),
        scales_ptr=scales,
        taps_ptr=taps,
        K=K,
        width=width,
        CHUNK=chunk,
        TERMS=terms,
        COPIES=COPIES,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return taps


def padded_rows(
    x: Tensor, gate: Tensor | None, table: Tensor | None, columns: int, chunk: int, dtype: torch.dtype
) -> Tensor:
    """gate x of x [B,D,L] in whole chunks: [B, D, chunks x chunk]; of packed texts [1, D, columns x chunk]."""
    B, D, L = x.shape
    rows = torch.empty(B, D, columns // B * chunk, dtype=dtype, device=x.device)
    launch(
        padded_rows_kernel,
        (columns, triton.cdiv(D, CHANNELS)),
        x=strided(x),
        gate=strided(gate),
        table_ptr=table,
        rows_ptr=rows,
        L=L,
        columns=columns,
        D=D,
        CHUNK=chunk,
        CHANNELS=CHANNELS,
        num_warps=4,
    )
    return rows
