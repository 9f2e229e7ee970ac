"""Chunks of rows and of packed texts, the columns of what kernels work on, in Triton."""

# In a kernel, what a constexpr decides is bound wherever it is read.
# pyright: reportPossiblyUnboundVariable=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch


@triton.jit
def load_columns(table_ptr, column, columns, B, L):
    """Load a column's row, the start and length of its text, and which of its chunks it is (-1: none).

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


@triton.jit(do_not_specialize=["texts", "columns"])
def packed_columns_kernel(
    borders_ptr,  # [texts+1] int32 or int64, contiguous
    table_ptr,  # [3,columns] int32, contiguous
    texts,
    columns,
    CHUNK: tl.constexpr,
    TEXTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program finds COLUMNS columns: the start and length of a column's text, and which of its chunks it is.

    Texts are cut into chunks, one after the other. -1 is the chunk of a column beyond the last.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    text = tl.zeros([COLUMNS], tl.int32)  # how many texts end before the column, in columns
    first = tl.zeros([COLUMNS], tl.int32)  # and where the last of them does
    end_before = tl.zeros([], tl.int32)
    for block in range(0, texts, TEXTS):
        i = block + tl.arange(0, TEXTS)
        start = tl.load(borders_ptr + i, mask=i < texts, other=0)
        length = tl.load(borders_ptr + i + 1, mask=i < texts, other=0) - start
        chunks = tl.cdiv(length.to(tl.int32), CHUNK)
        end = end_before + tl.cumsum(chunks, 0)
        before = (end[None, :] <= column[:, None]) & (i < texts)[None, :]
        text += tl.sum(before.to(tl.int32), 1)
        first = tl.maximum(first, tl.max(tl.where(before, end[None, :], 0), 1))
        end_before += tl.sum(chunks, 0)
    there = text < texts
    start = tl.load(borders_ptr + text, mask=there, other=0)
    end = tl.load(borders_ptr + text + 1, mask=there, other=0)
    inside = column < columns
    tl.store(table_ptr + column, start.to(tl.int32), mask=inside)
    tl.store(table_ptr + columns + column, (end - start).to(tl.int32), mask=inside)
    tl.store(table_ptr + 2 * columns + column, tl.where(there, column - first, -1), mask=inside)


def packed_columns(cu_seqlens: Tensor, L: int, chunk: int) -> Tensor:
    """The columns of packed texts, as many as there can be: [3, columns].

    They are made anew in each call, on the device and in one launch: what a cache had found by the tensor's identity
    and version would be wrong as soon as a CUDA graph is replayed, whose inputs change with no one's knowledge.
    """
    texts = cu_seqlens.numel() - 1
    table = torch.empty(3, triton.cdiv(L, chunk) + texts, dtype=torch.int32, device=cu_seqlens.device)
    launch(
        packed_columns_kernel,
        (triton.cdiv(table.shape[1], 32),),
        borders_ptr=cu_seqlens.contiguous(),
        table_ptr=table,
        texts=texts,
        columns=table.shape[1],
        CHUNK=chunk,
        TEXTS=64,
        COLUMNS=32,
        num_warps=4,
    )
    return table
