"""The measurement of video: what is timed is what is said."""

import torch
from foveated import MODES, make_foveated

from firebolt_vl.bench import video


def test_every_mode_is_timed_at_every_number_of_frames():
    model = make_foveated()
    looked = []
    hook = model.encoder.dino.embeddings.register_forward_pre_hook(lambda _, args: looked.append(len(args[0])))
    rows = video.measure((1, 3), model, None, frame_size=28, seconds=0.0, answer=4)
    hook.remove()
    assert [(row.name, row.frames, row.visual_tokens) for row in rows] == [
        (mode, count, count) for count in (1, 3) for mode in MODES
    ]
    assert set(looked) == {1, 3}
    for row in rows:
        assert row.first_token_s > 0
        assert row.frames_per_s == row.frames / row.first_token_s
    passes = video.measure_passes(model, 28, (1, 3), seconds=0.0)
    assert [one.frames for one in passes] == [1, 3]
    assert all(one.patches_ms > 0 and one.query_ms > 0 for one in passes)
    table = video.markdown(rows, passes)
    assert "In a block of 3 a frame's patches take" in table
    assert table.count("\n| ") == 1 + len(rows)
    assert "| autoregressive | 3 | 3 |" in table


def test_the_peer_is_of_its_size_and_gives_64_tokens_a_frame():
    with torch.device("meta"):
        peer = video.make_peer()
    assert 250 < peer.num_parameters() / 1e6 < 260
    inputs = video._peer_inputs(peer, 3, torch.ones(1, 5, dtype=torch.long))
    assert inputs["input_ids"].shape == (1, 3 * 64 + 5)
    assert inputs["pixel_values"].shape == (1, 3, 3, 512, 512)
    side = peer.config.vision_config.image_size // peer.config.vision_config.patch_size // peer.config.scale_factor
    assert side * side == video.PEER_TOKENS
