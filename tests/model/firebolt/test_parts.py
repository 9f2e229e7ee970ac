"""The three callables that an export is made of, against the model."""

import pytest
import tiny_models
import torch
from numerics import assert_close

ROUNDING = 2e-5


def views_of(rows: int) -> dict[str, torch.Tensor]:
    """One image in each row, an axis I in all; none in the last of several rows."""
    views = {name: tensor[:, None] for name, tensor in tiny_models.make_pixels(rows).items()}
    views["image_mask"][1:] = torch.arange(rows - 1)[:, None] < rows - 2
    views["tile_mask"][0, 0, 3:] = False
    return views


def begin(parts, grids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state before the first token, of the shapes that the part says."""
    rows, state = len(grids["grid.mask"]), dict(grids)
    for name, shape in parts["prompt"].inputs.items():
        if name not in ("input_ids", "attention_mask", *grids):
            size = [{"B": rows, "P": 0}.get(one, one) for one in shape]
            state[name] = torch.zeros(size, dtype=torch.bool if name == "kept" else torch.float32)
    return state


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "kind",
    [{"ssm": "s4"}, {"ssm": "mamba"}, {"query": "state", "layers": 2}, {"grids": "both"}, {"grids": "patches"}],
    ids=str,
)
@torch.no_grad()
def test_the_parts_are_the_model(kind, rows):
    """Rows of several lengths, with and without an image: the prompt in two calls, then steps."""
    model = tiny_models.make_model(**kind)
    parts = model.export_parts(32, 16)
    views = views_of(rows)
    text = tiny_models.make_text([9, 6, 8][:rows])
    ids, mask = text["input_ids"], text["attention_mask"].bool()
    grids = parts["grids"].module({name: views[name] for name in parts["grids"].inputs})
    state = begin(parts, grids)
    for piece in (slice(0, 5), slice(5, 7)):
        logits, after = parts["prompt"].module(ids[:, piece], mask[:, piece], state)
        state |= after
    found = [logits]
    for column in (7, 8):
        logits, after = parts["step"].module(ids[:, column : column + 1], state)
        state |= after
        found.append(logits)
    wanted = model(**text, **{name: view[:, 0] for name, view in views.items()}).logits
    for column, logits in zip((6, 7, 8), found):
        assert_close(logits, wanted[:, column], relative=ROUNDING)
    assert list(after) == [name.removeprefix("next.") for name in parts["step"].outputs if name != "logits"]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "kind", [{"ssm": "s4"}, {"query": "state", "layers": 2}, {"grids": "both"}, {"grids": "patches"}], ids=str
)
@torch.no_grad()
def test_the_parts_weigh_as_the_model_does(kind, rows):
    """Boxes, and the shares of a prompt's tokens and of two steps' in rows of several lengths."""
    model = tiny_models.make_model(**kind)
    parts = model.export_parts(32, 16, weights=True)
    views = views_of(rows)
    text = tiny_models.make_text([9, 6, 8][:rows])
    ids, mask = text["input_ids"], text["attention_mask"].bool()
    state = begin(parts, parts["grids"].module({name: views[name] for name in parts["grids"].inputs}))
    boxes = state.pop("boxes")
    logits, found, after = parts["prompt"].module(ids[:, :7], mask[:, :7], state)
    assert list(parts["prompt"].outputs)[:2] == list(parts["step"].outputs)[:2] == ["logits", "weights"]
    for column in (7, 8):
        logits, weights, after = parts["step"].module(ids[:, column : column + 1], {**state, **after})
        found = torch.cat([found, weights], 1)
    wanted = model.ground(**text, **{name: view[:, 0] for name, view in views.items()})
    assert_close(boxes, wanted.boxes, relative=ROUNDING)
    # A row without an image has no grids to weigh, and padding no weights.
    seen = wanted.grid_mask.any(-1)[:, None, None] & mask[..., None]
    assert_close(found * seen, wanted.weights * seen, relative=ROUNDING)
    given = model(**text, **{name: view[:, 0] for name, view in views.items()}).logits
    assert_close(logits, given[:, -1], relative=ROUNDING)


@torch.no_grad()
def test_examples_are_as_the_part_says():
    parts = tiny_models.make_model().export_parts()
    for part in parts.values():
        given = []
        for one in part.arguments:
            given += list(one.items()) if isinstance(one, dict) else [(None, one)]
        for (name, shape), (said, tensor) in zip(part.inputs.items(), given, strict=True):
            assert said in (None, name)
            assert all(size == axis for size, axis in zip(tensor.shape, shape) if isinstance(axis, int))
        part.module(*part.arguments)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"connector": "prepend"}, "export: connector is 'prepend'; expected 'cmm'"),
        ({"fusion": "pool"}, "export: fusion is 'pool'; expected 'replace'"),
        ({"ssm": "liquid"}, "the modulator's ssm is LiquidS4; expected S4, S4D or Mamba"),
    ],
    ids=str,
)
def test_models_that_have_no_parts_are_named(kind, said):
    with pytest.raises(ValueError, match=said):
        tiny_models.make_model(**kind).export_parts()
    with pytest.raises(ValueError, match="in training mode; expected one in eval mode"):
        tiny_models.make_model().train().export_parts()
