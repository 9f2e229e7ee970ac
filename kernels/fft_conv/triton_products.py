"""Products of neighbouring inputs in Triton: what they add to a convolution's output, and their gradients.

With a_p the weights of the products of p = 2 .. P inputs, dy the gradient of the output and e = gate dy:

    added to y_t        sum_p a_p u_t u_{t-1} ... u_{t-p+1}
    gradient of u_t     sum_{i < P} e_{t+i} (u_{t+1} ... u_{t+i}) sum_{p > i, p >= 2} a_p u_{t-1} ... u_{t-(p-1-i)}
    gradient of a_p     sum_t e_t u_t u_{t-1} ... u_{t-p+1}

Both sums over products are made as running products, in float32, with nothing before a text's first step or after its
last. The kernels of the convolution have the first two in their epilogues, before the output is rounded.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, strided
from ..common.triton_tiles import contiguous, slots_of
from ..launch import launch
from .triton_columns import load_columns, packed_columns

# Steps of a chunk, and chunks that a program of `product_sums_kernel` takes at a time.
CHUNK, COLUMNS = 64, 32


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
def _input(products, row, d, place, inside):
    return load(products.u, (row, d, place), mask=inside).to(tl.float32)


@triton.jit
def _gradient(products, row, d, place, inside):
    e = load(products.dy, (row, d, place), mask=inside).to(tl.float32)
    if products.gate is not None:
        e *= load(products.gate, (row, d, place), mask=inside).to(tl.float32)
    return e


@triton.jit
def add_products(y, products, begin, t, inside):
    """y_t plus its products: t a block of steps of texts that `begin` at (row, channel, step), all of them int64."""
    row, d, start = begin
    weights = products.weights + d * products.orders
    product = _input(products, row, d, start + t, inside)
    for delay in range(1, products.orders + 1):
        product *= _input(products, row, d, start + t - delay, inside & (t >= delay))
        y += product * tl.load(weights + delay - 1).to(tl.float32)
    return y


@triton.jit
def add_gradients(du, products, begin, length, t, inside):
    """du_t plus the gradient of the products, of texts with `length` steps; otherwise as `add_products`."""
    row, d, start = begin
    weights = products.weights + d * products.orders
    later = tl.full(du.shape, 1.0, tl.float32)
    for ahead in range(0, products.orders + 1):
        earlier = tl.full(du.shape, 1.0, tl.float32)
        first = tl.load(weights + ahead - 1, mask=ahead > 0, other=0.0).to(tl.float32)
        factor = tl.zeros(du.shape, tl.float32) + first
        for delay in range(1, products.orders + 1 - ahead):
            earlier *= _input(products, row, d, start + t - delay, inside & (t >= delay))
            factor += earlier * tl.load(weights + ahead + delay - 1).to(tl.float32)
        e = _gradient(products, row, d, start + t + ahead, inside & (t + ahead < length))
        du += e * later * factor
        later *= _input(products, row, d, start + t + ahead + 1, inside & (t + ahead + 1 < length))
    return du


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
        row, start, length, chunk = load_columns(table_ptr, column, columns, B, L)
        t = (chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]).to(tl.int64)
        inside = (chunk >= 0)[:, None] & (t < length[:, None])
        place = start[:, None] + t
        product = _gradient(products, row[:, None], d, place, inside)
        product *= _input(products, row[:, None], d, place, inside)
        for delay in range(1, order + 2):
            product *= _input(products, row[:, None], d, place - delay, inside & (t >= delay))
        acc += product
    tl.store(sums_ptr + (slot * D + d) * products.orders + order, tl.sum(tl.sum(acc, 1), 0))


def gradient_of_weights(
    dy: Tensor, u: Tensor, weights: Tensor | None, gate: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor | None:
    """The gradient of weights [D,P-1] in their dtype; None for None."""
    products = products_of(u, weights, dy, gate)
    if products is None or weights is None:
        return None
    B, D, L = u.shape
    table = None if cu_seqlens is None else packed_columns(cu_seqlens, L, CHUNK)
    columns = B * triton.cdiv(L, CHUNK) if table is None else table.shape[1]
    slots, blocks_per_slot = slots_of(triton.cdiv(columns, COLUMNS), D * products.orders)
    sums = torch.empty(slots, D, products.orders, dtype=torch.float32, device=u.device)
    launch(
        product_sums_kernel,
        (D, slots, products.orders),
        products=products,
        table_ptr=table,
        sums_ptr=sums,
        B=B,
        L=L,
        columns=columns,
        blocks_per_slot=blocks_per_slot,
        D=D,
        CHUNK=CHUNK,
        COLUMNS=COLUMNS,
        num_warps=4,
    )
    return sums.sum(0).to(weights.dtype)
