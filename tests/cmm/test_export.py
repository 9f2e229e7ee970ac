"""The modulator as torch.export takes it: batch, text and grids of open sizes, in one graph."""

import pytest
import torch
from numerics import assert_close
from torch.export import Dim, export

from firebolt_vl.cmm import CMMConfig, CrossModalModulator

ASKING = {"query": "state", "layers": 2}
SSMS = {"s4": {}, "s4 of few taps": {"kernel_taps": 4}, "s4d": {}, "mamba": {}, "s4 asking": ASKING}


def arguments(batch: int, tokens: int, grids: int) -> tuple[torch.Tensor, ...]:
    """Text, grids, both masks and boxes; the last row is padded on the left, its last grid missing."""
    generator = torch.Generator().manual_seed(100 * batch + tokens)
    text = torch.randn(batch, tokens, 16, generator=generator)
    features = torch.randn(batch, grids, 12, generator=generator)
    text_mask, grid_mask = torch.ones(batch, tokens).bool(), torch.ones(batch, grids).bool()
    text_mask[-1, 0] = grid_mask[-1, -1] = False
    return text, features, text_mask, grid_mask, torch.rand(batch, grids, 4, generator=generator)


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", SSMS)
def test_one_graph_serves_all_batches_texts_and_grids(name):
    """Also after a call without gradients, which keeps what it derived of the parameters."""
    torch.manual_seed(0)
    config = CMMConfig(
        text_width=16, grid_width=12, heads=2, head_dim=4, top_k=2, ssm=name.split()[0], state_size=4, **SSMS[name]
    )
    layer = CrossModalModulator(config).eval()
    with torch.no_grad():
        layer(*arguments(2, 7, 5))
    B, T, G = Dim("B", max=64), Dim("T", max=32), Dim("G", max=40)
    axes = ({0: B, 1: T}, {0: B, 1: G}, {0: B, 1: T}, {0: B, 1: G}, {0: B, 1: G})
    graph = export(layer, arguments(2, 7, 5), dynamic_shapes=axes).module()
    with torch.no_grad():
        # As few grids as are chosen, many more tokens than grids, and the longest text.
        for sizes in ((2, 7, 5), (3, 2, 2), (5, 32, 6), (2, 9, 40)):
            assert_close(graph(*arguments(*sizes)), layer(*arguments(*sizes)), relative=1e-5)


def test_a_text_without_a_longest_length_is_named():
    layer = CrossModalModulator(CMMConfig(text_width=16, grid_width=12, heads=2, head_dim=4, ssm="s4", state_size=4))
    T = Dim("T", min=2)
    axes = ({1: T}, None, {1: T}, None, None)
    with pytest.raises(ValueError, match=r"no upper bound; expected torch\.export\.Dim"):
        export(layer.eval(), arguments(2, 7, 5), dynamic_shapes=axes)
