"""Small kernels for the tests of the compile report, which imports them by their module's name."""

import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, y_ptr, x_strides, n, factor, nothing, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i * x_strides[1], i < n) * factor, i < n)


@triton.jit
def product(a_ptr, b_ptr, c_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision=PRECISION))


@triton.jit
def broken(x_ptr):
    tl.store(x_ptr + tl.arange(0, 3), 0)


@triton.jit
def sums(x_ptr, y_ptr, lengths_ptr, rounds, BLOCK: tl.constexpr):
    """`rounds` times as many blocks as the program's length says, with a square root of each."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for _ in range(rounds):
        for block in range(tl.load(lengths_ptr + tl.program_id(0))):
            acc += tl.sqrt(tl.load(x_ptr + i + block * BLOCK))
    tl.store(y_ptr + i, acc)
