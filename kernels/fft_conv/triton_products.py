"""Products of neighbouring inputs in Triton: what they add to a convolution's output, and their gradients.

With a_p the weights of the products of p = 2 .. P inputs, dy the gradient of the output and e = gate dy:

    added to y_t        sum_p a_p u_t u_{t-1} ... u_{t-p+1}
    gradient of u_t     sum_{i < P} e_{t+i} (u_{t+1} ... u_{t+i}) sum_{p > i, p >= 2} a_p u_{t-1} ... u_{t-(p-1-i)}
    gradient of a_p     sum_t e_t u_t u_{t-1} ... u_{t-p+1}

Products run: each is the one before times one input, in float32, with nothing before a text's first step or after its
last. What is added to y is a part of the kernels of the convolution, before they round. The gradient of u is made apart
and added by them: beside their own tiles it would leave too few registers.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, at, strided
from ..common.triton_tiles import contiguous, slots_of
from ..launch import launch
from .triton_columns import load_columns, packed_columns

# Steps of a chunk, and chunks that a program takes at a time.
CHUNK, COLUMNS = 64, 16


class Products(NamedTuple):
    """Products of neighbouring inputs as a kernel takes them."""

    u: Strided  # [B,D,L]
    weights: Any  # [D,P-1], contiguous
    orders: int  # P - 1
    dy: Strided | None = None  # [B,D,L], where gradients are wanted
    gate: Strided | None = None  # [B,D,L], there

    do_not_specialize = ("orders",)
    do_not_specialize_on_alignment = ("weights",)


def products_of(
    u: Tensor, weights: Tensor | None, dy: Tensor | None = None, gate: Tensor | None = None
) -> Products | None:
    """The products of u [B,D,L] with weights [D,P-1]; dy and the gate only where a kernel makes gradients of u."""
    if weights is None:
        return None
    return Products(strided(u), contiguous(weights), weights.shape[1], strided(dy), strided(gate))


@triton.jit
def _read(x, tile, ahead, inside):
    row, d, first, steps, _, _ = tile
    address = at(x, (row, d, first + ahead)) + steps.to(tl.int64) * x.strides[2]
    return tl.load(address, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _earlier(products, tile, delay):
    _, _, _, _, t, inside = tile
    return _read(products.u, tile, -delay, inside & (t >= delay))


@triton.jit
def _gradient(products, tile, ahead, inside):
    e = _read(products.dy, tile, ahead, inside)
    if products.gate is not None:
        e *= _read(products.gate, tile, ahead, inside)
    return e


@triton.jit
def add_products(y, products, tile):
    """y_t plus its products, of a tile (row, channel, first, steps, t, inside).

    The steps t of texts are those at first + steps of their rows, and `inside` says which of them are there. Addresses
    are made of `first` and `steps`, of one axis each where rows are chunks: made of t they would take two registers for
    each number. Row, channel and first are int64.
    """
    _, d, _, _, _, inside = tile
    weights = products.weights + d * products.orders
    product = _read(products.u, tile, 0, inside)
    for delay in range(1, products.orders + 1):
        product *= _earlier(products, tile, delay)
        y += product * tl.load(weights + delay - 1).to(tl.float32)
    return y


@triton.jit
def _chunks(table_ptr, column, columns, B, L, CHUNK: tl.constexpr):
    """Row, first, steps, t and inside of a tile of columns (see `add_products`), and the lengths of their texts."""
    row, start, length, chunk = load_columns(table_ptr, column, columns, B, L)
    i = tl.arange(0, CHUNK)[None, :]
    t = chunk[:, None] * CHUNK + i
    first = (start + chunk * CHUNK)[:, None].to(tl.int64)
    inside = (chunk >= 0)[:, None] & (t < length[:, None])
    return row[:, None], first, i, t, inside, length[:, None]


@triton.jit(do_not_specialize=["B", "L", "columns"])
def product_gradient_kernel(
    products,  # Products, with dy
    table_ptr,  # [3,columns] int32, contiguous, or None: see `packed_columns_kernel`
    du_ptr,  # [B,D,L] float32, contiguous
    B,
    L,
    columns,  # chunks of all rows
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program takes COLUMNS chunks of a channel: the gradient of their inputs."""
    blocks = tl.cdiv(columns, COLUMNS)
    d = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    row, first, steps, t, inside, length = _chunks(table_ptr, column, columns, B, L, CHUNK)
    tile = row, d, first, steps, t, inside
    weights = products.weights + d * products.orders
    du = tl.zeros([COLUMNS, CHUNK], tl.float32)
    later = tl.full([COLUMNS, CHUNK], 1.0, tl.float32)
    for ahead in range(0, products.orders + 1):
        earlier = tl.full([COLUMNS, CHUNK], 1.0, tl.float32)
        alone = tl.load(weights + ahead - 1, mask=ahead > 0, other=0.0).to(tl.float32)
        factor = tl.zeros([COLUMNS, CHUNK], tl.float32) + alone
        for delay in range(1, products.orders + 1 - ahead):
            earlier *= _earlier(products, tile, delay)
            factor += earlier * tl.load(weights + ahead + delay - 1).to(tl.float32)
        du += later * factor * _gradient(products, tile, ahead, inside & (t + ahead < length))
        later *= _read(products.u, tile, ahead + 1, inside & (t + ahead + 1 < length))
    tl.store(du_ptr + (row * D + d) * L + first + steps, du, mask=inside)


@triton.jit(do_not_specialize=["B", "L", "columns", "blocks_per_slot"])
def product_sums_kernel(
    products,  # Products, with dy
    table_ptr,  # [3,columns] int32, contiguous, or None: see `packed_columns_kernel`
    sums_ptr,  # [slots,D,P-1] float32, contiguous
    B,
    L,
    columns,  # chunks of all rows
    blocks_per_slot,  # how many blocks of columns a program walks through
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program takes a channel, a slot of the columns and an order: sum_t e_t u_t u_{t-1} ... u_{t-p+1}."""
    d, slot, order = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    acc = tl.zeros([COLUMNS, CHUNK], tl.float32)
    first = tl.program_id(1) * blocks_per_slot
    for block in range(first, tl.minimum(first + blocks_per_slot, tl.cdiv(columns, COLUMNS))):
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        row, start, steps, t, inside, _ = _chunks(table_ptr, column, columns, B, L, CHUNK)
        tile = row, d, start, steps, t, inside
        product = _gradient(products, tile, 0, inside) * _read(products.u, tile, 0, inside)
        for delay in range(1, order + 2):
            product *= _earlier(products, tile, delay)
        acc += product
    tl.store(sums_ptr + (slot * D + d) * products.orders + order, tl.sum(tl.sum(acc, 1), 0))


class _Columns(NamedTuple):
    """Chunks of rows, or of packed texts."""

    table: Tensor | None
    columns: int

    def arguments(self, u: Tensor) -> dict[str, Any]:
        B, D, L = u.shape
        return {
            "table_ptr": self.table,
            "B": B,
            "L": L,
            "columns": self.columns,
            "D": D,
            "CHUNK": CHUNK,
            "COLUMNS": COLUMNS,
        }


def _columns_of(u: Tensor, cu_seqlens: Tensor | None) -> _Columns:
    B, _, L = u.shape
    if cu_seqlens is None:
        return _Columns(None, B * triton.cdiv(L, CHUNK))
    table = packed_columns(cu_seqlens, L, CHUNK)
    return _Columns(table, table.shape[1])


def gradient_of_inputs(
    dy: Tensor, u: Tensor, weights: Tensor | None, gate: Tensor | None, cu_seqlens: Tensor | None = None
) -> Tensor | None:
    """The gradient that u [B,D,L] has from its products with weights [D,P-1], float32; None for no weights."""
    products = products_of(u, weights, dy, gate)
    if products is None:
        return None
    columns = _columns_of(u, cu_seqlens)
    du = torch.empty(u.shape, dtype=torch.float32, device=u.device)
    launch(
        product_gradient_kernel,
        (u.shape[1] * triton.cdiv(columns.columns, COLUMNS),),
        products=products,
        du_ptr=du,
        num_warps=4,
        **columns.arguments(u),
    )
    return du


def gradient_of_weights(
    dy: Tensor, u: Tensor, weights: Tensor | None, gate: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor | None:
    """The gradient of weights [D,P-1] in their dtype; None for None."""
    products = products_of(u, weights, dy, gate)
    if products is None or weights is None:
        return None
    columns, D = _columns_of(u, cu_seqlens), u.shape[1]
    slots, blocks_per_slot = slots_of(triton.cdiv(columns.columns, COLUMNS), D * products.orders)
    sums = torch.empty(slots, D, products.orders, dtype=torch.float32, device=u.device)
    launch(
        product_sums_kernel,
        (D, slots, products.orders),
        products=products,
        sums_ptr=sums,
        blocks_per_slot=blocks_per_slot,
        num_warps=4,
        **columns.arguments(u),
    )
    return sums.sum(0).to(weights.dtype)
