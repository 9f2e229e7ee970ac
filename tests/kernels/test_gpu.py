"""What only a GPU can show of the kernels (`make test-gpu`): capture into a graph, inductor, memory and races."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from convolutions import by_position, shapes, with_products
from selective_scans import in_order
from selective_scans import inputs as scan_inputs
from triton_kernels import by_triton, check_against_definition

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.kernels import (
    correlation_context,
    diagonal_scan,
    fft_conv,
    film_residual,
    gated_scan,
    grounded_film,
    reference,
    replay,
    selective_scan,
    selective_state_update,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="make test-gpu, on a GPU"
    ),
]
SIZES = {"B": 2, "T": 130, "G": 5, "H": 4, "DH": 32, "D": 256}


def cases(G=5, dtype=torch.bfloat16):
    B, T, H, DH, D = (SIZES[name] for name in ("B", "T", "H", "DH", "D"))

    def made(*shapes):
        return [torch.randn(shape).to(dtype) for shape in shapes]

    q, k, v = made((B, T, H, DH), (B, G, H, DH), (B, G, D))
    x, y, w, table = made((B, T, D), (B, T, D), (B, T, G), (B, G, 2 * D))
    vectors = made((2 * D,), (1,), (D,), (D,))
    dx, dw = torch.randn(B, T, D), torch.randn(B, T, G)
    return {
        "correlation_context": (correlation_context, [q, k, v], [dx, dw]),
        "grounded_film": (grounded_film, [x, q, k, table, *vectors], [dx, dw]),
        "film_residual": (film_residual, [y, x, w, table, *vectors], [dx, dx]),
    }


@pytest.mark.parametrize("name", ["correlation_context", "grounded_film", "film_residual"])
@pytest.mark.parametrize("G", [1, 5, 17, 64, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sizes_of_real_models_are_within_the_budget(name, G, dtype):
    torch.manual_seed(0)
    op, tensors, cotangents = cases(G, dtype)[name]
    check_against_definition(op, tensors, cotangents)


@pytest.mark.parametrize("name", ["correlation_context", "grounded_film", "film_residual"])
def test_ten_runs_are_equal_bit_for_bit(name):
    op, tensors, cotangents = cases()[name]
    first = by_triton(op, tensors, cotangents)
    for _ in range(9):
        for again, once in zip(by_triton(op, tensors, cotangents), first):
            assert torch.equal(again, once)


@pytest.mark.parametrize("name", ["correlation_context", "grounded_film", "film_residual"])
def test_a_call_done_again_has_the_bits_of_the_one_that_is_written(name):
    torch.manual_seed(0)
    op, tensors, _ = cases()[name]
    given = [x.cuda() for x in tensors]
    others = [x.flip(0).contiguous() for x in given]
    with replay.off():
        written = [*op(*given), *op(*others)]
    op(*given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for stream in (torch.cuda.current_stream(), side):
        with torch.cuda.stream(stream):
            again = [*op(*given), *op(*others)]
        stream.synchronize()
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(again, written, strict=True))


def scan_case(B, D, L, N, dtype, rows=None):
    """u, z, b, c, d_skip, h0 of diagonal_scan, and cotangents of its outputs."""
    z = torch.exp(torch.complex(-(1e-3 ** torch.rand(D, N)), 10 * torch.rand(D, N)))
    b, c = torch.randn(2, D, N, dtype=torch.complex64)
    h0, dh = torch.randn(2, rows or B, D, N, dtype=torch.complex64)
    return [torch.randn(B, D, L).to(dtype), z, b, c, torch.randn(D), h0], [torch.randn(B, D, L), dh]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "L", "N"), [(8, 1, 32), (2, 64, 32), (2, 512, 32), (1, 1000, 24), (1, 2049, 70)])
def test_scans_of_real_models_are_within_the_budget_and_repeat(B, L, N, dtype):
    torch.manual_seed(0)
    tensors, cotangents = scan_case(B, 96, L, N, dtype)
    first = check_against_definition(diagonal_scan, tensors, cotangents)
    for again, once in zip(by_triton(diagonal_scan, tensors, cotangents), first):
        assert torch.equal(again, once)


def test_a_packed_scan_is_captured_into_a_graph():
    """The borders are read on the device alone: replayed with others, it gives what those give."""
    torch.manual_seed(0)
    (u, *rest), _ = scan_case(1, 64, 600, 32, torch.float32, rows=3)
    arguments = [x.cuda() for x in (u, *rest)]
    borders = torch.tensor([0, 100, 400, 600], device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        diagonal_scan(*arguments, cu_seqlens=borders)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = diagonal_scan(*arguments, cu_seqlens=borders)
    borders.copy_(torch.tensor([0, 1, 513, 600]))
    graph.replay()
    for ours, wanted in zip(found, diagonal_scan(*arguments, cu_seqlens=borders)):
        assert torch.equal(ours, wanted)


def scans(packed: bool, dtype=torch.bfloat16, kind="shared"):
    """selective_scan and its definition, their arguments, cotangents and options: texts in a row, or rows."""
    named = scan_inputs(batch=1 if packed else 2, D=256, N=16, L=515, dtype=torch.float32, B_kind=kind, C_kind=kind)
    named = {name: x.to(dtype) if name in ("u", "delta", "z", "B", "C") else x for name, x in named.items()}
    options = {"cu_seqlens": torch.tensor([0, 1, 1, 300, 515], device="cuda")} if packed else {}
    texts = 4 if packed else 2
    named["initial_state"] = torch.randn(texts, 256, 16)
    functions = [in_order(op, named, delta_softplus=True) for op in (selective_scan, reference.selective_scan)]
    return *functions, list(named.values()), [torch.randn(named["u"].shape), torch.randn(texts, 256, 16)], options


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["constant", "shared", "grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_selective_scans_of_real_models_are_within_the_budget(packed, kind, dtype):
    torch.manual_seed(0)
    op, definition, tensors, cotangents, options = scans(packed, dtype, kind)
    check_against_definition(op, tensors, cotangents, definition=definition, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_ten_selective_scans_are_equal_bit_for_bit(packed):
    op, _, tensors, cotangents, options = scans(packed)
    first = by_triton(op, tensors, cotangents, **options)
    for _ in range(9):
        for again, once in zip(by_triton(op, tensors, cotangents, **options), first):
            assert torch.equal(again, once)


def test_a_selective_scan_is_captured_into_a_graph_with_borders_that_may_change():
    op, _, tensors, cotangents, options = scans(packed=True)
    leaves = [x.cuda().requires_grad_() for x in tensors]
    cotangents = [x.cuda() for x in cotangents]

    def run():
        y, last = op(*leaves, **options)
        return [y, last, *torch.autograd.grad([y, last], leaves, [c.to(o) for c, o in zip(cotangents, (y, last))])]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    options["cu_seqlens"].copy_(torch.tensor([0, 7, 100, 100, 515]))
    graph.replay()
    for ours, wanted in zip(captured, run()):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(("B", "T", "D"), [(8, 1, 64), (2, 500, 96), (1, 3000, 40), (40, 100, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gated_scans_are_within_the_budget_and_repeat(B, T, D, dtype):
    """Of one piece and of many, with gates in float32."""
    torch.manual_seed(0)
    tensors = [torch.rand(B, T, D), torch.randn(B, T, D).to(dtype), torch.randn(B, D)]
    cotangents = [torch.randn(B, T, D), torch.randn(B, D)]
    first = check_against_definition(gated_scan, tensors, cotangents)
    for again, once in zip(by_triton(gated_scan, tensors, cotangents), first):
        assert torch.equal(again, once)


def test_a_packed_gated_scan_is_captured_into_a_graph():
    torch.manual_seed(0)
    a, b, state = torch.rand(1, 600, 64).cuda(), torch.randn(1, 600, 64).cuda(), torch.randn(3, 64).cuda()
    borders = torch.tensor([0, 100, 400, 600], device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        gated_scan(a, b, state, cu_seqlens=borders)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gated_scan(a, b, state, cu_seqlens=borders)
    borders.copy_(torch.tensor([0, 1, 513, 600]))
    graph.replay()
    for ours, wanted in zip(found, gated_scan(a, b, state, cu_seqlens=borders)):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "N"), [((2048,), 16), ((24, 64), 128)])
def test_state_updates_of_real_models_are_captured_into_a_graph_within_the_budget(channels, N, dtype):
    """Replayed twice, the state is two steps on."""
    torch.manual_seed(0)
    shapes = {"state": (8, *channels, N), "x": (8, *channels), "dt": (8, *channels), "A": (*channels, N)}
    shapes |= {"B": (8, N), "C": (8, N), "D": channels, "z": (8, *channels), "dt_bias": channels}
    named = {name: torch.randn(shape, device="cuda").to(dtype) for name, shape in shapes.items()}
    named["A"] = -named["A"].float().exp()
    captured = named | {"state": named["state"].clone()}
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        selective_state_update(**named | {"state": named["state"].clone()}, dt_softplus=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = selective_state_update(**captured, dt_softplus=True)

    def defined(tensors):
        step = dict(zip(named, tensors))
        step["state"] = step["state"].clone()
        y = reference.selective_state_update(**step, dt_softplus=True)
        return [y, step["state"]]

    for _ in range(2):
        before = captured["state"].clone()
        graph.replay()
        problem = over_budget([y, captured["state"]], defined, list((captured | {"state": before}).values()))
        assert problem is None, problem


def layer():
    config = CMMConfig(text_width=256, grid_width=192, heads=4, head_dim=32, top_k=4, ssm="s4d", dropout=0.1)
    return CrossModalModulator(config).cuda()


def test_the_modulator_is_captured_into_a_graph():
    """No kernel waits for the host: training with dropout, forward and backward, replayed on new inputs."""
    torch.manual_seed(0)
    cmm, text, grids = layer(), torch.randn(2, 64, 256, device="cuda"), torch.randn(2, 5, 192, device="cuda")
    cmm.eval()
    text.requires_grad_()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(cmm(text, grids).sum(), text)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cmm(text, grids)
        (dx,) = torch.autograd.grad(y.sum(), text)
    with torch.no_grad():
        text.copy_(torch.randn_like(text))
    graph.replay()
    wanted = cmm(text, grids)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(dx, torch.autograd.grad(wanted.sum(), text)[0])


def test_the_modulator_compiles_by_inductor_into_one_graph():
    torch.manual_seed(0)
    cmm, text, grids = layer().eval(), torch.randn(2, 64, 256, device="cuda"), torch.randn(2, 5, 192, device="cuda")
    torch.testing.assert_close(torch.compile(cmm, fullgraph=True)(text, grids), cmm(text, grids), rtol=1e-3, atol=1e-4)


CONVOLUTIONS = [f"{form}{products}" for form in ("toeplitz", "fft", "packed") for products in ("", " with products")]


def convolutions(dtype=torch.bfloat16):
    """name -> (op, tensors, cotangents, definition): each form at a size that it is chosen for, and packed texts."""
    sizes = {"toeplitz": (4, 64, 700), "fft": (3, 16, 5000), "packed": (1, 16, 1500)}
    borders = torch.tensor([0, 3, 3, 1000, 1500])
    cases = {}
    for name, (B, D, L) in sizes.items():
        options = {"cu_seqlens": borders.cuda()} if name == "packed" else {}
        tensors = [torch.randn(size) for size in shapes(B, D, L, L, gated=True, skip=True)]
        tensors = [tensors[0].to(dtype), tensors[1], tensors[2].to(dtype), tensors[3]]
        ours, definition = (by_position(op, True, True, **options) for op in (fft_conv, reference.fft_conv))
        cases[name] = (ours, tensors, [torch.randn(B, D, L)], definition)
        ours, definition = (with_products(op, True, True, **options) for op in (fft_conv, reference.fft_conv))
        tensors = [*tensors[:2], torch.randn(D, 2), *tensors[2:]]
        cases[f"{name} with products"] = (ours, tensors, [torch.randn(B, D, L)], definition)
    return cases


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_convolutions_of_real_sizes_are_within_the_budget_and_repeat(name, dtype):
    torch.manual_seed(0)
    op, tensors, cotangents, definition = convolutions(dtype)[name]
    first = check_against_definition(op, tensors, cotangents, definition=definition)
    for again, once in zip(by_triton(op, tensors, cotangents), first):
        assert torch.equal(again, once)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_captured_into_a_graph(name):
    """Borders of texts are read on the device alone."""
    op, tensors, _, _ = convolutions()[name]
    leaves = [tensor.cuda().requires_grad_() for tensor in tensors]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(op(*leaves).sum(), leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(*leaves)
        found = torch.autograd.grad(y.sum(), leaves)
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    wanted = op(*leaves)
    torch.testing.assert_close(y, wanted)
    for ours, theirs in zip(found, torch.autograd.grad(wanted.sum(), leaves)):
        torch.testing.assert_close(ours, theirs)


SANITIZED = """
import torch
from firebolt_vl.kernels import correlation_context, film_residual, grounded_film
B, T, G, H, DH, D = 2, 70, {G}, 2, 32, 96
def made(*shape): return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
q, k, v = made(B, T, H, DH), made(B, G, H, DH), made(B, G, D)
x, y, table = made(B, T, D), made(B, T, D), made(B, G, 2 * D)
bias, gate, ln_weight, ln_bias = made(2 * D), made(1), made(D), made(D)
c, _ = correlation_context(q, k, v, 3)
x_f, w = grounded_film(x, q, k, table, bias, gate, ln_weight, ln_bias, top_k=3)
r, normed = film_residual(y, x_f, w, table, bias, gate, ln_weight, ln_bias)
(c.sum() + r.sum() + normed.square().sum()).backward()
torch.cuda.synchronize()
"""


SANITIZED_SCAN = """
import torch
from firebolt_vl.kernels import selective_scan
def made(*shape): return torch.randn(shape, device="cuda").requires_grad_()
u, delta, z, A = made(1, 24, 70), made(1, 24, 70), made(1, 24, 70), made(24, {N})
B, C = made(1, 2, {N}, 70), made(24, {N})
borders = torch.tensor([0, 33, 33, 70], device="cuda")
y = selective_scan(u, delta, -A.abs(), B, C, made(24), z, made(24), True, cu_seqlens=borders)
y.square().sum().backward()
torch.cuda.synchronize()
"""


def sanitize(tool, script):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the path")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("G", [5, 20, 70])
def test_the_sanitizer_finds_nothing(tool, G):
    sanitize(tool, SANITIZED.format(G=G))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("N", [3, 16, 64])
def test_the_sanitizer_finds_nothing_in_a_selective_scan(tool, N):
    sanitize(tool, SANITIZED_SCAN.format(N=N))
