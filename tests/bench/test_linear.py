import pytest
import torch

from firebolt_vl.bench.linear import measure, table
from firebolt_vl.kernels.linear import PRODUCT, can_prepack


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, PRODUCT), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_products_are_timed_at_every_size(dtype):
    if dtype == "bfloat16" and not can_prepack():
        pytest.skip("this CPU has no bfloat16 products of prepacked weights")
    times = measure([dtype], [1, 2], [(8, 4), (4, 8)], seconds=0)
    assert [row[:4] for row in times] == [(dtype, *size) for size in ((1, 8, 4), (2, 8, 4), (1, 4, 8), (2, 4, 8))]
    assert all(row.plain > 0 and row.onednn > 0 for row in times)
    assert len(table(times).splitlines()) == 6
