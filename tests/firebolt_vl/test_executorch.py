"""Parts of fixed sizes, as ExecuTorch's programs have them: what PyTorch gives."""

import numpy as np
import pytest
import tiny_models
import torch
from exported import PARITY, Parts, logits_error
from torch.utils._pytree import tree_flatten, tree_unflatten

from firebolt_vl.model.export.executorch_files import Room, bounded_parts
from firebolt_vl.views.cutting import ImageViews, stacked

TEXT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}


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
