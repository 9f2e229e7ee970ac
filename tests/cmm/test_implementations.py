"""The modulator is one function, whether its ops run as definitions, as PyTorch forms or as Triton kernels."""

import pytest
import torch
from numerics import assert_within_budget
from triton_kernels import DEVICE, MARKS

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.kernels.common.device import NAMES, use_implementation

CASES = {
    "table": {"T": 19, "G": 5},
    "context": {"T": 19, "G": 26},
    "many grids": {"T": 70, "G": 65, "top_k": 30},
    "truncate": {"T": 19, "G": 5, "top_k_mode": "truncate"},
    "all": {"T": 3, "G": 5, "top_k": None},
    "mamba": {"T": 19, "G": 5, "ssm": "mamba"},
    "a step of mamba": {"T": 1, "G": 5, "ssm": "mamba"},
}


def run(implementation, dtype, T, G, top_k=4, top_k_mode="renormalize", ssm="s4d", seed=0):
    """Output and every gradient of a layer, with masks."""
    torch.manual_seed(seed)
    config = CMMConfig(
        text_width=24, grid_width=10, heads=2, head_dim=6, top_k=top_k, top_k_mode=top_k_mode, ssm=ssm, state_size=4,
        dropout=0.0,
    )  # fmt: skip
    layer = CrossModalModulator(config)
    text, grids, boxes = torch.randn(2, T, 24), torch.randn(2, G, 10), torch.rand(2, G, 4).sort(-1).values
    text_mask, grid_mask = torch.rand(2, T) < 0.8, torch.rand(2, G) < 0.8
    cotangent = torch.randn(2, T, 24)
    layer, text, grids, cotangent = (x.to(DEVICE, dtype) for x in (layer, text, grids, cotangent))
    boxes, text_mask, grid_mask = (x.to(DEVICE) for x in (boxes, text_mask, grid_mask))
    text.requires_grad_()
    grids.requires_grad_()
    with use_implementation(implementation):
        y = layer(text, grids, text_mask, grid_mask, boxes)
        names = ["text", "grids", *(name for name, _ in layer.named_parameters())]
        gradients = torch.autograd.grad(y, [text, grids, *layer.parameters()], cotangent)
    return {"y": y, **dict(zip(names, gradients))}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", [*NAMES[:2], pytest.param("triton", marks=MARKS)])
def test_output_and_gradients_are_those_of_the_definitions_in_float64(implementation, case):
    """Within twice the error that the definitions themselves have in float32.

    The floor is twelve roundings: a single draw may be lucky, while over eight seeds the definitions' own gradients are
    up to 20 roundings off, and the largest error of each gradient by the other forms is at most 1.6 times theirs.
    """
    exact, narrow = (run("reference", dtype, **CASES[case]) for dtype in (torch.float64, torch.float32))
    found = run(implementation, torch.float32, **CASES[case])
    for name, value in found.items():
        assert_within_budget(value, narrow[name], exact[name], ratio=2.0, roundings=12)


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
