"""Queries of the text so far, two layers, and the start as the identity: equations in NumPy, and what each promises."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from connectors import (
    GRID_WIDTH,
    SSMS,
    TEXT_WIDTH,
    connector_inputs,
    cuts,
    make_connector,
    random_boxes,
    run_in_pieces,
)
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_module_within_budget, largest

from firebolt_vl.cmm import CMMConfig, CrossAttend, CrossModalModulator, Prepend, RoutedConfig, patch_boxes

CHOICES = [
    {"query": query, "layers": layers, "start": start}
    for query, layers, start in itertools.product(("token", "state"), (1, 2), ("norm", "identity"))
]
CHOICE = pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
IDENTITY = {"start": "identity"}


def make(ssm="s4d", dtype=torch.float64, **fields):
    return make_connector(f"cmm_{ssm}", dtype, **fields)


def some_inputs(B=2, T=7, G=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(B, T, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    grids = torch.randn(B, G, GRID_WIDTH, generator=generator, dtype=torch.float64)
    return text.to(dtype), grids.to(dtype)


def closed(layer):
    """The layer as it starts: its gates at zero."""
    for name, parameter in layer.named_parameters():
        if name.endswith("out_gate"):
            parameter.data.zero_()
    return layer


class ByHand:
    """Sections 2, 2d and (4.4) of docs/mathematics.md for one row without positions, in NumPy, token by token."""

    def __init__(self, layer, prefix=""):
        self.config, self.prefix = layer.config, prefix
        self.values = {name: value.detach().numpy() for name, value in layer.state_dict().items()}

    def __getitem__(self, name):
        return self.values[self.prefix + name]

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{self.prefix}{name}.bias" in self.values else y

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]

    def ssm(self, name, u):
        """u [T,D]; (4.1) with S4D's coefficients (4.4), then GELU and the gated linear unit."""
        A = -np.exp(self[f"{name}.kernel.log_A_real"]) + 1j * self[f"{name}.kernel.A_imag"]
        C = self[f"{name}.kernel.C"] @ np.array([1, 1j])
        z = np.exp(np.exp(self[f"{name}.kernel.log_dt"])[:, None] * A)
        h, y = np.zeros_like(z), []
        for u_t in u:
            h = z * h + (z - 1) / A * u_t[:, None]
            y.append(2 * (C * h).sum(-1).real + self[f"{name}.kernel.D"] * u_t)
        half, gate = np.split(self.linear(f"{name}.output", gelu(np.array(y))), 2, -1)
        return half / (1 + np.exp(-gate))

    def weights(self, q, x_v):
        """(2.1) to (2.4), for k = top_k of all G scores, of which no two are equal."""
        heads, size = self.config.heads, self.config.head_dim
        q, k = (x.reshape(-1, heads, size) for x in (self.linear("q_proj", q), self.linear("k_proj", x_v)))
        w = np.zeros((len(q), len(k)))
        for t, head in np.ndindex(len(q), heads):
            scores = k[:, head] @ q[t, head] / math.sqrt(size)
            kept = np.argsort(scores)[-self.config.top_k :]
            e = np.exp(scores[kept] - scores[kept].max())
            w[t, kept] += e / e.sum() / heads
        return w

    def layer(self, text, x_v):
        asked = text + self.ssm("query.ssm", self.norm("query.norm", text)) if self.config.query == "state" else text
        w = self.weights(asked, x_v)
        c, alpha = w @ self.linear("v_proj", x_v), self["gate"]
        gamma, beta = np.split(self.linear("film_in", c), 2, -1)
        y = self.ssm("ssm", self.norm("norm_in", text) * (1 + alpha * gamma) + alpha * beta)
        gamma, beta = np.split(self.linear("film_out", c), 2, -1)
        r = text + y * (1 + alpha * gamma) + alpha * beta
        written = self.norm(
            "norm_out", r + self.linear("ffn.down", gelu(self.linear("ffn.up", self.norm("ffn.norm", r))))
        )
        return (text + self["out_gate"] * written if self.config.start == "identity" else written), w


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@CHOICE
def test_outputs_and_weights_are_those_of_the_equations_in_numpy(choice):
    layer = make(grid_positions=False, **choice)
    text, grids = some_inputs(B=2)
    y, w = layer(text, grids, return_weights=True)
    for row in range(2):
        wanted, wanted_w = ByHand(layer).layer(text[row].numpy(), grids[row].numpy())
        if choice["layers"] == 2:
            wanted, wanted_w = ByHand(layer, "second.").layer(wanted, grids[row].numpy())
        assert_close(w[row], torch.from_numpy(wanted_w), relative=1e-11)
        assert_close(y[row], torch.from_numpy(wanted), relative=1e-10)


@pytest.mark.parametrize("ssm", list(SSMS))
@given(data=st.data(), inputs=connector_inputs(max_tokens=6, max_grids=5), choice=st.sampled_from(CHOICES[1:]))
def test_pieces_and_steps_and_what_is_rolled_back_agree_with_forward(ssm, data, inputs, choice):
    """Over every SSM, with padding on either side and holes."""
    text, grids, sides = inputs
    layer = make(ssm, **choice)
    mask = sides.pop("text_mask")
    more = torch.randn(text.shape[0], 4, TEXT_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    longer = torch.cat([text, more], 1)
    whole = None if mask is None else torch.cat([mask, torch.ones(more.shape[:2], dtype=torch.bool)], 1)
    wanted, w = layer(longer, grids, whole, **sides, return_weights=True)
    found, state = run_in_pieces(layer, text, grids, data.draw(cuts(text.shape[1])), 0, mask, **sides)
    ahead = layer.prefill(torch.randn_like(more), state=state, history=4)[1]
    state, parts, weights = ahead.rollback(4), [found], []
    for piece in more.split(data.draw(st.sampled_from([1, 3, 4])), 1):
        y, state, seen = layer.prefill(piece, state=state, return_weights=True)
        parts, weights = [*parts, y], [*weights, seen]
    scale = max(1.0, largest(wanted))
    assert largest(torch.cat(parts, 1) - wanted) <= 1e-11 * scale
    assert largest(torch.cat(weights, 1) - w[:, text.shape[1] :]) <= 1e-11


@pytest.mark.parametrize("choice", [{"query": "state"}, {"layers": 2}], ids=str)
def test_a_word_looks_elsewhere_after_another_word(choice):
    layer = make(**choice)
    text, grids = some_inputs()
    changed = text.clone()
    changed[:, 2] = changed[:, 2].flip(-1)
    (_, w), (_, other), (_, alone) = (layer(x, grids, return_weights=True) for x in (text, changed, text[:, 3:]))
    assert torch.equal(other[:, :2], w[:, :2])
    assert largest(other[:, 3:] - w[:, 3:]) > 1e-3
    assert largest(alone - w[:, 3:]) > 1e-3


def test_two_layers_are_one_after_the_other():
    """Each with all parameters of its own, positions of the grids among them."""
    both = make(layers=2, query="state")
    text, grids = some_inputs(G=6)
    sides = {"grid_boxes": random_boxes(2, 6, generator=torch.Generator().manual_seed(1))}
    values = both.state_dict()
    layers = [make(query="state", seed=5), make(query="state", seed=6)]
    layers[0].load_state_dict({name: value for name, value in values.items() if not name.startswith("second.")})
    layers[1].load_state_dict(both.second.state_dict())
    wanted, w = layers[1](layers[0](text, grids, **sides), grids, return_weights=True, **sides)
    y, found = both(text, grids, return_weights=True, **sides)
    assert torch.equal(y, wanted)
    assert torch.equal(found, w)


def test_keys_of_a_state_dict_are_those_of_before_and_what_is_chosen():
    plain = set(make().state_dict())
    query = {f"query.{name}" for name in ("norm.weight", "norm.bias")}
    query |= {f"query.{name}" for name in plain if name.startswith("ssm.")}
    assert "second" not in " ".join(plain)
    assert set(make(query="state").state_dict()) == plain | query
    assert set(make(start="identity").state_dict()) == plain | {"out_gate"}
    assert set(make(layers=2).state_dict()) == plain | {f"second.{name}" for name in plain}


def test_a_state_of_another_layer_is_refused():
    text, grids = some_inputs()
    _, of_one = make().prefill(text, grids)
    with pytest.raises(ValueError, match=r"ModulatorSide: state has \[\] of the grids; expected \['k', 'mask'\]"):
        make(layers=2).step(text[:, 0], of_one)
    with pytest.raises(ValueError, match=r"ModulatorSide: state has \['embeddings', 'mask'\] of the grids"):
        make().step(text[:, 0], make_connector("prepend").encode_grids(grids))


@pytest.mark.any_cpu
@torch.no_grad()
def test_a_step_is_one_graph_for_torch_compile():
    layer = make("s4d", torch.float32, query="state", layers=2)
    text, grids = some_inputs(dtype=torch.float32)
    _, state = layer.prefill(text[:, :5], grids)
    step = torch.compile(layer.step, backend="eager", fullgraph=True)
    assert_close(step(text[:, 5], state)[0], layer.step(text[:, 5], state)[0], relative=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice["start"] == "identity"], ids=str)
def test_the_start_is_the_identity_to_the_bit(choice, dtype):
    layer = CrossModalModulator(CMMConfig(TEXT_WIDTH, GRID_WIDTH, heads=2, head_dim=5, state_size=8, **choice))
    layer.reset_parameters()
    layer = layer.to(dtype)  # in training mode, with dropout
    text, grids = some_inputs(dtype=dtype)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :2] = False
    assert torch.equal(layer(text, grids), text)
    assert torch.equal(layer(text, grids, mask), text.masked_fill(~mask[..., None], 0))
    with torch.no_grad():
        pieces, _ = run_in_pieces(layer.eval(), text, grids, [2, 3], 2)
    assert torch.equal(pieces, text)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_gate_learns_at_once_and_all_else_after_a_step(layers):
    layer = closed(make(query="state", layers=layers, **IDENTITY))
    text, grids = some_inputs()
    text.requires_grad_()
    cotangent = torch.randn(2, 7, TEXT_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"grid_images": torch.arange(5).expand(2, 5), "grid_boxes": torch.rand(2, 5, 4)}
    step = torch.optim.SGD(layer.parameters(), lr=0.1)
    for closed_yet in (True, False):
        step.zero_grad()
        y = layer(text, grids, **options)
        y.backward(cotangent)
        for name, parameter in layer.named_parameters():
            moves = largest(parameter.grad) > 0
            assert moves is (name.endswith("out_gate") or not closed_yet), name
        step.step()
        if closed_yet:
            assert_close(text.grad, cotangent)


def test_the_gradient_of_the_gate_is_how_far_the_output_would_go_along():
    layer = closed(make(grid_positions=False, **IDENTITY))
    text, grids = some_inputs(B=1)
    cotangent = torch.randn(1, 7, TEXT_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer(text, grids).backward(cotangent)
    written = copy.deepcopy(layer)
    written.out_gate.data.fill_(1)
    wanted = written(text, grids) - text
    assert_close(layer.out_gate.grad, (cotangent * wanted).sum((0, 1)), relative=1e-11)


def test_gradients_are_those_of_finite_differences():
    layer = make(query="state", layers=2, **IDENTITY)
    text, grids = some_inputs(T=3)
    text_mask = torch.tensor([[True, False, True], [True, True, False]])
    names = ["out_gate", "query.norm.weight", "query.ssm.kernel.C", "second.q_proj.weight", "second.gate"]
    parameters = [layer.get_parameter(name).detach().requires_grad_() for name in names]

    def run(text, grids, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (text, grids, text_mask))

    leaves = (text.requires_grad_(), grids.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_float32_error_is_within_twice_that_of_the_equations():
    layer = make(dtype=torch.float32, query="state", top_k=None, grid_positions=False, **IDENTITY)
    text, grids = some_inputs(T=30, dtype=torch.float32)

    def by_equations(layer, text, grids):
        config = layer.config
        heads = (config.heads, config.head_dim)
        asked = text + layer.query.ssm(layer.query.norm(text))
        q, k = layer.q_proj(asked).unflatten(-1, heads), layer.k_proj(grids).unflatten(-1, heads)
        w = torch.softmax(torch.einsum("bthd,bghd->bhtg", q, k) / math.sqrt(config.head_dim), -1).mean(1)
        c = w @ layer.v_proj(grids)
        gamma, beta = layer.film_in(c).chunk(2, -1)
        y = layer.ssm(layer.norm_in(text) * (1 + layer.gate * gamma) + layer.gate * beta)
        gamma, beta = layer.film_out(c).chunk(2, -1)
        r = text + y * (1 + layer.gate * gamma) + layer.gate * beta
        return [text + layer.out_gate * layer.norm_out(r + layer.ffn(r))]

    assert_module_within_budget([layer(text, grids)], by_equations, layer, [text, grids])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": "ssm"}, ValueError, "query is 'ssm'; expected one of token, state"),
        ({"query": None}, ValueError, "query is None; expected one of token, state"),
        ({"layers": 0}, ValueError, "layers is 0; expected at least 1"),
        ({"layers": 3}, ValueError, "layers is 3; expected at most 2"),
        ({"layers": True}, TypeError, "layers is True; expected an integer"),
        ({"layers": 2.0}, TypeError, "layers is 2.0; expected an integer"),
        ({"start": "zero"}, ValueError, "start is 'zero'; expected one of norm, identity"),
    ],
    ids=str,
)
def test_errors_of_the_configuration_name_the_field(change, error, words):
    with pytest.raises(error, match=words):
        CMMConfig(8, 6, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": "state"}, "query is 'state'; expected 'token', the default"),
        ({"layers": 2}, "layers is 2; expected 1, the default"),
        ({"start": "identity"}, "start is 'identity'; expected 'norm', the default"),
    ],
    ids=str,
)
def test_other_connectors_refuse_what_they_would_not_do(change, words):
    for connector in (CrossAttend, Prepend):
        with pytest.raises(ValueError, match=f"{connector.__name__}: {words}"):
            connector(CMMConfig(8, 6, **change))
    with pytest.raises(ValueError, match=f"RoutedConfig: {words}"):
        RoutedConfig(8, 6, **change)


def test_patches_of_a_tower_get_their_boxes_from_a_helper_that_the_error_names():
    layer = make()
    text, patches = some_inputs(G=196)
    with pytest.raises(ValueError, match=r"with 196 grids; .* firebolt_vl\.cmm\.patch_boxes\(rows, columns\)"):
        layer(text, patches)
    boxes = patch_boxes(14)
    assert boxes[[0, 15, -1]].mul(14).round().tolist() == [[0, 0, 1, 1], [1, 1, 2, 2], [13, 13, 14, 14]]
    _, w = layer(text, patches, grid_boxes=boxes.expand(2, -1, -1), return_weights=True)
    assert w.shape == (2, 7, 196)
    assert patch_boxes(2, 3).tolist()[1] == pytest.approx([0, 1 / 3, 0.5, 2 / 3])
    with pytest.raises(ValueError, match="patch_boxes: rows is -1; expected at least 0"):
        patch_boxes(-1)
    with pytest.raises(TypeError, match=r"patch_boxes: columns is 3\.5; expected an integer"):
        patch_boxes(3, 3.5)
