"""Graphs whose products have their weights in blocks of 8 and 4 bits."""

import numpy as np
import pytest
import torch
from exported import PARITY, make_views
from numerics import relative_error
from tiny_models import make_model
from torch import nn
from torch.export import Dim

from firebolt_vl.engines.graphs import onnx_session, open_onnx
from firebolt_vl.engines.in_place import TextInPlace
from firebolt_vl.model.cpu.quantized_models import quantized_linears
from firebolt_vl.model.export.block_weights import Rounding, in_blocks, out_of_blocks
from firebolt_vl.model.export.onnx_files import write_onnx
from firebolt_vl.model.firebolt.fused_parts import fused_parts, kept_whole
from firebolt_vl.model.firebolt.parts import ExportPart

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

EPSILON = torch.finfo(torch.float32).eps


def test_codes_of_8_bits_worked_out_by_hand():
    row = torch.zeros(1, 33)
    row[0, :4] = torch.tensor([-6.35, 6.35, 0.024, 0.026])  # s = 0.05
    row[0, 32] = 3.0
    codes, scales = in_blocks(row, 8)
    assert scales[0].tolist() == pytest.approx([0.05, 3 / 127])
    assert codes[0, :5].tolist() == [1, 255, 128, 129, 128]
    assert codes[0, 32:].tolist() == [255, *[128] * 31]
    assert out_of_blocks(row, 8)[0, [0, 2, 3, 32]].tolist() == pytest.approx([-6.35, 0, 0.05, 3])


def test_codes_of_4_bits_worked_out_by_hand():
    row = torch.zeros(1, 64)
    row[0, :6] = torch.tensor([-4.0, 4.0, 0.25, 0.26, 1.0, -0.74])  # s = 0.5: codes 0, 15 (cut), 8, 9, 10, 7
    codes, scales = in_blocks(row, 4)
    assert scales.tolist() == [[0.5, 0]]
    assert codes[0, :4].tolist() == [0 + 16 * 15, 8 + 16 * 9, 10 + 16 * 7, 8 + 16 * 8]
    assert codes[0, 16:].tolist() == [8 + 16 * 8] * 16
    assert out_of_blocks(row, 4)[0, :6].tolist() == [-4.0, 3.5, 0, 0.5, 1.0, -0.5]


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="weights that are inf or nan"):
        in_blocks(torch.tensor([[float("inf")] * 32]), 8)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_is_that_of_the_rounded_weights(bits, tmp_path):
    """Each block of an input is rounded to 8 bits at most: an error of at most max|x| / 254 in each of its numbers."""
    columns, rows = 70, 48
    generator = torch.Generator().manual_seed(bits)
    layer = nn.Linear(columns, rows, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(rows, columns, generator=generator))
    x = torch.randn(1, 5, columns, generator=generator)
    shapes = {"x": ("B", "T", columns)}, {"y": ("B", "T", rows)}
    part = ExportPart(layer, (torch.randn(2, 3, columns),), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},), *shapes)
    graph = open_onnx(tmp_path / write_onnx({"layer": part}, tmp_path, {"layer": Rounding(bits)})["layer"], 1)
    found = torch.from_numpy(graph({"x": x.numpy()})["y"]).double()
    weight = out_of_blocks(layer.weight.double(), bits)
    blocks = lambda one: nn.functional.pad(one.double(), (0, -columns % 32)).unflatten(-1, (-1, 32))  # noqa: E731
    moved = torch.einsum("btk,nk->btn", blocks(x).abs().amax(-1) / 254, blocks(weight).abs().sum(-1))
    summed = columns * EPSILON * torch.einsum("btk,nk->btn", x.double().abs(), weight.abs())
    error = (found - x.double() @ weight.T).abs()
    assert (error <= moved + 2 * summed).all(), (error / moved).max()


def with_whole_inputs(file) -> None:
    """Let the products of a graph take their inputs as they are, without rounding."""
    graph = onnx.load(file, load_external_data=False)
    levels = [one for node in graph.graph.node for one in node.attribute if one.name == "accuracy_level"]
    assert len(levels) > 8
    for level in levels:
        level.i = 1
    onnx.save(graph, file)


@torch.no_grad()
def round_weights(model, bits: int) -> None:
    """What the graph has, in PyTorch: the head, with which the embeddings are tied, in 8 bits."""
    for name, layer in quantized_linears(model).items():
        layer.weight.copy_(out_of_blocks(layer.weight, 8 if name == "lm_head" else bits))


@pytest.mark.parametrize(("ssm", "bits"), [("s4", 8), ("mamba", 4)])
@torch.no_grad()
def test_logits_are_those_of_the_rounded_weights(ssm, bits, tmp_path):
    """In place, rows of one length: prompts of any length, then tokens."""
    text = {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    }
    model = make_model(ssm=ssm, text=text)
    parts = fused_parts(model, 32, 16)
    files = write_onnx({"text": parts["text"]}, tmp_path, {"text": Rounding(bits, kept_whole(model))})
    with_whole_inputs(tmp_path / files["text"])
    round_weights(model, bits)
    session = onnx_session(tmp_path / files["text"], 1)
    for rows, tokens in ((1, 1), (1, 40), (3, 7)):
        views = make_views(rows, 1, 32, 16)
        generator = torch.Generator().manual_seed(tokens)
        ids = torch.randint(4, 260, (rows, tokens + 3), generator=generator)
        grids = {name: made.numpy() for name, made in parts["grids"].module(views).items()}
        read = TextInPlace(session, grids, tokens + 3).read
        found = [read(part.numpy()).copy() for part in ids.split([tokens, 1, 1, 1], 1)]
        wanted = model(input_ids=ids, use_cache=False, **views).logits[:, tokens - 1 :]
        for one, logits in zip(found, wanted.unbind(1), strict=True):
            assert relative_error(torch.from_numpy(one), logits) <= PARITY


def test_a_text_in_place_copies_no_cache():
    """What a call reads and writes of a cache is the same memory; the rest lies in two places, in turns."""

    class Ends:
        def __init__(self, name, kind, shape):
            self.name, self.type, self.shape = name, kind, shape

    class Session:
        def get_inputs(self):
            shapes = {"key.0": ["B", 2, "S", 4], "window.0": ["B", 2, 8]}
            return [Ends("input_ids", "tensor(int64)", ["B", "T"]), Ends("grid.mask", "tensor(bool)", ["B", "G"])] + [
                Ends(name, "tensor(float)", shape) for name, shape in shapes.items()
            ]

        def get_outputs(self):
            return [Ends("logits", "tensor(float)", ["B", 11])]

        def io_binding(self):
            return Binding()

        def run_with_iobinding(self, binding):
            calls.append(binding.places)

    class Binding:
        def __init__(self):
            self.places = {}

        def bind_input(self, name, device, number, dtype, shape, place):
            self.places[name] = place

        bind_output = bind_input

    calls = []
    text = TextInPlace(Session(), {"grid.mask": np.ones((1, 3), bool)}, room=9)
    for tokens in (5, 1, 1):
        text.read(np.ones((1, tokens), np.int64))
    assert all(call["key.0"] == call["next.key.0"] for call in calls)
    assert all(call["window.0"] != call["next.window.0"] for call in calls)
    assert [call["window.0"] for call in calls[1:]] == [call["next.window.0"] for call in calls[:-1]]
