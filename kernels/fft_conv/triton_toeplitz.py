"""Causal convolution in time as products of Toeplitz blocks with chunks of the rows, in Triton.

B rows of D channels and L steps, K taps a channel. A row, or a packed text, is cut into chunks of CHUNK steps; each is
a column of the output, and a program has COLUMNS of them. Of the input it takes STEPS steps of a column at a time.
"""

# In a kernel, what a constexpr decides is bound wherever it is read.
# pyright: reportPossiblyUnboundVariable=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, strided
from ..common.triton_tiles import DTYPES, HALF, slots_of
from ..configurations import configured
from ..launch import interpreting, launch
from .triton_columns import load_columns, packed_columns
from .triton_products import Products, add_products, gradient_of_inputs, products_of
from .triton_toeplitz_operands import BLOCK, COPIES, padded_rows, scales_of, shifted_taps

# Steps of a chunk: few enough that the half of its own block that is zeros costs little, and of long rows more, since
# each block of taps then serves as many columns with half of the loads.
CHUNK, CHUNK_OF_LONG, LONG = 64, 128, 1024
# Steps of the input and columns in one product, of terms that are there and of those that the program makes.
STEPS, STEPS_OF_TERMS = 64, 32
COLUMNS, COLUMNS_OF_TERMS = 128, 64
# Vectors of 16 bytes are loaded where what lies before them is known to be a multiple of this.
ALIGNED = 16
_COPIES = tl.constexpr(COPIES)


@triton.jit
def _begin(x, table_ptr, row, column, chunk, CHUNK: tl.constexpr):
    """Compute where the columns begin in the rows of a channel, as `padded_rows_kernel` lays them out."""
    if table_ptr is None:
        return row * x.strides[0] + chunk * CHUNK
    return column.to(tl.int64) * CHUNK


@triton.jit
def _split(rest, kind: tl.constexpr, last: tl.constexpr):
    """Take numbers apart: what 16 bits hold of them, and what they leave.

    Of bfloat16 terms all but the last are bits cut off: a float32 is three of them, of eight bits each.
    """
    if last:
        part = rest.to(kind)
    elif kind == tl.float16:
        part = rest.to(kind)
        rest = rest.to(tl.float32) - part.to(tl.float32)
    else:
        bits = rest.to(tl.float32).to(tl.uint32, bitcast=True)
        part = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        rest = rest.to(tl.float32) - (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return part, rest


@triton.jit(do_not_specialize=["B", "columns", "lag_blocks"])
def toeplitz_kernel(
    x,  # Strided [B,D,chunks CHUNK], whose steps are next to each other; of packed texts [1,D,columns CHUNK]
    taps_ptr,  # [D,TAP_TERMS,_COPIES,width], contiguous: see `shifted_taps_kernel`
    scales,  # of x [B,D] and of the taps [D], both float32 and contiguous, or None: see `scales_kernel`
    products,  # Products or None; with REVERSE their gradient, Strided [B,D,L]
    gate,  # Strided [B,D,L] or None
    table_ptr,  # [3,columns] int32, contiguous, or None: see `packed_columns_kernel`
    y_ptr,  # [B,D,L], contiguous
    B,
    L,
    lag_blocks,
    columns,
    D: tl.constexpr,
    REVERSE: tl.constexpr,  # the transposed product, in which time runs backwards
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,  # of the input in one product, a part of CHUNK
    COLUMNS: tl.constexpr,
    X_TERMS: tl.constexpr,
    TAP_TERMS: tl.constexpr,
):
    """Each program takes COLUMNS chunks of a channel: y = sum_m x_m T_m over STEPS steps m of the input at a time.

    x_m [COLUMNS,STEPS] are the m-th last steps that a column can see, and T_m[j, i] = k[t - s] for the step s of x that
    is j and the step t of y that is i. Of the products of terms those are taken that are no smaller than the error.
    """
    blocks = tl.cdiv(columns, COLUMNS)
    d = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    row, start, length, chunk = load_columns(table_ptr, column, columns, B, L)
    parts: tl.constexpr = CHUNK // STEPS
    i, j = tl.arange(0, CHUNK), tl.arange(0, STEPS)
    begin = _begin(x, table_ptr, row, column, chunk, CHUNK)
    width = lag_blocks * STEPS + CHUNK
    block_ptr = taps_ptr + d * (TAP_TERMS * _COPIES) * width
    step: tl.constexpr = STEPS if REVERSE else -STEPS
    if REVERSE:  # from a chunk's first step on: T_m[j, i] = k[STEPS m + j - i]
        last = tl.where(chunk >= 0, (length - 1) // STEPS - chunk * parts, -1)
        tile_ptr = x.ptr + d * x.strides[1]
        block = (i % _COPIES * width - i // _COPIES * _COPIES)[:, None] + (CHUNK + j)[None, :]
    else:  # from its last steps back: T_m[j, i] = k[STEPS m + i - j - (CHUNK - STEPS)]
        last = tl.where(chunk >= 0, (chunk + 1) * parts - 1, -1)
        tile_ptr = x.ptr + d * x.strides[1] + (CHUNK - STEPS)
        block = (j % _COPIES * width - j // _COPIES * _COPIES)[:, None] + (STEPS + i)[None, :]
    tile = begin[:, None] + j[None, :]
    terms: tl.constexpr = max(X_TERMS, TAP_TERMS)
    acc = tl.zeros([COLUMNS, CHUNK], tl.float32)
    if scales is not None:
        scale = tl.load(scales[0] + row * D + d)
    for m in range(0, tl.minimum(tl.max(last, 0) + 1, lag_blocks)):
        rest = tl.load(tile_ptr + m * step + tile, mask=(last >= m)[:, None], other=0.0)
        if scales is not None:
            rest = rest.to(tl.float32) * scale[:, None]
        for x_term in tl.static_range(X_TERMS):
            part, rest = _split(rest, taps_ptr.dtype.element_ty, x_term + 1 == X_TERMS)
            for tap_term in tl.static_range(min(TAP_TERMS, terms - x_term)):
                taps = tl.load(block_ptr + tap_term * _COPIES * width + m * STEPS + block)
                acc = tl.dot(part, tl.trans(taps) if REVERSE else taps, acc, input_precision="ieee")
    if scales is not None:
        acc = acc * (1 / scale[:, None]) * (1 / tl.load(scales[1] + d))
    t = chunk[:, None] * CHUNK + i[None, :]
    inside = (chunk >= 0)[:, None] & (t < length[:, None])
    if products is not None and not REVERSE:
        first = (start + chunk * CHUNK)[:, None].to(tl.int64)
        acc = add_products(acc, products, (row[:, None], d, first, i[None, :], t, inside))
    t = (start[:, None] + t).to(tl.int64)
    if products is not None and REVERSE:
        acc += load(products, (row[:, None], d, t), mask=inside)
    if gate is not None:
        acc *= load(gate, (row[:, None], d, t), mask=inside).to(tl.float32)
    tl.store(y_ptr + (row[:, None] * D + d) * L + t, acc, mask=inside)


@triton.jit(do_not_specialize=["B", "L", "columns", "lag_blocks", "blocks_per_slot"])
def toeplitz_taps_kernel(
    late,  # Strided, as x in `toeplitz_kernel`
    early,  # Strided, likewise
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
    LATE_TERMS: tl.constexpr,
    EARLY_TERMS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Each program takes a channel, the lags around CHUNK m and a slot of the columns: sum_t late_t early_{t - lag}.

    A = sum over columns late[c, :]^T early[c - m, :] has the lag CHUNK m + i - j at [i, j]: its diagonals are summed.
    """
    d, m = (tl.program_id(0) // lag_blocks).to(tl.int64), tl.program_id(0) % lag_blocks
    slot = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, CHUNK)
    terms: tl.constexpr = max(LATE_TERMS, EARLY_TERMS)
    acc = tl.zeros([CHUNK, CHUNK], tl.float32)
    first = tl.program_id(1) * blocks_per_slot
    end = tl.minimum(first + blocks_per_slot, tl.cdiv(columns, COLUMNS))
    if table_ptr is None:
        first = tl.maximum(first, m * B // COLUMNS)  # earlier columns are of chunks before m
    for block in range(first, end):
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        row, _, _, chunk = load_columns(table_ptr, column, columns, B, L)
        inside = (chunk >= m)[:, None]
        place = _begin(late, table_ptr, row, column, chunk, CHUNK)[:, None] + i[None, :]
        late_rest = tl.load(late.ptr + d * late.strides[1] + place, mask=inside, other=0.0)
        place = _begin(early, table_ptr, row, column, chunk, CHUNK)[:, None] + i[None, :]
        early_tile = tl.load(early.ptr + d * early.strides[1] - m * CHUNK + place, mask=inside, other=0.0)
        for late_term in tl.static_range(LATE_TERMS):
            late_part, late_rest = _split(late_rest, OPERAND, late_term + 1 == LATE_TERMS)
            early_rest = early_tile
            for early_term in tl.static_range(min(EARLY_TERMS, terms - late_term)):
                early_part, early_rest = _split(early_rest, OPERAND, early_term + 1 == EARLY_TERMS)
                acc = tl.dot(tl.trans(late_part), early_part, acc, input_precision="ieee")
    back = i[:, None] - i[None, :]  # j of the lag CHUNK m + r, r = 0 .. CHUNK - 1; below 0 of the block before
    diagonals = tl.gather(acc, back & (CHUNK - 1), 1)
    sums = sums_ptr + ((slot * D + d) * lag_blocks + m) * 2 * CHUNK + i
    tl.store(sums, tl.sum(tl.where(back >= 0, diagonals, 0.0), 0))
    tl.store(sums + CHUNK, tl.sum(tl.where(back < 0, diagonals, 0.0), 0))


@triton.jit(do_not_specialize=["slots", "lag_blocks", "taps", "K"])
def toeplitz_finish_kernel(
    sums_ptr,  # [slots,D,lag_blocks,2,CHUNK] float32, contiguous
    dk_ptr,  # [D,K], contiguous
    dd_skip_ptr,  # [D], contiguous, or None
    slots,
    lag_blocks,
    taps,
    K,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program adds up BLOCK gradients of a channel's taps, zeros beyond `taps`; the skip's is that of lag 0."""
    d, lag = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m, r = lag // CHUNK, lag % CHUNK
    total = tl.zeros([BLOCK], tl.float32)
    sums = sums_ptr + (d * lag_blocks + m) * 2 * CHUNK + r
    for _ in range(slots):
        total += tl.load(sums, mask=lag < taps, other=0.0)
        total += tl.load(sums + 3 * CHUNK, mask=(lag < taps) & (m + 1 < lag_blocks), other=0.0)
        sums += lag_blocks.to(tl.int64) * D * 2 * CHUNK
    tl.store(dk_ptr + d * K + lag, total, mask=lag < K)
    if dd_skip_ptr is not None:
        tl.store(dd_skip_ptr + d + lag * 0, total, mask=lag == 0)


class _Tile(NamedTuple):
    """The division of rows into chunks: the steps of one, how many there are, and the columns of packed texts."""

    chunk: int
    columns: int
    table: Tensor | None

    @property
    def long(self) -> bool:
        return self.chunk == CHUNK_OF_LONG

    @property
    def arguments(self) -> dict[str, Any]:
        return {"table_ptr": self.table, "columns": self.columns, "CHUNK": self.chunk}


def _tile_of(u: Tensor, cu_seqlens: Tensor | None, largest: int = CHUNK_OF_LONG) -> _Tile:
    B, _, L = u.shape
    if cu_seqlens is None:
        chunk = largest if L > LONG else CHUNK
        return _Tile(chunk, B * triton.cdiv(L, chunk), None)
    table = packed_columns(cu_seqlens, L, CHUNK)
    return _Tile(CHUNK, table.shape[1], table)


class _Terms(NamedTuple):
    """The terms of which products are made: their dtype, and how many stand for the rows and for the taps."""

    dtype: torch.dtype
    rows: int
    taps: int
    scaled: bool = False
    """Whether rows and taps are brought into the range of float16 before."""


def _terms(rows: torch.dtype, taps: torch.dtype, fast: bool, *others: Tensor, long: bool = False) -> _Terms:
    """Those of products of rows with taps, or of rows with rows; `others` are what the result is rounded to.

    One where 16 bits are all that there is or is wanted; else of bfloat16, which has the range to take numbers apart.
    Of `long` rows in float32 two of float16, 22 bits in all, which are half as many products as three of bfloat16. They
    are worth a pass over the rows to find their scales; what is 2^-39 of the largest number of a row is lost, as it is
    in an FFT. The interpreter knows float32 and float16 alone.
    """
    single = rows in HALF and (fast or rows == taps)
    full = 2 if all(tensor.dtype in HALF for tensor in others) else 3
    if long and full == 3 and not single:
        return _Terms(torch.float16, 2, 2, scaled=True)
    if interpreting(toeplitz_kernel):
        return _Terms(torch.float16 if single and rows == torch.float16 else torch.float32, 1, 1)
    if single:
        return _Terms(rows, 1, 1)
    of = {torch.bfloat16: 1, torch.float16: 2, torch.float32: full}
    return _Terms(torch.bfloat16, of[rows], of[taps])


def _rows(x: Tensor, gate: Tensor | None, tile: _Tile, dtype: torch.dtype) -> Tensor:
    """gate x as the products read it: x itself, if its chunks are whole and lie where vectors are loaded."""
    vectors = x.stride(2) == 1 and all(place % ALIGNED == 0 for place in (*x.stride()[:2], x.data_ptr()))
    if gate is None and tile.table is None and vectors and x.shape[2] % tile.chunk == 0:
        return x
    return padded_rows(x, gate, tile.table, tile.columns, tile.chunk, dtype)


def _convolve(
    rows: Tensor,
    k: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    y: Tensor,
    tile: _Tile,
    terms: _Terms,
    products: Products | Strided | None,
    reverse: bool = False,
) -> Tensor:
    """gate (k * x + d x + products) in y [B,D,L] for x in `rows`; reverse: the transpose of k * x + d x, plus what the
    products give, which is then all that `products` is."""
    B, D, L = y.shape
    K = min(k.shape[1], L)
    # Where rows are not aligned, or texts are not, numbers are stored one by one, and their addresses want registers.
    vectors = L % ALIGNED == 0 and tile.table is None
    makes_products = isinstance(products, Products)
    many = terms.rows == 1 and vectors and not makes_products and tile.columns > COLUMNS_OF_TERMS
    columns = COLUMNS if many else COLUMNS_OF_TERMS
    most = CHUNK * (COLUMNS if vectors else COLUMNS_OF_TERMS)  # outputs that four warps have registers for
    tiles = {
        "STEPS": STEPS if terms.rows == terms.taps == 1 else STEPS_OF_TERMS,
        "COLUMNS": columns,
        "num_warps": 8 if tile.chunk * columns > most or tile.table is not None or makes_products else 4,
        "num_stages": 3,
    }
    sizes = {"columns": tile.columns, "D": D, "L": L, "K": K}
    if makes_products:  # beside them there are registers for less
        sizes["P"] = products.orders + 1
    tiles = configured(toeplitz_kernel, rows, sizes, tiles)
    steps, columns = min(tiles["STEPS"], tile.chunk), tiles["COLUMNS"]
    lag_blocks = (K + tile.chunk - 2) // steps + 1
    width = lag_blocks * steps + tile.chunk
    of_taps = scales_of(k[None], K, d_skip) if terms.scaled else None
    launch(
        toeplitz_kernel,
        (D * triton.cdiv(tile.columns, columns),),
        x=strided(rows),
        taps_ptr=shifted_taps(k, d_skip, of_taps, K, width, tile.chunk, terms.dtype, terms.taps),
        scales=None if of_taps is None else (scales_of(rows, L), of_taps),
        products=products,
        gate=strided(gate),
        y_ptr=y,
        B=B,
        L=L,
        lag_blocks=lag_blocks,
        D=D,
        REVERSE=reverse,
        X_TERMS=terms.rows,
        TAP_TERMS=terms.taps,
        **tiles | {"STEPS": steps},
        **tile.arguments,
    )
    return y


def _gradient_of_taps(
    late: Tensor, early: Tensor, k: Tensor, d_skip: Tensor | None, L: int, tile: _Tile, terms: _Terms
) -> tuple[Tensor, Tensor | None]:
    """sum_t late_t early_{t - l} of l = 0 .. K - 1, the gradient of k [D,K], and that of d_skip, in their dtypes."""
    B, D, _ = early.shape
    K = k.shape[1]
    taps = min(K, L)
    lag_blocks = (taps + tile.chunk - 2) // tile.chunk + 1
    columns = COLUMNS_OF_TERMS if terms.rows == terms.taps == 1 else COLUMNS_OF_TERMS // 2
    slots, blocks_per_slot = slots_of(triton.cdiv(tile.columns, columns), D * lag_blocks)
    sums = torch.empty(slots, D, lag_blocks, 2, tile.chunk, dtype=torch.float32, device=early.device)
    launch(
        toeplitz_taps_kernel,
        (D * lag_blocks, slots),
        late=strided(late),
        early=strided(early),
        sums_ptr=sums,
        B=B,
        L=L,
        lag_blocks=lag_blocks,
        blocks_per_slot=blocks_per_slot,
        D=D,
        COLUMNS=columns,
        LATE_TERMS=terms.rows,
        EARLY_TERMS=terms.taps,
        OPERAND=DTYPES[terms.dtype],
        num_warps=4,
        num_stages=2,
        **tile.arguments,
    )
    dk = torch.empty(D, K, dtype=k.dtype, device=k.device)
    # The skip is one more weight at lag 0.
    dd_skip = None if d_skip is None else torch.empty(D, dtype=d_skip.dtype, device=d_skip.device)
    launch(
        toeplitz_finish_kernel,
        (D, triton.cdiv(K, BLOCK)),
        sums_ptr=sums,
        dk_ptr=dk,
        dd_skip_ptr=dd_skip,
        slots=slots,
        lag_blocks=lag_blocks,
        taps=taps,
        K=K,
        D=D,
        CHUNK=tile.chunk,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return dk, dd_skip


def _kind(k: Tensor, d_skip: Tensor | None) -> torch.dtype:
    """The dtype that holds the taps, with the skip as a part of the first."""
    return k.dtype if d_skip is None else torch.float32


def toeplitz(
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    fast: bool,
    weights: Tensor | None,
) -> Tensor:
    """y [B,D,L] in the dtype of u [B,D,L]; k [D,K], d_skip [D], gate [B,D,L]; cu_seqlens, weights as in the op."""
    tile = _tile_of(u, cu_seqlens)
    terms = _terms(u.dtype, _kind(k, d_skip), fast, u, long=tile.long)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    return _convolve(_rows(u, None, tile, u.dtype), k, d_skip, gate, y, tile, terms, products_of(u, weights))


def toeplitz_backward(
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    cu_seqlens: Tensor | None,
    fast: bool,
    weights: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of u, k, d_skip and gate in their dtypes; None where there is none."""
    tile, taps = _tile_of(u, cu_seqlens), _kind(k, d_skip)
    exact = gate is None or (fast and u.dtype in HALF)  # whether the rows of dy need no more bits than u
    late = _rows(dy, gate, tile, dy.dtype if exact else torch.float32)
    early = _rows(u, None, tile, u.dtype)
    du = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    terms = _terms(late.dtype, taps, fast, u, long=tile.long)
    of_products = strided(gradient_of_inputs(dy, u, weights, gate, cu_seqlens))
    _convolve(late, k, d_skip, None, du, tile, terms, of_products, reverse=True)
    dgate = None
    if gate is not None:
        dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        terms = _terms(u.dtype, taps, fast, gate, long=tile.long)
        _convolve(early, k, d_skip, dy, dgate, tile, terms, products_of(u, weights))
    of_taps = tile if tile.table is not None else _tile_of(u, None, CHUNK)
    rounded_to = [k] if d_skip is None else [k, d_skip]
    dk, dd_skip = _gradient_of_taps(
        late, early, k, d_skip, u.shape[2], of_taps, _terms(late.dtype, early.dtype, fast, *rounded_to)
    )
    return du, dk, dd_skip, dgate


def skip_gradient(dy: Tensor, u: Tensor, gate: Tensor | None, d_skip: Tensor | None) -> Tensor | None:
    """The gradient of d_skip where k is not among the tensors: the skip is one weight at lag 0. None for None."""
    if d_skip is None:
        return None
    tile = _tile_of(u, None, CHUNK)
    late = _rows(dy, gate, tile, dy.dtype if gate is None else torch.float32)
    terms = _terms(late.dtype, u.dtype, False, d_skip)
    return _gradient_of_taps(late, _rows(u, None, tile, u.dtype), d_skip[:, None], None, u.shape[2], tile, terms)[0][
        :, 0
    ]
