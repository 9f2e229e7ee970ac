"""Dense products by PyTorch's own choice and by oneDNN: `python -m firebolt_vl.bench.linear` prints a table.

What `kernels.linear` chooses by: in float32 oneDNN's product with weights as they are, in bfloat16 with prepacked ones.
Each time is that of several products with different weights, more than caches hold.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..files.tables import markdown_table
from ..kernels.linear import can_prepack, linear_prepacked, onednn_product, prepacked
from .kernels import device_name
from .timing import Run, clock_name, quantile, time_in_turns

ROWS = (1, 4, 33, 256, 1280)
SIZES = ((4608, 1024), (1024, 4608), (65536, 1024))
BYTES = 2**27
MOST = 64


class Times(NamedTuple):
    """Milliseconds of one product of x [rows,K] and W [N,K]."""

    dtype: str
    rows: int
    N: int
    K: int
    plain: float
    onednn: float


def measure(
    dtypes: Iterable[str], rows: Iterable[int], sizes: Iterable[tuple[int, int]], seconds: float = 0.5
) -> list[Times]:
    found = []
    for name in dtypes:
        dtype = getattr(torch, name)
        product, layout = (linear_prepacked, prepacked) if dtype == torch.bfloat16 else (onednn_product, torch.clone)
        for N, K in sizes:
            weights = torch.randn(min(max(1, BYTES // (dtype.itemsize * N * K)), MOST), N, K).to(dtype).unbind()
            for_onednn = [layout(weight) for weight in weights]
            for count in rows:
                x = torch.randn(count, K).to(dtype)
                runs = {
                    "plain": Run(lambda _, x=x, w=weights: [F.linear(x, one) for one in w]),
                    "onednn": Run(lambda _, x=x, w=for_onednn, product=product: [product(x, one) for one in w]),
                }
                with torch.inference_mode():
                    times = time_in_turns(runs, "cpu", seconds)
                medians = (quantile(times[run], 0.5) / len(weights) for run in runs)
                found.append(Times(name, count, N, K, *medians))
    return found


def table(times: Iterable[Times]) -> str:
    head = ["dtype", "rows", "N", "K", "torch.nn.functional.linear", "oneDNN", "times faster"]
    numbers = [
        [*map(str, row[:4]), f"{row.plain:.2f} ms", f"{row.onednn:.2f} ms", f"{row.plain / row.onednn:.2f}"]
        for row in times
    ]
    return markdown_table(head, numbers)


def main() -> None:
    print(table(measure(["float32", *(["bfloat16"] if can_prepack() else [])], ROWS, SIZES)))
    print(f"\n{device_name('cpu')}, {clock_name('cpu')}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
