"""The measurement of many frames: what is timed is what is said, and the state grows evenly."""

import pytest
import torch
from connectors import make_connector
from numerics import assert_close
from small_sizes import SMALL

from firebolt_vl.bench import frames
from firebolt_vl.bench.answer import image_processor, random_model, text_inputs


def test_every_number_of_frames_is_timed():
    layer = make_connector("cmm_s4d", dtype=torch.float32, grid_times=True, text_width=32)
    rows = frames.measure(layer, (1, 4), seconds=0.0)
    assert [row.frames for row in rows] == [1, 4]
    assert all(min(row.encode_ms, row.add_ms, row.question_ms, row.token_ms) > 0 for row in rows)
    # Beside what each grid has there is a bias for all of them.
    shared = 4 * 4 * 32
    assert rows[1].state_bytes - shared == 4 * (rows[0].state_bytes - shared)
    assert frames.markdown(rows).count("\n| ") == 1 + len(rows)


@pytest.fixture(scope="module")
def model():
    return random_model("float32", "cpu", SMALL, cmm={"grid_times": True})


def test_the_whole_model_is_timed_at_every_number_of_frames(model):
    rows = frames.measure_model("small", model, image_processor(SMALL), (1, 4), seconds=0.0)
    assert [(row.name, row.frames) for row in rows] == [("small", 1), ("small", 4)]
    assert all(min(row.tower_ms, row.question_ms, row.token_ms) > 0 for row in rows)
    assert rows[1].peak_bytes > rows[0].peak_bytes > 0
    assert frames.markdown_of_models(rows).count("\n| ") == 1 + len(rows)


def test_the_parts_that_are_timed_are_the_whole_and_a_frame_is_five_grids(model):
    pixels = image_processor(SMALL)([[frames.video_of(3)]], return_tensors="pt")
    grids = model.model.get_grids(**pixels)
    assert grids.mask.tolist() == [[True] * 3 * frames.VIEWS]
    assert grids.times.tolist() == [[0.0] * frames.VIEWS + [1.0] * frames.VIEWS + [2.0] * frames.VIEWS]
    text = text_inputs(frames.QUESTION, 300, "cpu")
    assert_close(model(**text, **grids.given).logits, model(**text, **pixels).logits, relative=1e-6)
