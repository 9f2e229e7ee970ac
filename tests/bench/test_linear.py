import pytest
import torch

from firebolt_vl.bench.linear import WAYS, measure, table


@pytest.mark.parametrize("name", WAYS)
def test_both_products_are_timed_at_every_size(name):
    if not WAYS[name].there:
        pytest.skip("not on this CPU, or not in this PyTorch")
    times = measure([name], [1, 2], [(8, 4), (4, 8)], seconds=0)
    assert [row[:4] for row in times] == [(name, *size) for size in ((1, 8, 4), (2, 8, 4), (1, 4, 8), (2, 4, 8))]
    assert all(row.plain > 0 and row.other > 0 for row in times)
    assert len(table(times).splitlines()) == 6


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_a_product(name):
    way = WAYS[name]
    if not way.there:
        pytest.skip("not on this CPU, or not in this PyTorch")
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(size, generator=generator).to(way.dtype) for size in ((9, 64), (48, 64)))
    with torch.inference_mode():
        found = way.product(x, way.hold(weight)).double()
    wanted = x.double() @ weight.double().mT
    # 8 bits keep each of 64 products to some 1 %.
    assert (found - wanted).norm() < 0.02 * wanted.norm()
