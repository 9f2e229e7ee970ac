"""Parts of fixed sizes, as ExecuTorch's programs have them: what PyTorch gives, and what is refused.

The programs themselves are compared by `make test-executorch`: lowering one takes minutes.
"""

import json
import re
import sys

import numpy as np
import pytest
import tiny_models
import torch
from commands import assert_refused
from exported import PARITY, Parts, logits_error
from torch.utils._pytree import tree_flatten, tree_unflatten

from firebolt_vl.engines import load_engine
from firebolt_vl.engines.description import FILE, TOKENIZER, Description
from firebolt_vl.engines.graph_engine import GraphEngine
from firebolt_vl.engines.program import open_program
from firebolt_vl.errors import Failure
from firebolt_vl.model.export.executorch_files import FILE as PROGRAM
from firebolt_vl.model.export.executorch_files import Room, bounded_parts, lowered
from firebolt_vl.model.firebolt.parts import example_part
from firebolt_vl.views.cutting import ImageViews, stacked

TEXT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
INSTALL = "pip install 'firebolt-vl[executorch]'"


def as_graph(part):
    """A part as a function of named arrays."""
    _, tree = tree_flatten(part.arguments)

    @torch.no_grad()
    def run(arrays):
        given = tree_unflatten([torch.from_numpy(arrays[name]) for name in part.inputs], tree)
        found, _ = tree_flatten(part.module(*given))
        for name, tensor in zip(part.outputs, found, strict=True):
            assert list(tensor.shape) == list(part.outputs[name]), name
        return {name: tensor.numpy() for name, tensor in zip(part.outputs, found)}

    return run


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{"ssm": "s4"}, {"ssm": "mamba"}, {"ssm": "s4d", "grids": "both"}])
def test_parts_of_fixed_sizes_give_the_logits_of_pytorch(rows, options):
    """Caches have room for all positions from the first token on; what was not read changes nothing."""
    model = tiny_models.make_model(text=TEXT, **options)
    parts = bounded_parts(model.export_parts(32, 16), Room(rows, 4, 48))
    inputs = {name: {one: list(shape) for one, shape in part.inputs.items()} for name, part in parts.items()}
    graphs = Parts({name: as_graph(part) for name, part in parts.items()}, inputs)
    for tokens in (1, 2, 31):
        for images in (0, 1):
            assert logits_error(model, graphs, rows, tokens, images, (32, 16)) <= PARITY, (tokens, images)


def test_only_a_prompt_has_an_open_size():
    model = tiny_models.make_model(text=TEXT)
    parts = bounded_parts(model.export_parts(32, 16), Room(2, 4, 48))
    named = {name: [one for shape in part.inputs.values() for one in shape] for name, part in parts.items()}
    assert {name: {one for one in sizes if isinstance(one, str)} for name, sizes in named.items()} == {
        "grids": set(),
        "prompt": {"T"},
        "step": set(),
    }


def test_no_part_sorts():
    """ExecuTorch 1.5 has no kernel for a sort that keeps the order of equals."""
    model = tiny_models.make_model(text=TEXT)
    part = bounded_parts(model.export_parts(32, 16), Room(1, 4, 48))["step"]
    with torch.no_grad():
        graph = torch.export.export(part.module, part.arguments, dynamic_shapes=part.dynamic_shapes).graph
    operators = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert "aten.scatter_.value" in operators  # what is selected is marked
    assert not [name for name in operators if "sort" in name]


def test_views_have_room_for_more_tiles():
    views = ImageViews(np.ones((3, 4, 4)), np.ones((1, 3, 2, 2)), np.array([[0, 0, 2, 2]]), 2, 2)
    plain, roomy = (stacked([[views]], 4, 2, least) for least in (0, 3))
    assert plain["pixel_tiles"].shape == (1, 1, 1, 3, 2, 2)
    assert roomy["tile_mask"].tolist() == [[[True, False, False]]]
    assert (roomy["pixel_tiles"][0, 0, 0] == 1).all()
    assert (roomy["pixel_tiles"][0, 0, 1:] == 0).all()


def test_executorch_that_is_not_installed_is_named(firebolt, described, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    assert_refused(firebolt("export", "executorch", "out"), 1, f"executorch, which is not installed; {INSTALL}")
    with pytest.raises(
        Failure, match=re.escape(f"the engine executorch needs executorch, which is not installed; {INSTALL}")
    ):
        load_engine(described, "executorch")


def test_executorch_of_another_pytorch_is_told(firebolt, described, monkeypatch):
    package = described.parent / "site" / "executorch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('undefined symbol: c10')\n")
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    words = "executorch cannot be imported beside PyTorch", "undefined symbol: c10", "docs/executorch.md"
    assert_refused(firebolt("export", "executorch", "out"), 1, *words)
    with pytest.raises(Failure, match=r"executorch cannot be imported beside PyTorch .* \(.*undefined symbol: c10"):
        load_engine(described, "executorch")


@pytest.mark.parametrize("engine", ["onnx", "openvino", "page", "kernels"])
def test_a_batch_is_of_executorch(firebolt, engine):
    assert_refused(firebolt("export", engine, "out", "--batch", "3"), 2, f"--batch is 3 with {engine}; expected")


def test_tiles_without_a_bound_are_refused(firebolt, checkpoint):
    file = checkpoint / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {"tiling": "compatible", "do_resize": False}
    file.write_text(json.dumps(settings))
    refused = firebolt("export", "executorch", "out", "--checkpoint", checkpoint)
    assert_refused(refused, 1, "cuts images of any size into as many tiles; expected one with do_resize")


@pytest.fixture
def described(checkpoint, tmp_path):
    """A folder as an export for three rows writes it, whose program is none."""
    folder = tmp_path / "described"
    folder.mkdir()
    parts = bounded_parts(tiny_models.make_model(text=TEXT).export_parts(32, 16), Room(3, 4, 48))
    shapes = [
        {name: {one: list(shape) for one, shape in getattr(part, ends).items()} for name, part in parts.items()}
        for ends in ("inputs", "outputs")
    ]
    files = dict.fromkeys(parts, PROGRAM)
    description = Description("executorch", files, *shapes, [], [], [], 48, {})
    (folder / FILE).write_text(description.to_json())
    (folder / PROGRAM).write_text("{}")
    tiny_models.make_tokenizer().backend_tokenizer.save(str(folder / TOKENIZER))
    return folder


def test_one_question_is_not_asked_of_three_rows(described):
    description = Description(**json.loads((described / FILE).read_text()))
    engine = GraphEngine(described, description, {}, None)
    with pytest.raises(Failure, match="reads 3 rows at a time; expected firebolt export executorch --batch 1"):
        engine.answer(None, "what is it?")


class Sum(torch.nn.Module):
    """x [2,T] and what was before them -> the sums of both."""

    def forward(self, x, state):
        return (x + state["before"]).cumsum(1)


def test_arrays_of_other_sizes_are_refused(tmp_path):
    pytest.importorskip("executorch")
    part = example_part(Sum(), {"x": (2, "T")}, {"before": (2, 1)}, {"y": (2, "T")}, torch.float32)
    axes = torch.export.Dim.DYNAMIC(min=1, max=9)
    part = part._replace(dynamic_shapes=({1: axes}, {"before": {}}))
    with (tmp_path / PROGRAM).open("wb") as file:
        lowered({"sums": part}).write_to_file(file)
    shapes = ({"sums": {name: list(shape) for name, shape in ends.items()}} for ends in (part.inputs, part.outputs))
    run = open_program(tmp_path / PROGRAM, *shapes)["sums"]
    before = np.ones((2, 1), np.float32)
    for tokens in (1, 4, 9):
        x = np.arange(2.0 * tokens, dtype=np.float32).reshape(2, tokens)
        assert np.allclose(run({"x": x, "before": before})["y"], (x + 1).cumsum(1))
    for shape in ((2, 10), (2, 0), (1, 4), (3, 4), (2,)):
        told = f"x has shape {list(shape)}; expected [2, 1 to 9], which the program was made for (rows: firebolt export"
        with pytest.raises(Failure, match=re.escape(told)):
            run({"x": np.zeros(shape, np.float32), "before": before})


def test_a_broken_program_is_told(described):
    pytest.importorskip("executorch")
    with pytest.raises(Failure, match=f"{PROGRAM} cannot be loaded"):
        load_engine(described, "executorch")
