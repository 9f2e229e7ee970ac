"""The modulator in real numbers, as exported graphs have it, against the modulator itself."""

import pytest
import torch
from numerics import assert_close
from torch import nn

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.cmm.graph import GraphModulator

# With the gate open, which starts closed.
ASKING = {"query": "state", "layers": 2, "start": "identity"}
SSMS = {
    "s4": {},
    "s4 of few taps": {"kernel_taps": 4},
    "s4d": {},
    "mamba": {},
    "s4 asking": ASKING,
    "mamba asking": ASKING,
}
BATCH, GRIDS, PADDING = 3, 5, 2
# Other sums of as many products: float32's rounding at these sizes.
ROUNDING = 1e-5


def make_layer(name: str, **config) -> CrossModalModulator:
    torch.manual_seed(0)
    sizes = {"text_width": 16, "grid_width": 12, "heads": 2, "head_dim": 4, "top_k": 2, "state_size": 4}
    fields = {**sizes, "ssm": name.split()[0], **SSMS.get(name, {}), **config}
    layer = CrossModalModulator(CMMConfig(**fields)).eval()
    for parameter_name, parameter in layer.named_parameters():
        if parameter_name.endswith("out_gate"):
            nn.init.constant_(parameter, 0.5)
    return layer


def make_inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grids, text and its mask: the last row is padded on the left, and the padding is not to be read."""
    generator = torch.Generator().manual_seed(tokens)
    grids = torch.randn(BATCH, GRIDS, 12, generator=generator)
    text = torch.randn(BATCH, tokens, 16, generator=generator)
    mask = torch.ones(BATCH, tokens, dtype=torch.bool)
    mask[-1, : min(PADDING, tokens - 1)] = False
    return grids, text.masked_fill(~mask[..., None], 1e3), mask


def begin(graph: GraphModulator, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    zeros = {name: torch.zeros(BATCH, *shape) for name, shape in graph.state_shapes().items()}
    return {**graph.modulator.encode_grids(grids).tensors, **zeros}


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("name", SSMS)
@torch.no_grad()
def test_a_prompt_and_steps_are_those_of_the_layer(name, tokens):
    layer = make_layer(name)
    graph = GraphModulator(layer)
    grids, text, mask = make_inputs(tokens)
    wanted, kept = layer.prefill(text, grids, mask)
    state = begin(graph, grids)
    found, after = graph(text, mask, state)
    assert_close(found, wanted, relative=ROUNDING)
    for _ in range(3):
        token = torch.randn(BATCH, 1, 16, generator=torch.Generator().manual_seed(1))
        wanted, kept = layer.step(token, kept)
        found, after = graph(token, None, {**state, **after})
        assert_close(found, wanted, relative=ROUNDING)
        for part, tensor in after.items():
            assert_close(tensor, kept.tensors[part], relative=ROUNDING)


@pytest.mark.parametrize("name", SSMS)
@torch.no_grad()
def test_a_prompt_in_two_calls_is_the_prompt(name):
    graph = GraphModulator(make_layer(name))
    grids, text, mask = make_inputs(9)
    state = begin(graph, grids)
    whole, at_end = graph(text, mask, state)
    first, after = graph(text[:, :4], mask[:, :4], state)
    second, after = graph(text[:, 4:], mask[:, 4:], {**state, **after})
    assert_close(torch.cat([first, second], 1), whole, relative=ROUNDING)
    assert all(torch.allclose(after[part], tensor, rtol=ROUNDING, atol=ROUNDING) for part, tensor in at_end.items())


def test_a_state_space_model_without_a_recurrence_is_named():
    with pytest.raises(ValueError, match="the modulator's ssm is LiquidS4; expected S4, S4D or Mamba"):
        GraphModulator(make_layer("liquid"))
