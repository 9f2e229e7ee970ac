"""Where a grid lies: default boxes, Fourier features, and their scale."""

import math

import pytest
import torch
from numerics import assert_module_within_budget

from firebolt_vl.cmm.positions import (
    IMAGE_FREQUENCIES,
    TIME_FREQUENCIES,
    GridPositions,
    box_features,
    default_boxes,
    features_from_zero,
)


def test_default_boxes_are_the_global_view_and_the_tiles_in_reading_order():
    half = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]]
    assert default_boxes(5).tolist() == [[0, 0, 1, 1], *half]
    assert default_boxes(1).tolist() == [[0, 0, 1, 1]]
    assert default_boxes(2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("n", [3, 4, 7])
def test_default_tiles_cover_the_image_once(n):
    y0, x0, y1, x1 = default_boxes(1 + n * n)[1:].T
    torch.testing.assert_close(((y1 - y0) * (x1 - x0)).sum(), torch.tensor(1.0))
    torch.testing.assert_close(x0.view(n, n)[0], torch.arange(n) / n)
    torch.testing.assert_close(y0.view(n, n)[:, 0], torch.arange(n) / n)
    assert (x1 <= 1 + 1e-6).all()


@pytest.mark.parametrize("grids", [0, 3, 4, 6, 14, 1024])
def test_other_counts_ask_for_boxes(grids):
    with pytest.raises(ValueError, match=rf"with {grids} grids; expected boxes \[B, {grids}, 4\]"):
        default_boxes(grids)


@pytest.mark.parametrize("n", [2, 3, 8, 32])
def test_every_place_of_a_tiling_has_its_own_features(n):
    features = box_features(default_boxes(1 + n * n))
    distances = torch.cdist(features, features) + 10 * torch.eye(len(features))
    # At n = 32 neighbours are told apart by the highest frequency.
    assert distances.min() > 0.5


def test_size_and_centre_are_told_apart():
    inner = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0], [0.4, 0.25, 0.6, 0.75]])
    features = box_features(inner)
    centres, sizes = features[:, :24], features[:, 24:]
    torch.testing.assert_close(centres, centres[:1].expand(3, -1))
    assert (torch.cdist(sizes, sizes) + torch.eye(3) > 0.5).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_a_position_starts_at_the_rms_of_the_features(scale):
    torch.manual_seed(0)
    layer = GridPositions(768)
    grids = scale * torch.randn(2, 17, 768)
    position = layer(grids, default_boxes(17).expand(2, -1, -1)) - grids
    ratio = position.square().mean(-1).sqrt() / grids.square().mean(-1).sqrt()
    assert (ratio - 1).abs().max() < 0.2


def test_image_zero_adds_nothing_and_others_are_told_apart():
    features = features_from_zero(torch.arange(32, dtype=torch.float32), IMAGE_FREQUENCIES)
    assert (features[0] == 0).all()
    assert (torch.cdist(features, features) + torch.eye(32) > 0.1).all()
    layer = GridPositions(16)
    grids, boxes = torch.randn(1, 5, 16), default_boxes(5)[None]
    assert torch.equal(layer(grids, boxes, torch.zeros(1, 5, dtype=torch.int64)), layer(grids, boxes))
    assert not torch.equal(layer(grids, boxes, torch.ones(1, 5, dtype=torch.int64)), layer(grids, boxes))


def test_every_grid_stands_alone():
    layer = GridPositions(16)
    grids, boxes = torch.randn(1, 5, 16), default_boxes(5)[None]
    whole = layer(grids, boxes)
    for g in range(5):
        torch.testing.assert_close(layer(grids[:, g : g + 1], boxes[:, g : g + 1]), whole[:, g : g + 1])


def test_degenerate_boxes_and_zero_grids_have_finite_values_and_gradients():
    layer = GridPositions(16)
    grids = torch.zeros(1, 3, 16, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1]]])
    y = layer(grids, boxes)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(grids.grad).all()


def test_a_number_of_grids_that_varies_between_calls_is_compiled_into_one_graph():
    compiled = torch.compile(lambda grids: default_boxes(grids.shape[1]), fullgraph=True, backend="eager", dynamic=True)
    for G in (5, 2, 17, 65):
        assert torch.equal(compiled(torch.zeros(2, G, 3)), default_boxes(G))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_angles_are_taken_in_float32_or_wider(dtype):
    torch.manual_seed(0)
    layer = GridPositions(32).to(dtype)
    grids, boxes = torch.randn(1, 1025, 32).to(dtype), default_boxes(1025)[None]
    found = layer(grids, boxes)
    assert found.dtype == dtype
    arithmetic = torch.float32 if dtype == torch.float64 else dtype
    assert_module_within_budget([found], lambda layer, grids: [layer(grids, boxes)], layer, [grids], arithmetic)


def test_gradients_are_those_of_finite_differences():
    layer = GridPositions(6).double()
    grids, boxes = torch.randn(2, 3, 6, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    boxes[..., 2:] += 1.1
    images = torch.tensor([[0, 1, 2], [0, 0, 5]])
    assert torch.autograd.gradcheck(lambda g, b: layer(g, b, images), (grids.requires_grad_(), boxes.requires_grad_()))


def test_features_have_one_norm_for_every_box():
    features = box_features(torch.rand(100, 4).sort(-1).values[:, [0, 1, 2, 3]])
    torch.testing.assert_close(features.square().sum(-1), torch.full((100,), features.shape[-1] / 2))
    assert math.isfinite(features.sum())


def test_second_zero_adds_nothing_and_others_are_told_apart():
    seconds = torch.arange(64, dtype=torch.float32)
    features = features_from_zero(torch.cat([seconds, seconds[2:] * 60]), TIME_FREQUENCIES)
    assert (features[0] == 0).all()
    distances = torch.cdist(features[:64], features[:64]) + 10 * torch.eye(64)
    assert distances.min() > 0.5
    assert (torch.cdist(features, features) + 10 * torch.eye(len(features)) > 0.05).all()
    quarter = features_from_zero(torch.arange(16) / 4, TIME_FREQUENCIES)
    assert (torch.cdist(quarter, quarter) + 10 * torch.eye(16) > 0.5).all()


def test_times_have_a_map_of_their_own_where_they_are_asked_for():
    torch.manual_seed(0)
    layer, plain = GridPositions(16, times=True), GridPositions(16)
    assert set(layer.state_dict()) == {*plain.state_dict(), "time.weight"}
    grids, boxes = torch.randn(1, 5, 16), default_boxes(5)[None]
    still = torch.zeros(1, 5)
    assert torch.equal(layer(grids, boxes, None, still), layer(grids, boxes))
    assert not torch.equal(layer(grids, boxes, None, still + 1), layer(grids, boxes))
    assert torch.equal(plain(grids, boxes, None, still + 1), plain(grids, boxes))
    # Worked out from the formula, in float64.
    double, t = layer.double(), torch.tensor([[0.0, 1.0, 2.5, 7.0, 63.0]], dtype=torch.float64)
    x = grids.double()
    waves = [[f(math.pi * 2.0 ** (2 - j) * second) for f in (math.sin, math.cos) for j in range(16)] for second in t[0]]
    zero = torch.tensor([0.0] * 16 + [1.0] * 16, dtype=torch.float64)
    added = (torch.tensor(waves, dtype=torch.float64) - zero) @ double.time.weight.T
    rms = (x.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    found = double(x, boxes.double(), None, t) - double(x, boxes.double())
    torch.testing.assert_close(found, rms * added[None], rtol=1e-10, atol=1e-10)


def test_every_map_learns_where_neither_images_nor_times_are_given():
    layer = GridPositions(16, times=True)
    layer(torch.randn(1, 5, 16), default_boxes(5)[None]).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
