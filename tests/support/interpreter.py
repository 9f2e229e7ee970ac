"""Triton's interpreter with one order of additions, the same on every CPU; tests/conftest.py installs it.

The interpreter leaves products to NumPy's matmul, which is what BLAS has for this CPU: even equal columns get unequal
sums where its code treats the last columns otherwise. NumPy's sums and its exp, log, sin and cos differ between CPUs
too: their vector code is chosen at run time, and two in five float32 exponentials depend on it. Here

- products and sums are made of rounded terms by halves, x[:n/2] + x[n/2:] until one is left, as a GPU's threads add,
- scans, and reductions by other functions, go along the axis from the first element to the last,
- exp, exp2, log, log2, sin and cos are float64's, rounded: of those, NumPy's versions differ by 1e-16, which the
  rounding to float32 hides but for one result in some 1e8.

All else that kernels use (+, *, /, sqrt, fma, comparisons, conversions) is rounded once, as IEEE 754 says.
"""

from types import SimpleNamespace

import numpy as np
import quick_interpreter

FUNCTIONS = ("exp", "exp2", "log", "log2", "sin", "cos")
# A product's terms fit a core's cache.
MOST_TERMS = 2**18


def install():
    """Patch triton.runtime.interpreter; RuntimeError where it is not as in Triton 3.7 to 3.9."""
    import triton
    from triton.runtime import interpreter

    try:
        order_additions(interpreter)
        combine_slice_by_slice(interpreter)
        quick_interpreter.install(interpreter)
        check(interpreter)
    except (AttributeError, TypeError, AssertionError) as error:
        raise RuntimeError(
            f"triton {triton.__version__}: its interpreter is not as in 3.7 to 3.9, whose additions {__file__} puts in "
            f"order: {error!r}. Adapt that file, or install one of these"
        ) from error


def halves(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, whose length is a power of two, as Triton's are. Overwrites the terms."""
    while len(terms) > 1:
        middle = len(terms) // 2
        terms = np.add(terms[:middle], terms[middle:], out=terms[:middle])
    return terms[0]


def matmul(a, b, dtype=None):
    """[..., M, K] times [..., K, N], each product rounded to `dtype` before it is added."""
    dtype = dtype or np.result_type(a, b)
    a, b = (np.ascontiguousarray(np.moveaxis(x, axis, 0), dtype) for x, axis in ((a, -1), (b, -2)))  # K first
    rows = max(1, MOST_TERMS // max(1, b.size))
    if a.shape[-1] <= rows:
        return halves(a[..., None] * b[..., None, :])
    parts = [a[..., first : first + rows] for first in range(0, a.shape[-1], rows)]
    return np.concatenate([halves(part[..., None] * b[..., None, :]) for part in parts], -2)


def total(x, axis=None, keepdims=False):
    """np.sum; of numbers with fractions by halves."""
    if not np.issubdtype(x.dtype, np.floating):
        return np.sum(x, axis=axis, keepdims=keepdims)
    found = halves(x.flatten() if axis is None else np.array(np.moveaxis(x, axis, 0)))
    if not keepdims:
        return found
    return found.reshape([1] * x.ndim) if axis is None else np.expand_dims(found, axis)


def rounded(function):
    """`function` in float64, in the dtype of its argument."""
    return lambda x: function(x, dtype=np.float64).astype(x.dtype)


def order_additions(interpreter):
    """What the interpreter calls NumPy is NumPy with these functions."""
    assert interpreter.np is np, "it does not import numpy as np"
    ordered = {name: rounded(getattr(np, name)) for name in FUNCTIONS}
    interpreter.np = SimpleNamespace(**vars(np) | ordered | {"matmul": matmul, "sum": total})


def combine_slice_by_slice(interpreter):
    """The interpreter scans, and reduces by what it has no name for, number by number, 0.1 ms each. Slices along the
    axis give the same numbers."""

    def combined(op, inputs):
        def at(i):
            return tuple(op.to_tensor(x.handle.data.take(i, op.axis), x.dtype) for x in inputs)

        so_far = [at(0)]
        for i in range(1, inputs[0].shape[op.axis]):
            following = op.combine_fn.fn(*so_far[-1], *at(i))
            so_far.append(following if isinstance(following, tuple) else (following,))
        shape = at(0)[0].handle.data.shape if inputs[0].handle.data.ndim > 1 else ()
        return [[x.handle.data.reshape(shape) for x in of_one] for of_one in zip(*so_far)]

    def generic_scan(self, inputs):
        return [self.to_tensor(np.stack(c, self.axis), x.dtype) for c, x in zip(combined(self, inputs), inputs)]

    def generic_reduce(self, inputs):
        if self.axis is None:
            return reduce(self, inputs)
        last = [c[-1] for c in combined(self, inputs)]
        last = [np.expand_dims(c, self.axis) for c in last] if self.keep_dims else last
        return [self.to_tensor(c, x.dtype) for c, x in zip(last, inputs)]

    reduce, _ = interpreter.ReduceOps.generic_reduce, interpreter.ScanOps.generic_scan
    interpreter.ScanOps.generic_scan, interpreter.ReduceOps.generic_reduce = generic_scan, generic_reduce


def check(interpreter):
    """AssertionError unless the interpreter computes by the functions above: by a sum that other orders make 0 or 2."""
    import triton.language as tl

    def handle(data):
        return interpreter.TensorHandle(np.array(data, np.float32), tl.float32)

    builder = interpreter.interpreter_builder
    terms = [1.0, 2.0**30, 1.0, -(2.0**30)]  # by halves (1 + 1) + (2^30 - 2^30)
    product = builder.create_dot(handle([terms] * 3), handle(np.ones((4, 5))), handle([[0.5] * 5] * 3), None, 0).data
    assert (product == 2.5).all(), f"tl.dot gives {product[0, 0]}; expected 2.5"
    tensor = tl.core.tensor(handle(terms), tl.block_type(tl.float32, [4]))
    for axis in (0, None):
        found = interpreter.ReduceOps(axis, tl.standard._sum_combine, False).apply(tensor).handle.data.item()
        assert found == 2, f"tl.sum over axis {axis} gives {found}; expected 2"
    for name in FUNCTIONS:
        x = np.linspace(0.1, 9, 50, dtype=np.float32)
        found = getattr(builder, f"create_{name}")(handle(x)).data
        assert np.array_equal(found, rounded(getattr(np, name))(x)), f"tl.{name} is not float64's, rounded"
