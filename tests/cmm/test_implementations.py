"""The modulator is one function, whether its ops run as definitions, as PyTorch forms or as Triton kernels."""

import pytest
import torch
from numerics import assert_module_within_budget
from torch._dynamo.testing import CompileCounter
from triton_kernels import DEVICE, MARKS

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.kernels.implementation import NAMES, use_implementation

CASES = {
    "table": {"T": 19, "G": 5},
    "context": {"T": 19, "G": 26},
    "many grids": {"T": 70, "G": 65, "top_k": 30},
    "truncate": {"T": 19, "G": 5, "top_k_mode": "truncate"},
    "all": {"T": 3, "G": 5, "top_k": None},
    "mamba": {"T": 19, "G": 5, "ssm": "mamba"},
    "a step of mamba": {"T": 1, "G": 5, "ssm": "mamba"},
}


def make(T, G, top_k=4, top_k_mode="renormalize", ssm="s4d", seed=0):
    """A layer, its inputs with the gradient of its output, and masks."""
    torch.manual_seed(seed)
    config = CMMConfig(
        text_width=24, grid_width=10, heads=2, head_dim=6, top_k=top_k, top_k_mode=top_k_mode, ssm=ssm, state_size=4,
        dropout=0.0,
    )  # fmt: skip
    layer = CrossModalModulator(config).to(DEVICE)
    text, grids, boxes = torch.randn(2, T, 24), torch.randn(2, G, 10), torch.rand(2, G, 4).sort(-1).values
    masks = torch.rand(2, T) < 0.8, torch.rand(2, G) < 0.8
    inputs = [x.to(DEVICE) for x in (text, grids, boxes, torch.randn(2, T, 24))]
    return layer, inputs, [mask.to(DEVICE) for mask in masks]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", [*NAMES[:2], pytest.param("triton", marks=MARKS)])
def test_output_and_gradients_are_those_of_the_definitions_in_float64(implementation, case):
    """Within the error budget of float32."""
    layer, inputs, masks = make(**CASES[case])

    def run(layer, text, grids, boxes, cotangent, implementation="reference"):
        text, grids = (x.detach().requires_grad_() for x in (text, grids))
        with use_implementation(implementation):
            y = layer(text, grids, *masks, boxes)
            return [y, *torch.autograd.grad(y, [text, grids, *layer.parameters()], cotangent)]

    assert_module_within_budget(run(layer, *inputs, implementation), run, layer, inputs)


@pytest.mark.any_cpu
@pytest.mark.parametrize("ssm", ["s4", "s4d", "mamba"])
def test_the_pytorch_forms_compile_into_one_graph(ssm):
    torch.manual_seed(0)
    config = CMMConfig(text_width=16, grid_width=10, heads=2, head_dim=6, top_k=3, ssm=ssm, state_size=4, dropout=0.0)
    layer = CrossModalModulator(config).to(DEVICE)
    text = torch.randn(2, 19, 16, device=DEVICE, requires_grad=True)
    grids = torch.randn(2, 5, 10, device=DEVICE, requires_grad=True)
    leaves = [text, grids, *layer.parameters()]
    with use_implementation("pytorch"):
        wanted = layer(text, grids)
        found = torch.compile(layer, fullgraph=True, backend="aot_eager")(text, grids)
        torch.testing.assert_close(found, wanted)
        cotangent = torch.randn_like(wanted)
        gradients = (torch.autograd.grad(y, leaves, cotangent, allow_unused=True) for y in (found, wanted))
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.any_cpu
@pytest.mark.parametrize(
    ("implementation", "ssm"),
    [("pytorch", "s4d"), *(pytest.param("triton", ssm, marks=MARKS) for ssm in ("s4", "s4d", "mamba"))],
)
def test_a_compiled_layer_takes_other_batches_and_lengths(implementation, ssm):
    """By one graph where kernels run; the PyTorch forms choose loops and transforms by size: a graph for each."""
    torch.compiler.reset()
    torch.manual_seed(0)
    config = CMMConfig(text_width=8, grid_width=4, heads=1, head_dim=4, top_k=3, ssm=ssm, state_size=4, dropout=0.0)
    layer = CrossModalModulator(config).to(DEVICE)
    graphs = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    with use_implementation(implementation):
        for B, T in ((2, 10), (3, 10), (6, 13)):
            text, grids = torch.randn(B, T, 8, device=DEVICE), torch.randn(B, 5, 4, device=DEVICE)
            torch.testing.assert_close(compiled(text, grids), layer(text, grids))
    assert graphs.frame_count == 1 or implementation == "pytorch"
