"""The two tilings: the original's against its vectors, the native one by its properties."""

import hashlib

import golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firebolt_vl.views import tiling

CASES = {case["case"]: case for case in golden.load("tiles").cases}
sides = st.one_of(st.integers(1, 600), st.sampled_from([1, 2, 127, 128, 129, 3000, 20000]))
tile_sizes = st.integers(1, 160)
budgets = st.integers(1, 24)


@pytest.mark.parametrize("name", CASES)
def test_compatible_tiles_equal_the_originals_bit_for_bit(name):
    vectors, case = golden.load("tiles"), CASES[name]
    tile, overlap = case["tile_size"], case["overlap"]
    images = vectors[f"{name}.in.image_u8"].numpy()
    wanted_boxes = vectors[f"{name}.out.boxes"].numpy()
    wanted_digests = vectors[f"{name}.out.tile_sha256"].numpy()
    counts = vectors[f"{name}.out.counts"].tolist()
    assert len(images) == case["B"] == len(counts)
    tiles = []
    for row, image in enumerate(images):
        _, height, width = image.shape
        boxes = tiling.compatible_boxes(height, width, tile, overlap)
        assert len(boxes) == counts[row] == case["n_tiles_per_image"]
        assert len(tiling.relative_boxes(boxes, height, width)) == case["G_with_global"]
        wanted = wanted_boxes[wanted_boxes[:, 0] == row]  # batch, y0, x0, h, w, H, W
        assert boxes[:, :2].tolist() == wanted[:, 1:3].tolist()
        assert (boxes[:, 2:] - boxes[:, :2]).tolist() == wanted[:, 3:5].tolist()
        tiles.append(tiling.cut(image, boxes, tile))
    tiles = np.concatenate(tiles)
    assert tiles.shape == (sum(counts), 3, tile, tile)
    for found, wanted in zip(tiles, wanted_digests, strict=True):
        assert hashlib.sha256(found.tobytes()).digest() == bytes(wanted)
    flat = torch.from_numpy(tiles).double().flatten(2)
    torch.testing.assert_close(flat.mean(-1), vectors[f"{name}.out.tile_mean"], rtol=1e-12, atol=0)
    torch.testing.assert_close(flat.std(-1), vectors[f"{name}.out.tile_std"], rtol=1e-12, atol=0)
    corner = vectors[f"{name}.out.last_tile_corner"].numpy()
    assert (tiles[-1][:, -4:, -4:] == corner).all()


def test_compatible_tile_counts_and_coverage_equal_the_originals():
    for height, width, tiles, grids, covered_height, covered_width in golden.load("tiles")[
        "boxes_table.HW_ntiles_G_covered"
    ].tolist():
        boxes = tiling.compatible_boxes(height, width, 128, 2)
        assert (len(boxes), boxes[:, 2].max(), boxes[:, 3].max()) == (tiles, covered_height, covered_width)
        assert len(tiling.relative_boxes(boxes, height, width)) == grids


def test_the_global_view_is_resized_by_the_originals_rule():
    vectors = golden.load("tiles")
    image, wanted = vectors["global_resize.in.image"][0].numpy(), vectors["global_resize.out.y"][0].numpy()
    found = tiling.resize_bilinear(image, *wanted.shape[-2:])
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


@given(height=st.integers(1, 60), width=st.integers(1, 60), out=st.integers(1, 60))
def test_the_global_view_is_resized_as_torch_does_it(height, width, out):
    image = torch.rand(3, height, width, dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(image[None], (out, out), mode="bilinear", align_corners=False)[0]
    found = tiling.resize_bilinear(image.numpy(), out, out)
    assert np.abs(found - wanted.numpy()).max() <= 1e-6


@given(height=sides, width=sides, tile=tile_sizes, budget=budgets)
def test_the_native_grid_keeps_the_budget_and_is_never_coarser_than_needed(height, width, tile, budget):
    rows, columns = tiling.native_grid(height, width, tile, budget)
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= budget
    nearest = max(1, round(height / tile)) * max(1, round(width / tile))
    if nearest <= budget:
        assert rows * columns == nearest
    else:
        assert rows * columns >= budget / 2 or min(height, width) * budget < max(height, width)


@given(height=sides, width=sides, tile=tile_sizes, budget=budgets)
def test_the_native_grid_is_the_least_stretched_one_in_the_budget(height, width, tile, budget):
    rows, columns = tiling.native_grid(height, width, tile, budget)
    if max(1, round(height / tile)) * max(1, round(width / tile)) <= budget:
        return
    r, c = (budget * height / width) ** 0.5, (budget * width / height) ** 0.5
    grids = np.array([(i, j) for i in range(1, budget + 1) for j in range(1, budget // i + 1)])
    stretch = (np.log(grids / [r, c]) ** 2).sum(1)
    assert np.log(rows / r) ** 2 + np.log(columns / c) ** 2 <= stretch.min() + 1e-8


@given(height=sides, width=sides, tile=tile_sizes, budget=budgets)
def test_a_wide_image_gets_at_least_as_many_columns_as_rows(height, width, tile, budget):
    rows, columns = tiling.native_grid(height, width, tile, budget)
    if width > height:
        assert columns >= rows
    if height > width:
        assert rows >= columns


def test_wide_images_get_more_columns():
    assert tiling.native_grid(256, 256, 128, 4) == (2, 2)
    assert tiling.native_grid(1000, 1000, 128, 4) == (2, 2)
    assert tiling.native_grid(400, 800, 128, 4) == (1, 3)
    assert tiling.native_grid(128, 512, 128, 4) == (1, 4)
    assert tiling.native_grid(10, 20000, 128, 4) == (1, 4)
    assert tiling.native_grid(20000, 10, 128, 12) == (12, 1)
    assert tiling.native_grid(1, 1, 128, 4) == (1, 1)
    assert tiling.native_grid(768, 1024, 128, 12) == (3, 4)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), tile=st.integers(1, 20))
def test_native_tiles_cover_the_whole_image_once(rows, columns, tile):
    height, width = rows * tile, columns * tile
    boxes = tiling.native_boxes(rows, columns, tile)
    image = np.arange(height * width).reshape(1, height, width)
    seen = np.sort(tiling.cut(image, boxes, tile).ravel())
    assert (seen == np.arange(height * width)).all()
    relative = tiling.relative_boxes(boxes, height, width)
    assert relative.dtype == np.float32
    assert relative[0].tolist() == [0, 0, 1, 1]
    assert relative.min() >= 0
    assert relative.max() <= 1
    areas = (relative[:, 2] - relative[:, 0]) * (relative[:, 3] - relative[:, 1])
    assert areas[1:].sum() == pytest.approx(1, abs=1e-5)


@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.integers(2, 130), data=st.data())
def test_compatible_boxes_lie_inside_the_image_and_drop_less_than_a_step(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    step = tile - overlap
    boxes = tiling.compatible_boxes(height, width, tile, overlap)
    relative = tiling.relative_boxes(boxes, height, width)
    assert relative.min() >= 0
    assert relative.max() <= 1
    assert height - boxes[:, 2].max() < step
    assert width - boxes[:, 3].max() < step
