"""The modulator with each state-space model as an ONNX graph: open sizes, real numbers, one loop."""

import pytest
import torch
from exported import PARITY
from numerics import assert_close
from torch.export import Dim

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.cmm.graph import GraphModulator
from firebolt_vl.model.export.onnx_files import write_onnx
from firebolt_vl.model.firebolt.parts import ExportPart

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SSMS = {"s4 of few taps": {"kernel_taps": 4}, "s4d": {}, "mamba": {}, "s4d asking": {"query": "state", "layers": 2}}
OF_GRIDS = [layer + name for layer in ("", "second.") for name in ("grid.mask", "grid.k", "grid.table")]
OPEN = Dim.DYNAMIC


@torch.no_grad()
def state_of(graph: GraphModulator, rows: int, grids: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + grids)
    features = torch.randn(rows, grids, 12, generator=generator)
    mask = torch.ones(rows, grids, dtype=torch.bool)
    mask[-1, -1] = False
    state = {name: torch.randn(rows, *shape, generator=generator) for name, shape in graph.state_shapes().items()}
    side = graph.modulator.encode_grids(features, mask, torch.rand(rows, grids, 4, generator=generator))
    return {**side.tensors, **state}


def text_of(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randn(rows, tokens, 16, generator=torch.Generator().manual_seed(tokens))
    return text, torch.ones(rows, tokens, dtype=torch.bool)


@pytest.mark.parametrize("name", SSMS)
def test_one_graph_serves_all_sizes(name, tmp_path):
    torch.manual_seed(0)
    sizes = {"text_width": 16, "grid_width": 12, "heads": 2, "head_dim": 4, "top_k": 2, "state_size": 4}
    layer = CrossModalModulator(CMMConfig(**sizes, ssm=name.split()[0], **SSMS[name])).eval()
    graph = GraphModulator(layer)
    state = state_of(graph, 2, 5)
    axes = {part: {0: OPEN, 1: OPEN} if part in OF_GRIDS else {0: OPEN} for part in state}
    inputs = {"text": ("B", "T", 16), "mask": ("B", "T"), **{part: tuple(one.shape) for part, one in state.items()}}
    outputs = {"y": ("B", "T", 16), **{f"next.{part}": tuple(state[part].shape) for part in graph.state_shapes()}}
    open_text = {0: OPEN, 1: OPEN}
    example = (*text_of(2, 7), state)
    part = ExportPart(graph, example, (open_text, open_text, axes), open_rows(inputs), open_rows(outputs))
    files = write_onnx({"modulator": part}, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / files["modulator"])
    for rows, tokens, grids in ((2, 7, 5), (1, 1, 1), (3, 70, 9)):
        text, mask = text_of(rows, tokens)
        before = state_of(graph, rows, grids)
        given = {"text": text, "mask": mask, **before}
        found = session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})
        with torch.no_grad():
            wanted, after = graph(text, mask, before)
        for one, tensor in zip(found, (wanted, *after.values()), strict=True):
            assert_close(torch.from_numpy(one), tensor, relative=PARITY)


def open_rows(shapes: dict[str, tuple]) -> dict[str, tuple]:
    """Shapes whose first size is open, and the second of what is of the grids."""
    return {name: ("B", *(("G",) if name in OF_GRIDS else shape[1:2]), *shape[2:]) for name, shape in shapes.items()}
