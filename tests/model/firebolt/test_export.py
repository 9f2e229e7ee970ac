"""The whole model as torch.export and a full graph of torch.compile take it, pixels to logits."""

import pytest
import tiny_models
import torch
from numerics import assert_close
from packaging.version import Version
from torch.export import Dim, export

# Two layers of each kind are enough for a graph, and half the time.
TEXT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
ROUNDING = 2e-5
# Before, a guard of PyTorch's own on the grouped heads keeps the text's length from being open.
OPEN_TEXT = Version(torch.__version__) >= Version("2.13")


def batch(rows: int, columns: int) -> dict:
    """Prompts of two lengths, the last row without an image, two tiles of the first one missing."""
    inputs = {**tiny_models.make_text([columns - 2, *[columns] * (rows - 1)]), **tiny_models.make_pixels(rows)}
    inputs["image_mask"][-1] = False
    inputs["tile_mask"][0, 2:] = False
    inputs["pixel_values"][-1] = float("nan")  # nothing under a mask is read
    return {**inputs, "use_cache": False}


@pytest.mark.parametrize(
    "kind", [("cmm", "replace"), ("cmm", "concat"), ("prepend", "replace"), ("routed", "replace")], ids=" ".join
)
def test_the_exported_model_is_the_model(kind):
    """Open: the batch, and the text where nothing is inserted into it."""
    model = tiny_models.make_model(*kind, text=TEXT)
    inserts = kind[1] != "replace" or model.model.connector.inserts_grids
    B, T = Dim("B", max=16), Dim("T", max=32) if OPEN_TEXT and not inserts else None
    inputs = batch(2, 7)
    axes = {name: {0: B} if isinstance(value, torch.Tensor) else None for name, value in inputs.items()}
    if T is not None:
        axes["input_ids"] = axes["attention_mask"] = {0: B, 1: T}
    with torch.no_grad():
        graph = export(model, (), inputs, dynamic_shapes=axes).module()
        for other in (inputs, batch(3, 11 if T is not None else 7)):
            assert_close(graph(**other).logits, model(**other).logits, relative=ROUNDING)


def test_packed_views_are_refused_in_an_export():
    model = tiny_models.make_model("cmm", text=TEXT)
    positions = torch.tensor([[[0, 0, 32, 32], [0, 0, 40, 60]]])[:, None]
    inputs = {
        **tiny_models.make_text([5]),
        "pixel_values": torch.zeros(1, 3, 32, 32),
        "image_position_ids": positions,
        "pixel_attention_mask": torch.tensor([1]),
    }
    assert model(**inputs).logits.isfinite().all()
    with pytest.raises(ValueError, match="expected the inputs of an image processor with packed=False"):
        export(model, (), inputs)


def test_the_model_compiles_in_one_graph():
    torch.compiler.reset()
    model = tiny_models.make_model("cmm", "pool", text=TEXT)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = batch(2, 7)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    found, wanted = compiled(**inputs, labels=labels), model(**inputs, labels=labels)
    assert_close(found.logits.detach(), wanted.logits.detach(), relative=ROUNDING)
    assert_close(found.loss.detach(), wanted.loss.detach(), relative=ROUNDING)
