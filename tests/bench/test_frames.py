"""The measurement of many frames: what is timed is what is said, and the state grows evenly."""

import torch
from connectors import make_connector

from firebolt_vl.bench import frames


def test_every_number_of_frames_is_timed():
    layer = make_connector("cmm_s4d", dtype=torch.float32, grid_times=True, text_width=32)
    rows = frames.measure(layer, (1, 4), seconds=0.0)
    assert [row.frames for row in rows] == [1, 4]
    assert all(min(row.encode_ms, row.add_ms, row.question_ms, row.token_ms) > 0 for row in rows)
    # Beside what each grid has there is a bias for all of them.
    shared = 4 * 4 * 32
    assert rows[1].state_bytes - shared == 4 * (rows[0].state_bytes - shared)
    assert frames.markdown(rows).count("\n| ") == 1 + len(rows)
