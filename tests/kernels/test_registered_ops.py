"""The Triton ops as PyTorch sees them: schemas, fake tensors, autograd, torch.compile, autocast."""

import importlib

import pytest
import torch
from triton_kernels import DEVICE, MARKS

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.kernels import (
    cauchy,
    correlation_context,
    diagonal_scan,
    fft_conv,
    film_residual,
    gated_scan,
    grounded_film,
    selective_scan,
    use_implementation,
    vandermonde,
)

pytestmark = MARKS
# By its name: as an attribute of the package, `fft_conv` is the function.
convolution = importlib.import_module("firebolt_vl.kernels.fft_conv.op")


def tensors(*shapes, dtype=torch.float32):
    return [torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_() for shape in shapes]


def calls(G=5, dtype=torch.float32):
    """name -> (registered op, its arguments)."""
    B, T, H, D_h, D = 2, 6, 2, 4, 8
    q, k, v = tensors((B, T, H, D_h), (B, G, H, D_h), (B, G, D), dtype=dtype)
    x, y, table = tensors((B, T, D), (B, T, D), (B, G, 2 * D), dtype=dtype)
    (w,) = tensors((B, T, G), dtype=dtype)
    bias, gate, ln_weight, ln_bias = tensors((2 * D,), (1,), (D,), (D,))
    options = (3, torch.rand(B, G, device=DEVICE) < 0.8, torch.rand(B, T, device=DEVICE) < 0.8, True, 0.2)
    seed = torch.tensor(3, device=DEVICE)
    (c,) = tensors((3, 5), dtype=torch.complex64)
    log_z = torch.complex(-torch.rand(3, 5, device=DEVICE), torch.randn(3, 5, device=DEVICE)).requires_grad_()
    u, taps, gates, spectrum = convolution_tensors(dtype)
    (products,) = tensors((3, 2))
    borders = torch.tensor([0, 4, 4, 9], device=DEVICE)
    ops = torch.ops.firebolt_vl
    return {
        "correlation_context": (ops.correlation_context, (q, k, v, *options, seed)),
        "grounded_film": (
            ops.grounded_film,
            (x, q, k, table, bias, gate, ln_weight, ln_bias, 1e-5, True, *options, seed),
        ),
        "film_residual": (ops.film_residual, (y, x, w, table, bias, gate)),
        "film_residual_norm": (ops.film_residual_norm, (y, x, w, table, bias, gate, ln_weight, ln_bias, 1e-5)),
        "vandermonde": (ops.vandermonde, (c, log_z, 37)),
        "cauchy": (ops.cauchy, (*tensors((3, 2, 5), (7,), dtype=torch.complex64), log_z)),
        "fft_conv": (ops.fft_conv, (u, taps, bias[:3], gates, None, False)),
        "fft_conv of packed texts": (ops.fft_conv, (u[:1], taps, None, None, borders, False)),
        "fft_conv with products": (ops.fft_conv, (u, taps, bias[:3], gates, None, False, products)),
        "fft_conv by a spectrum": (ops.fft_conv, (u, spectrum, bias[:3], gates, None, False)),
        **scan_calls(dtype),
        "selective_scan": (ops.selective_scan, selective_scan_arguments(dtype)),
        **gated_scan_calls(dtype),
    }


def scan_calls(dtype=torch.float32):
    D, N = 3, 4
    z = (0.5 * torch.randn(D, N, dtype=torch.complex64, device=DEVICE)).requires_grad_()
    b, c, h0 = tensors((D, N), (D, N), (2, D, N), dtype=torch.complex64)
    (u, row), (d_skip,) = tensors((2, D, 20), (1, D, 20), dtype=dtype), tensors((D,))
    borders = torch.tensor([0, 5, 20], device=DEVICE)
    op = torch.ops.firebolt_vl.diagonal_scan
    return {
        "diagonal_scan": (op, (u, z, b, c, d_skip, h0, None)),
        "diagonal_scan packed": (op, (row, z, b, c, None, h0, borders)),
        "diagonal_scan step": (op, (u[..., :1], z, b, c, d_skip, None, None)),
    }


def gated_scan_calls(dtype=torch.float32):
    a, b, row = tensors((2, 20, 3), (2, 20, 3), (1, 9, 3), dtype=dtype)
    a, state = a.detach().sigmoid().requires_grad_(), *tensors((2, 3))
    borders = torch.tensor([0, 5, 9], device=DEVICE)
    op = torch.ops.firebolt_vl.gated_scan
    return {
        "gated_scan": (op, (a, b, state, None, True)),
        "gated_scan packed": (op, (a[:1, :9].detach().requires_grad_(), row, None, borders, True)),
        "gated_scan step": (op, (a.detach()[:, :1], b.detach()[:, :1], state.detach(), None, False)),
    }


def convolution_tensors(dtype=torch.float32):
    """u, k, gate and a spectrum."""
    u, gate = tensors((2, 3, 9), (2, 3, 9), dtype=dtype)
    return u, *tensors((3, 5)), gate, *tensors((3, 257), dtype=torch.complex64)


def selective_scan_arguments(dtype=torch.float32, L=6):
    """With channels last, as after a linear map, groups for B, a constant C, and two texts in a row."""
    u, delta, z = (x.detach().mT.requires_grad_() for x in tensors(*[(1, L, 4)] * 3, dtype=dtype))
    A, C, D, delta_bias, B, state = tensors((4, 3), (4, 3), (4,), (4,), (1, 2, 3, L), (2, 4, 3), dtype=dtype)
    A = -A.detach().abs()  # states that grow would overflow
    borders = torch.tensor([0, L // 3, L], device=DEVICE)
    return u, delta, A.requires_grad_(), B, C, D, z, delta_bias, True, state, borders, True


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", calls())
def test_opcheck_passes(name):
    op, arguments = calls()[name]
    torch.library.opcheck(op, arguments)


def check_one_graph(run, arguments, leaves=None):
    """Compiled without a break, `run` gives what it gives, and the same gradients of the leaves (None: of all)."""
    leaves = arguments if leaves is None else leaves
    with use_implementation("triton"):
        found, wanted = torch.compile(run, fullgraph=True, backend="aot_eager")(*arguments), run(*arguments)
        torch.testing.assert_close(found, wanted)
        cotangent = torch.randn_like(wanted)
        for ours, theirs in zip(*(torch.autograd.grad(outputs, leaves, cotangent) for outputs in (found, wanted))):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_an_op_of_complex_numbers_compiles_into_one_graph(name):
    op, (first, *rest) = {"vandermonde": vandermonde, "cauchy": cauchy}[name], calls()[name][1]
    leaves = [x for x in (first, *rest) if isinstance(x, torch.Tensor)]

    def run(first, *rest):
        return op(2 * first.transpose(0, -2), *rest[:-1], rest[-1].conj() if name == "cauchy" else rest[-1])

    check_one_graph(run, (first, *rest), leaves)


ON_A_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="on a CPU the values of borders are checked")


@pytest.mark.any_cpu
@pytest.mark.parametrize("form", ["toeplitz", pytest.param("packed", marks=ON_A_GPU), "monarch", "vendor"])
def test_a_convolution_compiles_into_one_graph(form, monkeypatch):
    monkeypatch.setattr(convolution, "choose_algorithm", lambda *_, **__: form)
    u, k, gate, _ = convolution_tensors()
    leaves = [u, k, gate]

    def run(u, k, gate):
        if form == "packed":
            u, gate, cu_seqlens = u[:1], gate[:1], torch.tensor([0, 4, 9], device=DEVICE)
            return fft_conv(2 * u, k, gate=gate, cu_seqlens=cu_seqlens)
        return fft_conv(2 * u.mT.contiguous().mT, k, gate=gate)

    check_one_graph(run, leaves)


@pytest.mark.any_cpu
@pytest.mark.parametrize("L", [1, 20])
def test_a_scan_compiles_into_one_graph(L):
    u, *rest, _ = scan_calls()["diagonal_scan"][1]
    leaves = [u, *rest]

    def run(u, z, b, c, d_skip, h0):
        y, last = diagonal_scan(2 * u[..., :L], z, b.conj(), c, d_skip, h0)
        return torch.cat([y.flatten(), torch.view_as_real(last).flatten()])

    check_one_graph(run, leaves)


@pytest.mark.any_cpu
def test_the_selective_scan_compiles_into_one_graph_for_every_length():
    """Of the first length a graph is made, of the second one for any other."""
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "initial_state")

    def run(arguments):
        return selective_scan(**arguments, return_last_state=True)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for L in (5, 18, 35):
        arguments = dict(zip(names, selective_scan_arguments(L=L)))
        arguments["initial_state"] = arguments["initial_state"][:1].detach().requires_grad_()
        leaves = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
        with use_implementation("triton"):
            if L == 35:
                torch.compiler.set_stance("fail_on_recompile")
            found, wanted = compiled(arguments), run(arguments)
            torch.compiler.set_stance("default")
            torch.testing.assert_close(found, wanted)
            cotangents = [torch.randn_like(x) for x in wanted]
            for ours, theirs in zip(*(torch.autograd.grad(outputs, leaves, cotangents) for outputs in (found, wanted))):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.any_cpu
def test_the_gated_scan_compiles_into_one_graph_for_every_length():
    def run(a, b, state):
        return gated_scan(a.sigmoid(), 2 * b, state)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for T in (5, 18, 35):
        leaves = tensors((2, T, 3), (2, T, 3), (2, 3))
        with use_implementation("triton"):
            if T == 35:
                torch.compiler.set_stance("fail_on_recompile")
            found, wanted = compiled(*leaves), run(*leaves)
            torch.compiler.set_stance("default")
            torch.testing.assert_close(found, wanted)
            cotangents = [torch.randn_like(x) for x in wanted]
            for ours, theirs in zip(*(torch.autograd.grad(outputs, leaves, cotangents) for outputs in (found, wanted))):
                torch.testing.assert_close(ours, theirs)


def layer(**options):
    torch.manual_seed(0)
    config = CMMConfig(text_width=16, grid_width=12, heads=2, head_dim=4, top_k=3, state_size=4, dropout=0.0, **options)
    return CrossModalModulator(config).to(DEVICE)


@pytest.mark.any_cpu
@pytest.mark.parametrize("G", [5, 17])  # from the table, and, with 6 tokens, from the context
def test_the_modulator_compiles_into_one_graph(G):
    cmm = layer(ssm="s4d")
    boxes = torch.rand(2, G, 4, device=DEVICE).sort(-1).values
    text, grids = tensors((2, 6, 16), (2, G, 12))
    with use_implementation("triton"):
        wanted = cmm(text, grids, grid_boxes=boxes)
        compiled = torch.compile(cmm, fullgraph=True, backend="aot_eager")
        found = compiled(text, grids, grid_boxes=boxes)
        torch.testing.assert_close(found, wanted)
        leaves = [text, grids, *cmm.parameters()]
        cotangent = torch.randn_like(wanted)
        for ours, theirs in zip(
            torch.autograd.grad(found, leaves, cotangent, allow_unused=True),
            torch.autograd.grad(wanted, leaves, cotangent, allow_unused=True),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_autocast_gives_its_dtype_and_keeps_statistics_and_the_residual_stream_in_float32():
    *_, q, k, v = (x.detach() for x in calls()["correlation_context"][1][:3])
    x, y, table = tensors((2, 6, 8), (2, 6, 8), (2, 5, 16))
    w, bias, gate, ln_weight, ln_bias = tensors((2, 6, 5), (16,), (1,), (8,), (8,))
    with use_implementation("triton"), torch.autocast(DEVICE, torch.float16):
        c, weights = correlation_context(q, k, v, 3)
        x_f, _ = grounded_film(x, q, k, table, bias, gate, ln_weight, ln_bias, top_k=3)
        r, normed = film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias)
        layer = (bias, gate, ln_weight, ln_bias, 1e-5, False)
        statistics = torch.ops.firebolt_vl.grounded_film(
            *(t.half() for t in (x, q, k, table)), *layer, 3, None, None, True, 0.0, None
        )[2]
    assert {t.dtype for t in (c, weights, x_f, normed)} == {torch.float16}
    assert (r.dtype, statistics.dtype) == (torch.float32, torch.float32)
    (x_f.float().sum() + normed.float().sum()).backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, y, table, bias, gate, ln_weight, ln_bias))


def test_a_second_derivative_is_refused_in_words():
    q, k, v = calls()["correlation_context"][1][:3]
    with use_implementation("triton"):
        c, _ = correlation_context(q, k, v, 3)
    (dq,) = torch.autograd.grad(c.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="correlation_context_backward"):
        torch.autograd.grad(dq.sum(), q)


def test_float64_and_empty_tensors_go_by_pytorch():
    q, k, v = (x.detach() for x in calls()["correlation_context"][1][:3])
    with use_implementation("triton"):
        c, _ = correlation_context(q.double(), k.double(), v.double(), 3)
        empty, _ = correlation_context(q[:, :0], k, v, 3)
        none, w = correlation_context(q, k[:, :0], v[:, :0], 3)
    assert c.dtype == torch.float64
    assert (empty.shape, none.shape, w.shape) == ((2, 0, 8), (2, 6, 8), (2, 6, 0))
