"""Dense products as PyTorch makes them and in other ways: `python -m firebolt_vl.bench.linear` prints a table.

What `kernels.linear` and `Int8Linear` choose by: in float32 oneDNN's product with weights as they are; in bfloat16
prepacked ones, or widened to float32 where the CPU has no such products; in 8 bits the int8 kernels, beside PyTorch's
float32. Each time is that of several products with different weights, more than caches hold.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files.tables import markdown_table
from ..kernels.linear import (
    PRODUCT,
    SLOW_HALVES,
    can_prepack,
    linear,
    linear_prepacked,
    onednn_product,
    prepacked,
)
from ..kernels.linear.onednn import onednn_has
from ..model.cpu.quantization import has_kernels, quantize_linear
from .kernels import device_name
from .timing import Run, clock_name, quantile, time_in_turns

ROWS = (1, 4, 33, 256, 1280)
SIZES = ((4608, 1024), (1024, 4608), (65536, 1024))
BYTES = 2**28
MOST = 64


class Way(NamedTuple):
    """A way to multiply x in a dtype with weights that `hold` keeps in its own form."""

    dtype: torch.dtype
    hold: Callable[[Tensor], Any]
    product: Callable[[Tensor, Any], Tensor]
    there: bool
    """Whether this machine takes it."""


def in_8_bits(weight: Tensor) -> nn.Linear:
    """Return a linear layer whose weights are rounded to 8 bits."""
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    quantize_linear(layer)
    return layer


WAYS = {
    "oneDNN": Way(torch.float32, torch.clone, onednn_product, onednn_has(PRODUCT)),
    "prepacked": Way(torch.bfloat16, prepacked, linear_prepacked, can_prepack()),
    "widened": Way(torch.bfloat16, torch.clone, linear, torch.bfloat16 in SLOW_HALVES),
    "int8": Way(torch.float32, in_8_bits, lambda x, layer: layer(x), has_kernels()),
}


class Times(NamedTuple):
    """Milliseconds of one product of x [rows,K] and W [N,K], by PyTorch in the way's dtype and in the way."""

    way: str
    rows: int
    N: int
    K: int
    plain: float
    other: float


def measure(
    names: Iterable[str], rows: Iterable[int], sizes: Iterable[tuple[int, int]], seconds: float = 0.5
) -> list[Times]:
    """Time ways of this machine, beside PyTorch's own, in turns."""
    found = []
    for name in names:
        way = WAYS[name]
        for N, K in sizes:
            weights = torch.randn(min(max(1, BYTES // (way.dtype.itemsize * N * K)), MOST), N, K).to(way.dtype).unbind()
            held = [way.hold(weight) for weight in weights]
            for count in rows:
                x = torch.randn(count, K).to(way.dtype)
                runs = {
                    "plain": Run(lambda _, x=x, w=weights: [F.linear(x, one) for one in w]),
                    "other": Run(lambda _, x=x, w=held, way=way: [way.product(x, one) for one in w]),
                }
                with torch.inference_mode():
                    times = time_in_turns(runs, "cpu", seconds)
                medians = (quantile(times[run], 0.5) / len(weights) for run in runs)
                found.append(Times(name, count, N, K, *medians))
    return found


def table(times: Iterable[Times]) -> str:
    """Write times as a table in Markdown."""
    head = ["way", "rows", "N", "K", "PyTorch's own", "in this way", "times faster"]
    numbers = [
        [*map(str, row[:4]), f"{row.plain:.2f} ms", f"{row.other:.2f} ms", f"{row.plain / row.other:.2f}"]
        for row in times
    ]
    return markdown_table(head, numbers)


def main() -> None:
    print(table(measure([name for name, way in WAYS.items() if way.there], ROWS, SIZES)))
    print(f"\n{device_name('cpu')}, {clock_name('cpu')}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
