"""The cross-modal modulator itself: its equations, its weights, its two orders of work."""

import math

import pytest
import torch
import torch.nn.functional as F
from connectors import GRID_WIDTH, SSMS, TEXT_WIDTH, connector_inputs, make_connector, run_in_pieces
from correlations import loop_weights
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_module_within_budget, largest
from torch.utils.checkpoint import checkpoint

from firebolt_vl.cmm import modulator as modulator_module
from firebolt_vl.cmm.modulator import uses_grid_table

SSM = pytest.mark.parametrize("ssm", list(SSMS))


def make(ssm="s4d", dtype=torch.float64, **fields):
    return make_connector(f"cmm_{ssm}", dtype, **fields)


def some_inputs(B=2, T=7, G=5, dtype=torch.float64):
    return torch.randn(B, T, TEXT_WIDTH, dtype=dtype), torch.randn(B, G, GRID_WIDTH, dtype=dtype)


def force_order(monkeypatch, table: bool):
    monkeypatch.setattr(modulator_module, "uses_grid_table", lambda *_: table)


def written_out(layer, text, grids, grid_mask, boxes, images):
    """docs/mathematics.md, section 2, for text without padding, line by line."""
    config = layer.config
    heads = (config.heads, config.head_dim)
    x_v = layer.positions(grids, boxes, images) if layer.positions is not None else grids
    q, k = layer.q_proj(text).unflatten(-1, heads), layer.k_proj(x_v).unflatten(-1, heads)
    w = loop_weights(q, k, config.top_k, grid_mask, None, config.top_k_mode == "renormalize").mean(1)
    w = w.to(text.dtype)
    c = w @ layer.v_proj(x_v)
    alpha = layer.gate
    gamma, beta = layer.film_in(c).chunk(2, -1)
    x_f = layer.norm_in(text) * (1 + alpha * gamma) + alpha * beta
    y = layer.ssm(x_f)
    gamma, beta = layer.film_out(c).chunk(2, -1)
    r = text + y * (1 + alpha * gamma) + alpha * beta
    ffn = layer.ffn
    return layer.norm_out(r + ffn.down(F.gelu(ffn.up(ffn.norm(r))))), w


@SSM
@given(data=st.data(), inputs=connector_inputs(), mode=st.sampled_from(["renormalize", "truncate"]))
def test_the_layer_is_its_equations_written_out(ssm, data, inputs, mode):
    text, grids, sides = inputs
    layer = make(ssm, top_k=data.draw(st.none() | st.integers(0, 7)), top_k_mode=mode)
    sides.pop("text_mask")
    y, w = layer(text, grids, **sides, return_weights=True)
    arguments = layer, text, grids, sides["grid_mask"], sides["grid_boxes"], sides["grid_images"]
    wanted, wanted_w = written_out(*arguments)
    assert_close(w, wanted_w, relative=1e-11)
    assert_close(y, wanted, relative=1e-10)


@pytest.mark.parametrize(
    ("width", "grids", "tokens", "wanted"),
    [
        (1024, 5, 512, True),
        (1024, 5, 6, True),
        (1024, 5, 5, False),
        (1024, 64, 20, False),
        (1024, 64, 276, True),
        (1024, 1024, 8192, True),
        (1024, 1024, 4096, False),
        (1024, 1023, None, True),
        (1024, 1024, None, False),
    ],
)
def test_the_order_of_work_follows_the_count_of_operations(width, grids, tokens, wanted):
    assert uses_grid_table(width, grids, tokens) is wanted


@SSM
@given(inputs=connector_inputs(), mode=st.sampled_from(["renormalize", "truncate"]))
def test_film_from_the_table_and_from_the_context_is_one_function(ssm, inputs, mode):
    text, grids, sides = inputs
    layer = make(ssm, top_k_mode=mode)
    cotangent = torch.randn_like(text)
    runs = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for table in (True, False):
            force_order(monkeypatch, table)
            leaves = [*(x.detach().requires_grad_() for x in (text, grids)), *layer.parameters()]
            y, w = layer(*leaves[:2], **sides, return_weights=True)
            pieces, state = run_in_pieces(layer, *leaves[:2], [text.shape[1]], 0, **sides)
            assert ("grid.table" in state.tensors) is table
            assert ("grid.v" in state.tensors) is not table
            gradients = torch.autograd.grad((y * cotangent).sum(), leaves, allow_unused=True)
            runs.append([y, w, pieces, *gradients])
    scale = max(1.0, *(largest(x) for x in runs[0] if x is not None))
    for found, wanted in zip(*runs):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert largest(found - wanted) <= 1e-10 * scale


@pytest.mark.parametrize("order", [True, False])
def test_steps_agree_with_forward_in_either_order(order, monkeypatch):
    layer = make("s4")
    text, grids = some_inputs()
    wanted = layer(text, grids)
    force_order(monkeypatch, order)
    found, _ = run_in_pieces(layer, text, grids, [2, 2], 3)
    assert_close(found, wanted, relative=1e-11)


@given(data=st.data(), mode=st.sampled_from(["renormalize", "truncate"]), G=st.integers(1, 9))
def test_a_step_without_gradients_is_the_step_with_them(data, mode, G):
    """It takes fewer calls for the same, grids under the mask included."""
    layer = make("s4", top_k=data.draw(st.none() | st.integers(0, G)), top_k_mode=mode)
    text, grids = some_inputs(B=3, G=G)
    mask = torch.rand(3, G) < 0.7
    mask[0] = False
    grids[~mask] = math.nan
    _, state = layer.prefill(text[:, :4], grids, grid_mask=mask, grid_boxes=torch.rand(3, G, 4))
    wanted, _ = layer.step(text[:, 4], state)
    with torch.no_grad():
        found, _ = layer.step(text[:, 4], state)
    assert wanted.requires_grad
    assert_close(found, wanted, relative=1e-12)


@given(data=st.data(), mode=st.sampled_from(["renormalize", "truncate"]), masked=st.booleans())
def test_few_tokens_without_gradients_are_those_with_them(data, mode, masked):
    """They take fewer calls for the same, in evaluation."""
    layer = make("s4d", top_k=data.draw(st.none() | st.integers(0, 5)), top_k_mode=mode, dropout=0.3).eval()
    text, grids = some_inputs(B=2, T=data.draw(st.sampled_from([6, 16, 17])))
    mask = torch.rand(2, 5) < 0.7 if masked else None
    options = {"grid_mask": mask, "grid_boxes": torch.rand(2, 5, 4), "return_weights": True}
    wanted = layer(text, grids, **options)
    with torch.no_grad():
        found = layer(text, grids, **options)
    assert wanted[0].requires_grad
    for ours, theirs in zip(found, wanted):
        assert_close(ours, theirs, relative=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_without_gradients_is_in_half_precision_what_forward_is(dtype):
    layer, exact = make("s4", dtype), make("s4", torch.float64)
    exact.load_state_dict(layer.state_dict())
    text, grids = some_inputs(dtype=dtype)
    wanted = exact(text.double(), grids.double())[:, 4:]
    whole = layer(text, grids)[:, 4:]
    with torch.no_grad():
        found, _ = run_in_pieces(layer, text, grids, [4], 3)
    assert largest(found[:, 4:].double() - wanted) <= 2 * largest(whole.double() - wanted)


def test_many_grids_keep_their_values_in_the_state_and_few_their_table():
    layer = make()
    for G, name in ((2, "grid.table"), (TEXT_WIDTH, "grid.v"), (17, "grid.v")):
        text, grids = some_inputs(G=G)
        _, state = layer.prefill(text, grids, grid_boxes=torch.rand(2, G, 4))
        grid_names = {key for key in state.tensors if key.startswith("grid.")}
        assert grid_names == {"grid.k", "grid.mask", name, *(["grid.bias"] if name == "grid.table" else [])}


def test_weights_are_returned_by_forward_and_prefill_alike():
    layer = make()
    text, grids = some_inputs()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3] = False
    y, w = layer(text, grids, mask, return_weights=True)
    assert w.shape == (2, 7, 5)
    assert (w[1, 3] == 0).all()
    torch.testing.assert_close(w[mask].sum(-1), torch.ones_like(w[mask].sum(-1)))
    first, state, w_first = layer.prefill(text[:, :4], grids, mask[:, :4], return_weights=True)
    second, _, w_second = layer.prefill(text[:, 4:], text_mask=mask[:, 4:], state=state, return_weights=True)
    assert_close(torch.cat([w_first, w_second], 1), w, relative=1e-12)
    assert_close(torch.cat([first, second], 1), y, relative=1e-11)


def test_top_k_of_at_least_the_kept_grids_is_no_top_k():
    text, grids = some_inputs()
    mask = torch.tensor([[True, True, False, True, False], [False, False, False, True, False]])
    wanted = make(top_k=None)(text, grids, grid_mask=mask)
    for top_k in (3, 5, 50):
        for mode in ("renormalize", "truncate"):
            assert_close(make(top_k=top_k, top_k_mode=mode)(text, grids, grid_mask=mask), wanted, relative=1e-12)


def test_truncated_weights_sum_to_less_than_one():
    text, grids = some_inputs()
    _, w = make(top_k=2, top_k_mode="truncate")(text, grids, return_weights=True)
    assert (w.sum(-1) < 0.999).all()
    _, plain = make(top_k=None)(text, grids, return_weights=True)
    assert (w <= plain + 1e-12).all()


@SSM
def test_a_row_without_grids_has_no_weights_and_finite_gradients(ssm):
    layer = make(ssm)
    text, grids = (x.requires_grad_() for x in some_inputs())
    mask = torch.tensor([[True] * 5, [False] * 5])
    y, w = layer(text, grids, grid_mask=mask, return_weights=True)
    assert (w[1] == 0).all()
    y.square().sum().backward()
    for tensor in (y, text.grad, grids.grad, *(p.grad for p in layer.parameters())):
        assert torch.isfinite(tensor).all()
    assert (grids.grad[1] == 0).all()
    assert largest(text.grad[1]) > 0


@SSM
@pytest.mark.parametrize("mode", ["renormalize", "truncate"])
def test_gradients_are_those_of_finite_differences(ssm, mode):
    layer = make(ssm, top_k_mode=mode)
    text, grids = some_inputs(T=3, G=5)
    text_mask = torch.tensor([[True, False, True], [True, True, False]])
    grid_mask = torch.tensor([[True, True, False, True, True], [False] * 5])
    names = ["gate", "q_proj.weight", "k_proj.weight", "film_in.bias", "norm_in.weight", "positions.box.weight"]
    parameters = [layer.get_parameter(name).detach().requires_grad_() for name in names]

    def run(text, grids, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (text, grids, text_mask, grid_mask))

    leaves = (text.requires_grad_(), grids.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_dropout_follows_torchs_seed_and_stops_in_eval_mode():
    layer = make("s4", dropout=0.4)
    text, grids = some_inputs()
    plain = layer(text, grids)
    layer.train()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(layer(text, grids))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], plain)
    assert torch.equal(layer.eval()(text, grids), plain)


def test_dropout_of_weights_keeps_their_mean():
    layer = make("s4", dropout=0.4, heads=1).train()
    text, grids = some_inputs(B=64, T=100, G=5)
    _, w = layer(text, grids, return_weights=True)
    assert abs(w.sum(-1).mean() - 1) < 0.02
    # Of each pair that the only head keeps, both are dropped with probability 0.4 squared.
    assert abs((w.sum(-1) == 0).double().mean() - 0.16) < 0.02


def test_gradient_checkpointing_sees_the_same_dropout():
    layer = make("s4", dropout=0.4).train()
    text, grids = (x.requires_grad_() for x in some_inputs())
    cotangent = torch.randn(2, 7, TEXT_WIDTH, dtype=torch.float64)
    gradients = []
    for run in (layer, lambda *x: checkpoint(layer, *x, use_reentrant=False)):
        torch.manual_seed(4)
        gradients.append(torch.autograd.grad((run(text, grids) * cotangent).sum(), [text, grids, *layer.parameters()]))
    for found, wanted in zip(*gradients):
        assert torch.equal(found, wanted)


def test_float32_error_is_within_twice_that_of_the_equations():
    layer = make("s4", torch.float32)
    text, grids = some_inputs(B=4, T=40, dtype=torch.float32)
    boxes = torch.rand(4, 5, 4)

    def by_equations(layer, text, grids, boxes):
        return [written_out(layer, text, grids, None, boxes, None)[0]]

    assert_module_within_budget([layer(text, grids, grid_boxes=boxes)], by_equations, layer, [text, grids, boxes])


@pytest.mark.parametrize("G", [1, 2, 5, 17, 65])
def test_any_number_of_standard_grids_is_taken(G):
    layer = make()
    text, grids = some_inputs(G=G)
    y, w = layer(text, grids, return_weights=True)
    assert w.shape == (2, 7, G)
    assert torch.isfinite(y).all()
    found, _ = run_in_pieces(layer, text, grids, [3], 4)
    assert_close(found, y, relative=1e-11)


def test_no_grids_and_no_text_are_taken():
    layer = make(grid_positions=False)
    text, grids = some_inputs()
    y, w = layer(text, grids[:, :0], return_weights=True)
    assert w.shape == (2, 7, 0)
    masked = layer(text, grids, grid_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert_close(y, masked, relative=1e-12)
    assert layer(text[:, :0], grids).shape == (2, 0, TEXT_WIDTH)
    empty, state = layer.prefill(text[:, :0], grids)
    assert empty.shape == (2, 0, TEXT_WIDTH)
    assert_close(layer.prefill(text, state=state)[0], layer(text, grids), relative=1e-11)


def test_the_gate_starts_at_one_half():
    layer = make_connector("cmm_s4d", torch.float32)
    layer.reset_parameters()
    assert layer.gate.tolist() == [0.5]
    assert (layer.norm_in.weight == 1).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_positions_matter_from_the_start_whatever_the_scale_of_the_features(scale):
    """The same feature in five places: keys differ by as much as features differ."""
    layer = make(text_width=64, grid_width=48)
    grids = scale * torch.randn(1, 1, 48, dtype=torch.float64).expand(1, 5, 48)
    placed = layer.encode_grids(grids).tensors["grid.k"].flatten(2)
    spread = placed.std(1).mean() / placed.abs().mean()
    assert 0.2 < spread < 3


def test_weights_do_not_depend_on_the_neighbours_of_a_token():
    """Where a token looks is a function of the token and the image alone."""
    layer = make("s4")
    text, grids = some_inputs()
    _, w = layer(text, grids, return_weights=True)
    _, alone = layer(text[:, 3:4], grids, return_weights=True)
    assert_close(alone, w[:, 3:4], relative=1e-12)


def test_extreme_embeddings_stay_finite():
    layer = make("s4", torch.float32)
    text, grids = some_inputs(dtype=torch.float32)
    for t, g in ((1e4 * text, grids), (text, 1e4 * grids), (0 * text, 0 * grids)):
        t, g = t.detach().requires_grad_(), g.detach().requires_grad_()
        y = layer(t, g)
        y.sum().backward()
        for tensor in (y, t.grad, g.grad):
            assert torch.isfinite(tensor).all()
    assert not math.isnan(largest(y))
