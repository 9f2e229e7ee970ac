"""What every connector promises, the modulator with each of its SSMs among them."""

import copy
import math
import pickle

import pytest
import torch
from connectors import (
    CONNECTORS,
    GRID_WIDTH,
    TEXT_WIDTH,
    connector_inputs,
    cuts,
    inserted,
    make_connector,
    random_boxes,
    run_in_pieces,
)
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, largest

from firebolt_vl.cmm import DecodeState

CONNECTOR = pytest.mark.parametrize("name", CONNECTORS)


def some_inputs(B=3, T=9, G=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(B, T, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    grids = torch.randn(B, G, GRID_WIDTH, generator=generator, dtype=torch.float64)
    return text.to(dtype), grids.to(dtype)


def assert_same_embeddings(found, wanted, relative=1e-11):
    """Padding may leave nothing but zeros."""
    assert found.shape == wanted.shape
    assert largest(found - wanted) <= relative * max(1.0, largest(wanted))


@CONNECTOR
@given(data=st.data(), inputs=connector_inputs(), steps=st.integers(0, 3))
def test_prefill_in_any_pieces_and_steps_give_what_forward_gives(name, data, inputs, steps):
    text, grids, sides = inputs
    connector = make_connector(name)
    pieces = data.draw(cuts(text.shape[1]))
    mask = sides.pop("text_mask")
    # Steps take no mask: the tokens after the prompt are kept in every row.
    text = torch.cat([text, torch.randn(text.shape[0], steps, TEXT_WIDTH, dtype=torch.float64)], 1)
    whole = None if mask is None else torch.cat([mask, torch.ones(text.shape[0], steps, dtype=torch.bool)], 1)
    found, state = run_in_pieces(connector, text, grids, pieces, steps, mask, **sides)
    assert_same_embeddings(found, connector(text, grids, whole, **sides))
    kept = torch.full((text.shape[0],), text.shape[1]) if whole is None else whole.sum(1)
    assert torch.equal(state.length, kept)


@CONNECTOR
@given(inputs=connector_inputs())
def test_each_row_gives_what_its_kept_tokens_and_grids_give_alone(name, inputs):
    """Padding and holes of any kind, in text and grids, change nothing and give zeros."""
    text, grids, sides = inputs
    connector = make_connector(name)
    y = connector(text, grids, **sides)
    G, before = grids.shape[1], inserted(connector, grids, **sides)
    for b in range(text.shape[0]):
        kept = torch.ones(text.shape[1], dtype=torch.bool) if sides["text_mask"] is None else sides["text_mask"][b]
        seen = torch.ones(G, dtype=torch.bool) if sides["grid_mask"] is None else sides["grid_mask"][b]
        places = torch.cat([before[b], kept])
        assert (y[b, ~places] == 0).all()
        if not kept.any() or not seen.any():
            continue
        its = {
            "grid_boxes": sides["grid_boxes"][b : b + 1, seen],
            "grid_images": None if sides["grid_images"] is None else sides["grid_images"][b : b + 1, seen],
        }
        alone = connector(text[b : b + 1, kept], grids[b : b + 1, seen], **its)
        there = inserted(connector, grids[b : b + 1, seen], **its)[0]
        there = torch.cat([there, torch.ones(alone.shape[1] - len(there), dtype=torch.bool)])
        assert_same_embeddings(y[b : b + 1, places], alone[:, there])


@CONNECTOR
@given(data=st.data(), inputs=connector_inputs())
def test_a_change_leaves_everything_before_it_alike(name, data, inputs):
    text, grids, sides = inputs
    connector = make_connector(name)
    t = data.draw(st.integers(0, text.shape[1] - 1))
    changed = text.clone()
    changed[:, t:] = torch.randn_like(changed[:, t:])
    before = t + inserted(connector, grids, **sides).shape[1]
    found, wanted = (connector(x, grids, **sides)[:, :before] for x in (changed, text))
    assert_same_embeddings(found, wanted)


@CONNECTOR
@given(data=st.data(), inputs=connector_inputs())
def test_permuting_grids_together_with_their_places_changes_nothing(name, data, inputs):
    text, grids, sides = inputs
    connector = make_connector(name)
    order = torch.tensor(data.draw(st.permutations(range(grids.shape[1]))))
    mask, places = sides.pop("text_mask"), sides
    moved = {key: None if value is None else value[:, order] for key, value in places.items()}
    y, permuted = connector(text, grids, mask, **places), connector(text, grids[:, order], mask, **moved)
    if name == "prepend":  # the routed patches come in the order of their image
        G = grids.shape[1]
        y = torch.cat([y[:, :G][:, order], y[:, G:]], 1)
    assert_same_embeddings(permuted, y)


@CONNECTOR
def test_nothing_under_a_mask_is_read(name):
    """Were it NaN: not in the value, not in any gradient. One row has no grids, one no text."""
    text_mask = torch.tensor([[True, False, True, True], [False, True, True, True], [False] * 4])
    grid_mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    boxes = random_boxes(3, 5, generator=torch.Generator().manual_seed(0))

    def run(fill):
        connector = make_connector(name)
        text, grids = some_inputs(T=4)
        text[~text_mask], grids[~grid_mask] = fill, fill
        places = boxes.clone()
        places[~grid_mask] = fill
        text.requires_grad_(), grids.requires_grad_()
        y = connector(text, grids, text_mask, grid_mask, places)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return {"y": y, "text": text.grad, "grids": grids.grad} | {k: p.grad for k, p in connector.named_parameters()}

    poisoned, clean = run(math.nan), run(0.0)
    for key, value in clean.items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(poisoned[key], value), key
    assert (poisoned["text"][~text_mask] == 0).all()
    assert (poisoned["grids"][~grid_mask] == 0).all()


@CONNECTOR
def test_grids_encoded_once_serve_every_beam_and_every_token(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    encoded = connector.encode_grids(grids)
    assert (encoded.length == 0).all()
    projections = [m for m in connector.modules() if isinstance(m, torch.nn.Linear) and m.in_features == GRID_WIDTH]
    calls = []
    for projection in projections:
        projection.register_forward_hook(lambda *_: calls.append(1))
    beams = text.repeat_interleave(2, 0)
    outputs, state = run_from_state(connector, beams, encoded.repeat_interleave(2), 4)
    assert projections, "the grids go through some projection"
    assert not calls
    assert_same_embeddings(outputs, connector(beams, grids.repeat_interleave(2, 0)))
    reordered = state.index_select(torch.tensor([1, 0, 2, 3, 5, 4]))
    token = torch.randn(6, TEXT_WIDTH, dtype=torch.float64)
    found, _ = connector.step(token[[1, 0, 2, 3, 5, 4]], reordered)
    wanted, _ = connector.step(token, state)
    assert_same_embeddings(found, wanted[[1, 0, 2, 3, 5, 4]])


def run_from_state(connector, text, state, prompt):
    y, state = connector.prefill(text[:, :prompt], state=state)
    outputs = [y]
    for t in range(prompt, text.shape[1]):
        y, state = connector.step(text[:, t : t + 1], state)
        assert y.shape == text[:, t : t + 1].shape
        outputs.append(y)
    return torch.cat(outputs, 1), state


@CONNECTOR
def test_step_leaves_the_given_state_alone(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    _, state = connector.prefill(text, grids)
    before = state.clone()
    first, _ = connector.step(text[:, 0], state)
    again, _ = connector.step(text[:, 0], state)
    assert torch.equal(first, again)
    for key, tensor in before.tensors.items():
        assert torch.equal(state.tensors[key], tensor)
    assert torch.equal(state.length, before.length)


@CONNECTOR
@pytest.mark.parametrize("n", [1, 3])
def test_rolled_back_tokens_leave_no_trace(name, n):
    connector = make_connector(name)
    text, grids = some_inputs()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, :2], mask[1, 6:8] = False, False
    _, state = connector.prefill(text[:, :4], grids, mask[:, :4])
    kept, ahead = state, connector.prefill(text[:, 4:], state=state, text_mask=mask[:, 4:], history=3)[1]
    back = ahead.rollback(n)
    if 5 - n:
        _, kept = connector.prefill(text[:, 4 : 9 - n], state=kept, text_mask=mask[:, 4 : 9 - n])
    assert torch.equal(back.length, kept.length)
    token = torch.randn(3, TEXT_WIDTH, dtype=torch.float64)
    assert_same_embeddings(connector.step(token, back)[0], connector.step(token, kept)[0])
    assert back.history_length == 3 - n
    with pytest.raises(ValueError, match="n is 4; expected at most 3"):
        ahead.rollback(4)


@CONNECTOR
def test_a_saved_state_continues_where_it_was(name, tmp_path):
    connector = make_connector(name)
    text, grids = some_inputs()
    _, state = connector.prefill(text, grids)
    state.save(tmp_path / "state.safetensors")
    loaded = DecodeState.load(tmp_path / "state.safetensors")
    assert torch.equal(connector.step(text[:, 0], loaded)[0], connector.step(text[:, 0], state)[0])


@CONNECTOR
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_in_every_mode_is_near_float64(name, dtype):
    """Weights and inputs are the same numbers in both; the rest is the rounding of a dozen operations.

    Without top-k, which jumps where rounding makes two scores change places.
    """
    half, exact = make_connector(name, dtype, top_k=None), make_connector(name, dtype, top_k=None).double()
    text, grids = some_inputs(T=30, dtype=dtype)
    mask = torch.rand(3, 30) > 0.2
    wanted = exact(text.double(), grids.double(), mask)
    found = half(text, grids, mask)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert_close(found.double(), wanted, relative=16 * eps)
    pieces, state = run_in_pieces(half, text, grids, [10, 18], 2)
    assert pieces.dtype == dtype
    assert_close(pieces.double(), exact(text.double(), grids.double()), relative=16 * eps)
    assert all(t.dtype == torch.float32 for k, t in state.tensors.items() if k.startswith("ssm."))


@CONNECTOR
def test_autocast_runs_every_mode_and_the_gradients(name):
    connector = make_connector(name, torch.float32, top_k=None)
    text, grids = some_inputs(dtype=torch.float32)
    wanted = connector(text, grids)
    with torch.autocast("cpu", torch.bfloat16):
        found = connector(text, grids)
        pieces, _ = run_in_pieces(connector, text, grids, [5], 4)
    assert found.dtype == pieces.dtype == torch.float32
    for y in (found, pieces):
        assert_close(y, wanted, relative=0.1)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in connector.parameters() if p.grad is not None)


@CONNECTOR
def test_every_parameter_is_trained(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    y = connector(text, grids, grid_images=torch.arange(5).expand(3, 5), grid_boxes=torch.rand(3, 5, 4))
    (y * torch.randn_like(y)).sum().backward()
    for key, parameter in connector.named_parameters():
        assert parameter.grad is not None, key
        assert largest(parameter.grad) > 0, key


@CONNECTOR
def test_strided_and_expanded_inputs_are_like_contiguous_ones(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    wanted = connector(text[:1].expand(3, -1, -1).contiguous(), grids)
    assert_same_embeddings(connector(text[:1].expand(3, -1, -1), grids), wanted)
    wanted = connector(text, grids)
    strided = torch.cat([text, text], -1)[..., :TEXT_WIDTH], grids.mT.contiguous().mT
    assert_same_embeddings(connector(*strided), wanted)
    assert_same_embeddings(connector(text.transpose(0, 1).contiguous().transpose(0, 1), grids), wanted)


@CONNECTOR
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_state_dict_round_trip_gives_the_same_layer(name, dtype):
    connector, other = make_connector(name, dtype), make_connector(name, dtype, seed=1)
    text, grids = some_inputs(dtype=dtype)
    assert not torch.equal(other(text, grids), connector(text, grids))
    other.load_state_dict(connector.state_dict())
    assert torch.equal(other(text, grids), connector(text, grids))
    assert set(connector.state_dict()) == {key for key, _ in connector.named_parameters()}, "no hidden buffers"


@CONNECTOR
def test_copies_and_pickles_are_the_same_layer(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    wanted = connector(text, grids)
    for twin in (copy.deepcopy(connector), pickle.loads(pickle.dumps(connector))):
        assert torch.equal(twin(text, grids), wanted)
        next(twin.parameters()).data.zero_()
    assert torch.equal(connector(text, grids), wanted)


@CONNECTOR
def test_a_layer_made_on_meta_is_initialised_where_it_lands(name):
    with torch.device("meta"):
        connector = make_connector(name, torch.float32)
    connector.reset_parameters()
    assert {p.device.type for p in connector.parameters()} == {"meta"}
    connector = connector.to_empty(device="cpu")
    for parameter in connector.parameters():
        parameter.data.fill_(math.nan)
    torch.manual_seed(3)
    connector.reset_parameters()
    assert all(torch.isfinite(p).all() for p in connector.parameters())
    text, grids = some_inputs(dtype=torch.float32)
    assert torch.isfinite(connector(text, grids)).all()
    other = make_connector(name, torch.float32, seed=9)
    torch.manual_seed(3)
    other.reset_parameters()
    assert torch.equal(other(text, grids), connector(text, grids))


@CONNECTOR
def test_images_of_a_row_are_told_apart_by_their_number(name):
    connector = make_connector(name, top_k=None)
    text, grids = some_inputs(G=4)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]).repeat(2, 1).expand(3, 4, 4)
    first, second = torch.zeros(3, 4, dtype=torch.int64), torch.tensor([[0, 0, 1, 1]]).expand(3, 4)
    plain = connector(text, grids, grid_boxes=boxes)
    assert torch.equal(connector(text, grids, grid_boxes=boxes, grid_images=first), plain)
    told_apart = connector(text, grids, grid_boxes=boxes, grid_images=second)
    assert told_apart.shape != plain.shape or largest(told_apart - plain) > 1e-4


@CONNECTOR
def test_without_positions_boxes_have_no_effect_and_any_number_of_grids_is_taken(name):
    connector = make_connector(name, grid_positions=False)
    text, grids = some_inputs(G=4)
    boxes = random_boxes(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(connector(text, grids, grid_boxes=boxes), connector(text, grids))


@CONNECTOR
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"text": torch.randn(2, 3, 9)}, ValueError, r"text has shape \[2, 3, 9\]; expected \[B T 8\]"),
        ({"text": torch.randn(3, 8)}, ValueError, r"text has shape \[3, 8\]; expected \[B T 8\]"),
        ({"text": None}, TypeError, "text is of type NoneType; expected a tensor"),
        ({"text": torch.randn(2, 3, 8).double()}, TypeError, r"text is torch.float64; expected torch.float32"),
        ({"text": torch.ones(2, 3, 8, dtype=torch.int64)}, TypeError, r"text is torch.int64; expected torch.float32"),
        ({"grids": torch.randn(2, 5, 7)}, ValueError, r"grids has shape \[2, 5, 7\]; expected \[B G 6\] with B = 2"),
        ({"grids": torch.randn(3, 5, 6)}, ValueError, r"grids has shape \[3, 5, 6\]; expected \[B G 6\] with B = 2"),
        ({"grids": None}, TypeError, "grids is of type NoneType; expected a tensor"),
        ({"grids": torch.randn(2, 4, 6)}, ValueError, r"grid_boxes is None with 4 grids; expected boxes \[B, 4, 4\]"),
        (
            {"text_mask": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            r"text_mask has shape \[2, 4\]; expected \[B T\]",
        ),
        ({"text_mask": torch.ones(2, 3)}, TypeError, "text_mask is float32; expected one of bool"),
        ({"grid_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"grid_mask has shape \[2, 4\]"),
        ({"grid_mask": torch.ones(2, 5, dtype=torch.int64)}, TypeError, "grid_mask is int64; expected one of bool"),
        (
            {"grid_boxes": torch.randn(2, 5, 3)},
            ValueError,
            r"grid_boxes has shape \[2, 5, 3\]; expected \[B G 4\] with B = 2",
        ),
        ({"grid_images": torch.zeros(2, 5)}, TypeError, "grid_images is float32"),
        (
            {"grid_images": torch.zeros(2, 5, dtype=torch.int64)},
            ValueError,
            r"grid_boxes is None; expected boxes \[B, G, 4\] where grid_images is given",
        ),
    ],
)
def test_argument_errors_of_forward_name_the_argument(name, change, error, words):
    connector = make_connector(name, torch.float32)
    arguments = {"text": torch.randn(2, 3, TEXT_WIDTH), "grids": torch.randn(2, 5, GRID_WIDTH)} | change
    with pytest.raises(error, match=words):
        connector(**arguments)


@CONNECTOR
def test_argument_errors_of_prefill_and_step_name_the_argument(name):
    connector = make_connector(name)
    text, grids = some_inputs()
    _, state = connector.prefill(text, grids)
    with pytest.raises(ValueError, match="grids and state are both None; expected one of them"):
        connector.prefill(text)
    with pytest.raises(ValueError, match="grids and state are both given; expected one of them"):
        connector.prefill(text, grids, state=state)
    with pytest.raises(ValueError, match=r"grids has shape \[2, 5, 6\]; expected 3 rows"):
        connector.prefill(text, grids[:2])
    with pytest.raises(ValueError, match="state has 3 rows; expected 2"):
        connector.prefill(text[:2], state=state)
    with pytest.raises(ValueError, match="history is -1; expected at least 0"):
        connector.prefill(text, grids, history=-1)
    with pytest.raises(ValueError, match=r"token has shape \[3, 9, 8\]; expected \[B, 8\] or \[B, 1, 8\]"):
        connector.step(text, state)
    with pytest.raises(ValueError, match="state has 3 rows; expected 2"):
        connector.step(text[:2, 0], state)
    with pytest.raises(TypeError, match=r"token is torch.float32; expected torch.float64"):
        connector.step(text[:, 0].float(), state)


def test_prepend_puts_the_projected_grids_before_the_text_once():
    connector = make_connector("prepend")
    text, grids = some_inputs()
    y = connector(text, grids)
    assert torch.equal(y[:, 5:], text)
    hidden = torch.nn.functional.gelu(connector.up(connector.positions(grids, default(5))))
    assert_close(y[:, :5], connector.down(hidden))
    first, state = connector.prefill(text[:, :2], grids)
    second, state = connector.prefill(text[:, 2:5], state=state)
    assert (first.shape[1], second.shape[1]) == (7, 3)
    assert torch.equal(connector.step(text[:, 5], state)[0], text[:, 5])
    with pytest.raises(ValueError, match="grids that are not inserted yet; expected the state that prefill returns"):
        connector.step(text[:, 0], connector.encode_grids(grids))


def test_prepend_has_no_weights_to_return():
    connector = make_connector("prepend")
    text, grids = some_inputs()
    with pytest.raises(ValueError, match="Prepend: return_weights is True"):
        connector(text, grids, return_weights=True)
    with pytest.raises(ValueError, match="Prepend: return_weights is True"):
        connector.prefill(text, grids, return_weights=True)


@pytest.mark.parametrize("name", CONNECTORS)
@pytest.mark.parametrize("G", [2, 17])
def test_a_state_holds_the_whole_grid_side(name, G):
    connector = make_connector(name)
    state = connector.encode_grids(some_inputs(G=G)[1])
    parts = [state] if getattr(connector, "second", None) is None else [state, state.under("second")]
    assert sum(len(type(connector).side_class.of(part).tensors()) for part in parts) == len(state.tensors)
    for part in parts:
        again = type(connector).side_class.of(part).tensors()
        assert all(key.startswith("grid.") and again[key] is part.tensors[key] for key in again)


def default(G):
    from firebolt_vl.cmm.positions import default_boxes

    return default_boxes(G).expand(3, -1, -1)


def test_cross_attention_is_that_of_torch():
    connector = make_connector("cross_attend", grid_positions=False)
    text, grids = some_inputs(G=4)
    y, w = connector(text, grids, return_weights=True)
    q, k, v = connector.q_proj(connector.norm(text)), connector.k_proj(grids), connector.v_proj(grids)
    q, k, v = (x.unflatten(-1, (2, 5)).transpose(1, 2) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    h = text + connector.o_proj(attended)
    assert_close(y, h + connector.ffn(h), relative=1e-12)
    weights = torch.softmax(q @ k.mT / math.sqrt(5), -1).mean(1)
    assert_close(w, weights, relative=1e-12)


@pytest.mark.parametrize("name", [name for name in CONNECTORS if not name.startswith("routed")])
@pytest.mark.parametrize("grids", [3, 40])  # in the modulator with tables of the grids, and without
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [4, 0])
def test_rows_that_share_grids_give_what_they_give_with_grids_of_their_own(name, grids, masked, tokens):
    generator = torch.Generator().manual_seed(5)
    connector = make_connector(name)
    text = torch.randn(6, tokens, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    x = torch.randn(2, grids, GRID_WIDTH, generator=generator, dtype=torch.float64)
    boxes = random_boxes(2, grids, generator=generator)
    text_mask = torch.rand(6, tokens, generator=generator) < 0.7 if masked else None
    grid_mask = torch.rand(2, grids, generator=generator) < 0.7 if masked else None
    with torch.no_grad():
        shared = connector(text, x, text_mask, grid_mask, boxes, shared=True)
        repeated = [None if one is None else one.repeat_interleave(3, 0) for one in (x, grid_mask, boxes)]
        own = connector(text, repeated[0], text_mask, *repeated[1:])
    assert_same_embeddings(shared, own)


def test_grids_that_cannot_be_shared_are_refused():
    connector = make_connector("cmm_s4")
    text, x = torch.zeros(5, 4, TEXT_WIDTH).double(), torch.zeros(2, 5, GRID_WIDTH).double()
    with pytest.raises(ValueError, match="grids has 2 rows, which are shared; expected a divisor of 5"):
        connector(text, x, shared=True)
    with pytest.raises(ValueError, match="shared is True; expected False, as it is given cu_seqlens"):
        connector(text[:1], x, cu_seqlens=torch.tensor([0, 2, 4]), shared=True)
