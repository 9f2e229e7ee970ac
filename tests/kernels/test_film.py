"""grounded_film and film_residual: modulation from the grid-side table."""

import math
from functools import partial

import golden
import pytest
import torch
from correlations import layouts, loop_weights, masks, sizes
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from sequences import assert_op_within_budget

from firebolt_vl.kernels import correlation_context, film_residual, grounded_film, reference

GROUNDED = pytest.mark.parametrize("op", [grounded_film, reference.grounded_film], ids=["public", "reference"])
RESIDUAL = pytest.mark.parametrize("op", [film_residual, reference.film_residual], ids=["public", "reference"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


def grounded_inputs(B=2, T=4, G=6, H=3, D_h=5, D=7, dtype=torch.float64):
    """x, q, k, table, bias, gate, ln_weight, ln_bias."""
    shapes = [(B, T, D), (B, T, H, D_h), (B, G, H, D_h), (B, G, 2 * D), (2 * D,), (), (D,), (D,)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def residual_inputs(B=2, T=4, G=6, D=7, dtype=torch.float64, norm=True):
    """y, x, w, table, bias, gate and, with `norm`, ln_weight, ln_bias."""
    shapes = [(B, T, D), (B, T, D), (B, T, G), (B, G, 2 * D), (2 * D,), (1,)] + [(D,), (D,)] * norm
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


@GROUNDED
@given(data=st.data(), size=sizes(), renormalize=st.booleans())
def test_grounded_film_is_the_equation_written_out(op, data, size, renormalize):
    B, T, G, H, D_h, D = size
    q, k = data.draw(layouts(B, T, H, D_h)), data.draw(layouts(B, G, H, D_h))
    x, table = data.draw(layouts(B, T, D)), data.draw(layouts(B, G, 2 * D))
    bias, ln_weight, ln_bias = (data.draw(layouts(n)) for n in (2 * D, D, D))
    gate = data.draw(layouts(1))
    top_k = data.draw(st.none() | st.integers(0, G + 1))
    grid_mask, text_mask = data.draw(masks(B, G)), data.draw(masks(B, T))
    options = {"grid_mask": grid_mask, "text_mask": text_mask, "renormalize": renormalize}
    x_f, w = op(x, q, k, table, bias, gate, ln_weight, ln_bias, top_k=top_k, **options)
    wanted_w = loop_weights(q, k, top_k, **options).mean(1)
    film = wanted_w @ table + bias
    wanted = layer_norm(x, ln_weight, ln_bias) * (1 + gate * film[..., :D]) + gate * film[..., D:]
    if text_mask is not None:
        wanted[~text_mask] = 0
    torch.testing.assert_close(w, wanted_w, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(x_f, wanted, rtol=1e-10, atol=1e-11)


@RESIDUAL
@given(data=st.data(), size=sizes(), norm=st.booleans())
def test_film_residual_is_the_equation_written_out(op, data, size, norm):
    B, T, G, _, _, D = size
    y, x, w = data.draw(layouts(B, T, D)), data.draw(layouts(B, T, D)), data.draw(layouts(B, T, G))
    table, bias = data.draw(layouts(B, G, 2 * D)), data.draw(layouts(2 * D))
    gate, ln_weight, ln_bias = (data.draw(layouts(n)) for n in (1, D, D))
    film = w @ table + bias
    wanted = x + y * (1 + gate * film[..., :D]) + gate * film[..., D:]
    if norm:
        r, normed = op(y, x, w, table, bias, gate, ln_weight, ln_bias)
        torch.testing.assert_close(normed, layer_norm(wanted, ln_weight, ln_bias), rtol=1e-10, atol=1e-11)
    else:
        r = op(y, x, w, table, bias, gate)
    torch.testing.assert_close(r, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in golden.names("cmm_upstream_") for case in golden.case_names(name)]
)
@GROUNDED
def test_grounded_film_gives_the_originals_ssm_input(op, name, case):
    vectors = golden.load(name)
    param = vectors.under("param")
    x, x_vision = vectors[f"{case}.in.x_text"], vectors[f"{case}.in.x_vision"]
    masked = f"{case}.in.text_mask" in vectors
    text_mask = vectors[f"{case}.in.text_mask"] if masked else None
    grid_mask = vectors[f"{case}.in.vision_mask"] if masked else None
    x_f, _ = op(
        x,
        (x @ param["q_proj.weight"].mT).unflatten(-1, (4, 8)),
        (x_vision @ param["k_proj.weight"].mT).unflatten(-1, (4, 8)),
        x_vision @ param["v_proj.weight"].mT @ param["film_in.weight"].mT,
        param["film_in.bias"],
        param["mod_gate"],
        param["norm_in.weight"],
        param["norm_in.bias"],
        top_k=vectors.metadata["topk"],
        grid_mask=grid_mask,
        text_mask=text_mask,
    )
    wanted = vectors[f"{case}.mid.ssm_in"]
    if masked:
        wanted[~text_mask] = 0
    assert_close(x_f, wanted, relative=1e-12)


@pytest.mark.parametrize("G", [3, 11])
def test_film_from_the_table_is_film_from_the_context(G):
    """W c + b = w (v W^T) + b: value and gradients, weights that do not sum to 1 included."""
    x, q, k, _, bias, gate, ln_weight, ln_bias = (t.requires_grad_() for t in grounded_inputs(G=G))
    v, W = torch.randn(2, G, 7, dtype=torch.float64).requires_grad_(), torch.randn(14, 7, dtype=torch.float64)
    options = {"grid_mask": torch.tensor([[True] * G, [False] * G]), "renormalize": False}
    x_f, _ = grounded_film(x, q, k, v @ W.mT, bias, gate, ln_weight, ln_bias, top_k=2, **options)
    c, _ = correlation_context(q, k, v, 2, **options)
    gamma, beta = (c @ W.mT + bias).chunk(2, -1)
    wanted = layer_norm(x, ln_weight, ln_bias) * (1 + gate * gamma) + gate * beta
    assert_close(x_f, wanted, relative=1e-12)
    cotangent, leaves = torch.randn_like(x_f), (x, q, k, v, bias, gate, ln_weight, ln_bias)
    for found, gradient in zip(
        torch.autograd.grad(x_f, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent)
    ):
        assert_close(found, gradient, relative=1e-10)


@GROUNDED
@pytest.mark.parametrize("top_k", [0, 2])
def test_gradients_of_grounded_film_are_those_of_finite_differences(op, top_k):
    leaves = [t.requires_grad_() for t in grounded_inputs(T=3, G=4, H=2, D_h=2, D=4)]
    grid_mask = torch.tensor([[True, True, False, True], [False] * 4])
    text_mask = torch.tensor([[True, False, True], [True, True, False]])

    def run(*inputs):
        return op(*inputs, top_k=top_k, grid_mask=grid_mask, text_mask=text_mask, dropout_p=0.3, seed=torch.tensor(1))

    assert torch.autograd.gradcheck(run, leaves)


@RESIDUAL
@pytest.mark.parametrize("norm", [True, False])
def test_gradients_of_film_residual_are_those_of_finite_differences(op, norm):
    leaves = [t.requires_grad_() for t in residual_inputs(T=3, G=4, D=4, norm=norm)]
    assert torch.autograd.gradcheck(op, leaves)


@GROUNDED
def test_nothing_under_a_mask_is_read(op):
    grid_mask = torch.tensor([[True, False, True, True, True, False], [False] * 6])
    text_mask = torch.tensor([[True, False, True, True], [True, True, True, False]])

    def run(fill):
        torch.manual_seed(1)
        x, q, k, table, *parameters = grounded_inputs()
        x[~text_mask], q[~text_mask], k[~grid_mask], table[~grid_mask] = fill, fill, fill, fill
        leaves = [t.requires_grad_() for t in (x, q, k, table, *parameters)]
        x_f, w = op(*leaves, top_k=2, grid_mask=grid_mask, text_mask=text_mask)
        (x_f * torch.randn_like(x_f)).sum().backward()
        return [x_f, w, *(leaf.grad for leaf in leaves)]

    for poisoned, clean in zip(run(math.nan), run(0.0)):
        assert torch.equal(poisoned, clean)
    x_f, _, dx, dq, dk, dtable, *_ = run(math.nan)
    assert (x_f[~text_mask] == 0).all()
    assert (x_f[1, :3] != 0).all(), "a token that sees no grid is still modulated by the bias"
    assert (dx[~text_mask] == 0).all()
    for gradient in (dq[1], dk[1], dtable[1]):
        assert (gradient == 0).all()


@HALVES
@pytest.mark.parametrize("G", [5, 70])
def test_error_of_grounded_film_is_within_twice_the_references_in_the_same_dtype(dtype, G):
    inputs = grounded_inputs(T=60, G=G, D_h=16, D=32)
    check_budget(grounded_film, reference.grounded_film, inputs, dtype, top_k=4)


@HALVES
@pytest.mark.parametrize("norm", [True, False])
def test_error_of_film_residual_is_within_twice_the_references_in_the_same_dtype(dtype, norm):
    check_budget(film_residual, reference.film_residual, residual_inputs(T=60, D=32, norm=norm), dtype)


def check_budget(op, definition, inputs, dtype, **options):
    """Outputs and gradients."""
    named = partial(op, **options), partial(definition, **options)
    assert_op_within_budget(*named, [tensor.to(dtype) for tensor in inputs])


def test_gradients_may_arrive_expanded():
    """A sum hands back a gradient of stride 0."""
    leaves = [t.requires_grad_() for t in grounded_inputs()]
    x_f, _ = grounded_film(*leaves, top_k=4)
    expanded = torch.autograd.grad(x_f.sum(), leaves, retain_graph=True)
    for found, wanted in zip(expanded, torch.autograd.grad(x_f, leaves, torch.ones_like(x_f))):
        assert torch.equal(found, wanted)


def test_autocast_gives_its_dtype_and_keeps_the_residual_stream():
    x, *rest = grounded_inputs(dtype=torch.float32)
    y, stream, w, table, *parameters = residual_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x_f, weights = grounded_film(x, *rest, top_k=4)
        r, normed = film_residual(y.bfloat16(), stream, w, table, *parameters)
    assert (x_f.dtype, weights.dtype, r.dtype, normed.dtype) == (torch.bfloat16,) * 2 + (torch.float32, torch.bfloat16)
    plain, _ = grounded_film(x, *rest, top_k=4)
    torch.testing.assert_close(x_f.float(), plain, rtol=0.03, atol=0.03 * plain.abs().max().item())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.randn(2, 3, 7)}, ValueError, r"x has shape \[2, 3, 7\]; expected \[B T D\] with B = 2, T = 4"),
        ({"table": torch.randn(2, 6, 7)}, ValueError, r"table has shape \[2, 6, 7\]; expected \[B G 14\]"),
        ({"table": torch.randn(2, 5, 14)}, ValueError, r"table has shape \[2, 5, 14\]"),
        ({"bias": torch.randn(7)}, ValueError, r"bias has shape \[7\]; expected \[14\]"),
        ({"gate": torch.randn(7)}, ValueError, r"gate has shape \[7\]; expected one element"),
        ({"ln_weight": torch.randn(14)}, ValueError, r"ln_weight has shape \[14\]; expected \[7\]"),
        ({"table": None}, TypeError, "table is None; expected a tensor"),
        ({"x": torch.ones(2, 4, 7, dtype=torch.int32)}, TypeError, "x is int32; expected one of float32"),
    ],
)
def test_argument_errors_of_grounded_film_name_the_argument(change, error, words):
    names = ("x", "q", "k", "table", "bias", "gate", "ln_weight", "ln_bias")
    with pytest.raises(error, match=f"grounded_film: {words}"):
        grounded_film(**(dict(zip(names, grounded_inputs(dtype=torch.float32))) | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"y": torch.randn(2, 3, 7)}, ValueError, r"x has shape \[2, 4, 7\]; expected \[B T D\] with B = 2, T = 3"),
        ({"w": torch.randn(2, 4, 5)}, ValueError, r"table has shape \[2, 6, 14\]; expected \[B G two_D\] with .*G = 5"),
        ({"w": None}, TypeError, "w is None; expected a tensor"),
        ({"ln_bias": None}, ValueError, "ln_bias is None; expected both"),
        ({"w": torch.ones(2, 4, 6, dtype=torch.int64)}, TypeError, "w is int64"),
    ],
)
def test_argument_errors_of_film_residual_name_the_argument(change, error, words):
    names = ("y", "x", "w", "table", "bias", "gate", "ln_weight", "ln_bias")
    with pytest.raises(error, match=f"film_residual: {words}"):
        film_residual(**(dict(zip(names, residual_inputs(dtype=torch.float32))) | change))
