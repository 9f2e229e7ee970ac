"""Grids that come while a text is read: what follows sees them, what came before stays as it is."""

import pytest
import torch
from connectors import CONNECTORS, GRID_WIDTH, TEXT_WIDTH, make_connector, random_boxes
from numerics import largest
from torch import Tensor

from firebolt_vl.cmm import CrossModalModulator

BESIDE = [name for name in CONNECTORS if name.startswith(("cmm", "cross"))]
CONNECTOR = pytest.mark.parametrize("name", BESIDE)
B, BEFORE, AFTER = 2, 4, 5
FRAMES, GRIDS = 4, 3


def frames(dtype=torch.float64) -> list[dict[str, Tensor]]:
    """A frame a second, three grids each; one grid of one row is not there."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for second in range(FRAMES):
        mask = torch.ones(B, GRIDS, dtype=torch.bool)
        mask[1, 0] = second != 2
        made.append(
            {
                "grids": torch.randn(B, GRIDS, GRID_WIDTH, generator=generator, dtype=torch.float64).to(dtype),
                "grid_mask": mask,
                "grid_boxes": random_boxes(B, GRIDS, generator=generator),
                "grid_images": torch.full((B, GRIDS), second % 2),
                "grid_times": torch.full((B, GRIDS), float(second)),
            }
        )
    return made


def together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def some_text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(B, BEFORE + AFTER, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.ones(B, BEFORE + AFTER, dtype=torch.bool)
    mask[0, :2] = False
    return text, mask


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert largest(found - wanted) <= 1e-11 * max(1.0, largest(wanted))


@CONNECTOR
def test_frame_by_frame_equals_at_once(name):
    """Before any text, and between two pieces of it; also where an added frame is encoded alone."""
    connector = make_connector(name, grid_times=True)
    text, mask = some_text()
    first, *others = frames()
    state = connector.encode_grids(**first)
    for frame in others:
        state = connector.add_grids(state, **frame)
    found, _ = connector.prefill(text, text_mask=mask, state=state)
    assert_near(found, connector(text, text_mask=mask, **together([first, *others])))

    _, begun = connector.prefill(text[:, :BEFORE], text_mask=mask[:, :BEFORE], **first)
    one_by_one = begun
    for frame in others:
        one_by_one = connector.add_grids(one_by_one, **frame)
    at_once = connector.add_grids(begun, **together(others))
    assert one_by_one.tensors.keys() == at_once.tensors.keys()
    found, wanted = (connector.prefill(text[:, BEFORE:], state=state) for state in (one_by_one, at_once))
    assert_near(found[0], wanted[0])
    assert_near(connector.step(text[:, 0], found[1])[0], connector.step(text[:, 0], wanted[1])[0])


def by_equations(layer: CrossModalModulator, text: Tensor, mask: Tensor, visible: Tensor, given: dict) -> Tensor:
    """The modulator where each token sees grids of its own, visible [B,T,G], from sections 2 and 2d of the page."""
    config = layer.config
    x = layer.positions(given["grids"], given["grid_boxes"], given["grid_images"], given["grid_times"])
    heads = (config.heads, config.head_dim)
    asked = text if layer.query is None else text + layer.query.ssm(layer.query.norm(text), mask)
    q, k = layer.q_proj(asked).unflatten(-1, heads), layer.k_proj(x).unflatten(-1, heads)
    s = torch.einsum("bthd,bghd->bhtg", q, k) / config.head_dim**0.5
    s = s.masked_fill(~visible[:, None], -torch.inf)
    kept = s >= s.topk(config.top_k, -1).values[..., -1:]
    w = s.masked_fill(~kept, -torch.inf).softmax(-1).mean(1)
    c = w @ layer.v_proj(x)
    gamma, beta = layer.film_in(c).chunk(2, -1)
    x_f = layer.norm_in(text) * (1 + layer.gate * gamma) + layer.gate * beta
    y = layer.ssm(x_f, mask)
    gamma, beta = layer.film_out(c).chunk(2, -1)
    r = text + y * (1 + layer.gate * gamma) + layer.gate * beta
    written = layer.norm_out(r + layer.ffn(r))
    out = written if layer.out_gate is None else text + layer.out_gate * written
    return out if layer.second is None else by_equations(layer.second, out, mask, visible, given)


@pytest.mark.parametrize("name", [name for name in BESIDE if name.startswith("cmm")])
def test_each_token_sees_the_frames_that_came_before_it(name):
    layer = make_connector(name, grid_times=True)
    text, mask = some_text()
    parts = frames()
    outputs, state = [], None
    cuts = [2, 4, 5, BEFORE + AFTER]  # a frame before each piece
    for start, end, frame in zip([0, *cuts], cuts, parts):
        state = layer.encode_grids(**frame) if state is None else layer.add_grids(state, **frame)
        y, state = layer.prefill(text[:, start:end], text_mask=mask[:, start:end], state=state)
        outputs.append(y)

    given = together(parts)
    arrived = torch.tensor([0, *cuts[:-1]]).repeat_interleave(GRIDS)
    visible = (torch.arange(BEFORE + AFTER)[:, None] >= arrived) & given["grid_mask"][:, None]
    found = torch.cat(outputs, 1)
    wanted = by_equations(layer, text, mask, visible, given)
    assert_near(found[mask], wanted[mask])
    # "grid.since" counts kept tokens: row 0 has two that are not.
    assert state.tensors["grid.since"][1].tolist() == arrived.tolist()
    assert state.tensors["grid.since"][0].tolist() == (arrived - 2).clamp(min=0).tolist()


@CONNECTOR
def test_nothing_of_earlier_tokens_is_computed_again(name):
    """The state of the text is the very tensors of before, and the grids of before are not projected again."""
    connector = make_connector(name)
    text, _ = some_text()
    first, second, *_ = frames()
    _, begun = connector.prefill(text[:, :BEFORE], history=2, **first)
    before = begun.clone()
    widths = []
    for module in connector.modules():
        if isinstance(module, torch.nn.Linear) and module.in_features == GRID_WIDTH:
            module.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    added = connector.add_grids(begun, **second)
    assert widths
    assert set(widths) == {GRIDS}
    for key, tensor in begun.tensors.items():
        assert torch.equal(tensor, before.tensors[key]), key
        if ".grid." not in f".{key}":
            assert added.tensors[key] is tensor
    assert torch.equal(added.length, begun.length)
    with pytest.raises(ValueError, match="n is 1; expected at most 0"):
        added.rollback(1)


@CONNECTOR
def test_times_change_what_is_seen_where_they_are_configured(name):
    text, mask = some_text()
    given = together(frames())
    later = {**given, "grid_times": given["grid_times"].flip(1)}
    with_times, without = make_connector(name, grid_times=True), make_connector(name)
    assert not torch.allclose(with_times(text, **given), with_times(text, **later), atol=1e-3)
    assert torch.equal(without(text, **given), without(text, **later))
    added = set(with_times.state_dict()) - set(without.state_dict())
    assert {name.removeprefix("second.") for name in added} == {"positions.time.weight"}
    # At second 0 a layer with times is the layer without them: a checkpoint of before can go on with times.
    with_times.load_state_dict(without.state_dict(), strict=False)
    still = {**given, "grid_times": torch.zeros_like(given["grid_times"])}
    assert torch.equal(with_times(text, text_mask=mask, **still), without(text, text_mask=mask, **given))


def test_states_with_added_grids_are_saved_and_chosen_by_row(tmp_path):
    connector = make_connector("cmm_s4")
    text, _ = some_text()
    first, second, *_ = frames()
    state = connector.add_grids(connector.prefill(text[:, :BEFORE], **first)[1], **second)
    state.save(tmp_path / "state.safetensors")
    again = type(state).load(tmp_path / "state.safetensors").index_select(torch.tensor([1]))
    found, wanted = connector.step(text[1:, BEFORE], again)[0], connector.step(text[:, BEFORE], state)[0]
    assert_near(found, wanted[1:])


def test_more_grids_than_a_table_is_made_for_join_those_that_have_one():
    """One frame more than the width: encoded at once such grids have values, joined to a table they have one."""
    connector = make_connector("cmm_s4d")
    text, mask = some_text()
    parts = frames()
    state = connector.encode_grids(**parts[0])
    assert "grid.table" in state.tensors
    for frame in parts[1:]:
        state = connector.add_grids(state, **frame)
    assert state.tensors["grid.table"].shape[1] == FRAMES * GRIDS > TEXT_WIDTH
    whole = connector.encode_grids(**together(parts))
    assert "grid.v" in whole.tensors
    found, wanted = (connector.prefill(text, text_mask=mask, state=each)[0] for each in (state, whole))
    assert_near(found, wanted)
    more = connector.add_grids(whole, **parts[0])
    assert "grid.table" not in more.tensors
    assert more.tensors["grid.v"].shape[1] == (FRAMES + 1) * GRIDS


@pytest.mark.parametrize("name", ["prepend", "routed_prepended", "routed_mean"])
def test_grids_that_stand_in_the_text_cannot_be_added(name):
    connector = make_connector(name)
    state = connector.encode_grids(**frames()[0])
    with pytest.raises(ValueError, match="add_grids is called; expected of a connector whose grids stand beside"):
        connector.add_grids(state, **frames()[1])


def test_wrong_arguments_are_refused():
    connector = make_connector("cmm_s4", grid_times=True)
    frame = frames()[0]
    state = connector.encode_grids(**frame)
    with pytest.raises(ValueError, match="grids has shape"):
        connector.add_grids(state, frame["grids"][:1])
    with pytest.raises(ValueError, match=r"grid_boxes is None; expected boxes .* where grid_times is given"):
        connector.add_grids(state, frame["grids"], grid_times=frame["grid_times"])
    with pytest.raises(ValueError, match=r"grid_times has shape \[2, 2\]"):
        connector.add_grids(state, **{**frame, "grid_times": frame["grid_times"][:, :2]})
    with pytest.raises(TypeError, match="grid_times is int64; expected one of float32"):
        connector.add_grids(state, **{**frame, "grid_times": frame["grid_times"].long()})


def test_no_time_under_a_mask_is_read():
    for name in ("cmm_s4", "routed_prepended"):
        connector = make_connector(name, grid_times=True)
        text, _ = some_text()
        given = together(frames())
        poisoned = {**given, "grid_times": given["grid_times"].masked_fill(~given["grid_mask"], torch.nan)}
        assert torch.equal(connector(text, **given), connector(text, **poisoned))


def test_patches_of_a_video_come_frame_after_frame():
    """The state-space model of a routed connector reads them in the order of time, however they are given."""
    connector = make_connector("routed_prepended", grid_times=True, top_k=None)
    text, _ = some_text()
    parts = [{**part, "grid_images": torch.zeros_like(part["grid_images"])} for part in frames()]
    assert_near(connector(text, **together(parts[::-1])), connector(text, **together(parts)))
    shifted = together(parts)
    shifted["grid_times"] = FRAMES - shifted["grid_times"]
    assert not torch.allclose(connector(text, **shifted), connector(text, **together(parts)), atol=1e-3)
