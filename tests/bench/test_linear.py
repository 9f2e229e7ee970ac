import pytest
import torch

from firebolt_vl.bench.linear import measure, table
from firebolt_vl.kernels.linear import PRODUCT


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, PRODUCT), reason="this PyTorch has no oneDNN")
def test_both_products_are_timed_at_every_size():
    times = measure([1, 2], [(8, 4), (4, 8)], seconds=0)
    assert [row[:3] for row in times] == [(1, 8, 4), (2, 8, 4), (1, 4, 8), (2, 4, 8)]
    assert all(row.plain > 0 and row.onednn > 0 for row in times)
    assert len(table(times).splitlines()) == 6
