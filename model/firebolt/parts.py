"""Firebolt-VL in three parts that other engines run: images to grids, a prompt, one token."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from ...cmm.connector import PREFIX
from ...cmm.graph import GraphModulator
from ...cmm.modulator import SECOND, CrossModalModulator
from ...kernels.checks import check_integer
from ..compat.graph_decoder import GraphDecoder
from ..configuration_checks import backbone
from .grounding import unit_boxes

Tensors = dict[str, Tensor]
Shape = tuple[int | str, ...]
Model = Any
"""A FireboltForConditionalGeneration, whose method this is."""
# Sizes of the examples, each of its own, so that no two open sizes pass for one.
EXAMPLE = {"B": 2, "I": 3, "M": 4, "1+M": 5, "G": 8, "T": 6, "P": 7, "S": 9}
VIEWS: dict[str, Shape] = {
    "pixel_values": ("B", "I", 3, "S", "S"),
    "pixel_tiles": ("B", "I", "M", 3, "t", "t"),
    "tile_mask": ("B", "I", "M"),
    "image_mask": ("B", "I"),
    "grid_boxes": ("B", "I", "1+M", 4),
}
BOOLS = ("tile_mask", "image_mask", "attention_mask", "mask", "kept")


class ExportPart(NamedTuple):
    """A callable of tensors with an example of its arguments, as `torch.export.export` and engines want them.

    inputs and outputs   name -> shape, of the tensors in the order in which `arguments` and what comes back have them,
                         with names for open sizes: B rows, I images, M tiles (1+M boxes), G grids, T tokens, P
                         positions before them, S positions that there is room for
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


class GridsPart(nn.Module):
    """Views as `FireboltImageProcessor` makes them, an axis I in all of them -> the grid side of the modulator.

    With `weights` also `boxes` [B,G,4], where each grid lies in its image.
    """

    def __init__(self, model: Model, weights: bool = False):
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, views: Tensors) -> Tensors:
        seen = self.model.get_grids(**views)
        modulator = self.model.model.connector
        side = modulator.encode_grids(seen.features, seen.mask, seen.boxes, seen.images).tensors
        return {**side, "boxes": unit_boxes(seen.mask, seen.boxes)} if self.weights else side


class PromptPart(nn.Module):
    """The next tokens of texts after a state -> logits of the token after them [B,V], and the state.

    input_ids [B,T] int64; attention_mask [B,T] bool, True = keep, padded on the left of a row's first tokens. The state
    is that of `GraphModulator` and `GraphDecoder`: "grid." (returned by `GridsPart`, a row without an image all masked;
    also below "second.") goes in and does not come out; the rest is zeros of P = 0 before the first token. With
    `weights` the share of each grid in each token [B,T,G] stands between the two, as `ground` gives it.
    """

    def __init__(self, model: Model, weights: bool = False):
        super().__init__()
        self.model, self.weights = model, weights
        self.modulator = GraphModulator(cast(CrossModalModulator, model.model.connector))
        self.decoder = GraphDecoder(model.model.language_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, state: Tensors) -> tuple[Tensor | Tensors, ...]:
        text = self.model.get_input_embeddings()(input_ids)
        connected, weights, seen = self.modulator.weighed(text, attention_mask, state)
        rows = state[f"{PREFIX}mask"].any(-1)
        embeddings = torch.where(rows[:, None, None], connected, text)
        hidden, after = self.decoder(embeddings, attention_mask, state)
        logits, after = self.model.lm_head(hidden[:, -1]), {**seen, **after}
        return (logits, weights, after) if self.weights else (logits, after)


class StepPart(PromptPart):
    """`PromptPart` of one token [B,1] that no row has as padding: there is no loop in its graph."""

    def forward(self, input_ids: Tensor, state: Tensors) -> tuple[Tensor | Tensors, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # one token has no mask
        return super().forward(input_ids, None, state)


def export_parts(
    model: Model, view_size: int | None = None, tile_size: int | None = None, weights: bool = False
) -> dict[str, ExportPart]:
    """See `FireboltForConditionalGeneration.export_parts`."""
    _check(model)
    vision = backbone(model.config.vision_config)
    sides = {"S": vision.image_size if view_size is None else view_size}
    sides["t"] = sides["S"] // 2 if tile_size is None else tile_size
    for name, side in zip(("view_size", "tile_size"), sides.values()):
        check_integer("export_parts", name, side, at_least=vision.patch_size)
    prompt, step = PromptPart(model, weights), StepPart(model, weights)
    grid = sizes_of_grids(model)
    told = {**prompt.modulator.state_shapes(), **prompt.decoder.state_shapes()}
    state: dict[str, Shape] = {name: ("B", *shape) for name, shape in told.items()}
    logits: dict[str, Shape] = {"logits": ("B", backbone(model.config.text_config).vocab_size)}
    after = {f"next.{name}": _sized(shape, {"P": "P+T"}) for name, shape in state.items()}
    boxes: dict[str, Shape] = {"boxes": ("B", "G", 4)} if weights else {}

    def weighed(tokens: int | str) -> dict[str, Shape]:
        return {"weights": ("B", tokens, "G")} if weights else {}

    views = {name: _sized(shape, sides) for name, shape in VIEWS.items() if _reads(model, name)}
    text: dict[str, Shape] = {"input_ids": ("B", "T"), "attention_mask": ("B", "T")}
    one: dict[str, Shape] = {"input_ids": ("B", 1)}
    return {
        "grids": example_part(GridsPart(model, weights), {}, views, {**grid, **boxes}, model.dtype),
        "prompt": example_part(prompt, text, {**grid, **state}, {**logits, **weighed("T"), **after}, model.dtype),
        "step": example_part(step, one, {**grid, **state}, {**logits, **weighed(1), **after}, model.dtype),
    }


def sizes_of_grids(model: Model) -> dict[str, Shape]:
    """Name -> shape of what `GridsPart` makes."""
    config = model.model.connector.config
    of_layer: dict[str, Shape] = {
        f"{PREFIX}mask": ("B", "G"),
        f"{PREFIX}k": ("B", "G", config.heads, config.head_dim),
        f"{PREFIX}table": ("B", "G", 4 * config.text_width),
        f"{PREFIX}bias": ("B", 4 * config.text_width),
    }
    layers = ("", f"{SECOND}.")[: config.layers]
    return {layer + name: shape for layer in layers for name, shape in of_layer.items()}


def _check(model: Model) -> None:
    config = model.config
    for name, expected in (("connector", "cmm"), ("fusion", "replace")):
        if getattr(config, name) != expected:
            raise ValueError(f"export: {name} is {getattr(config, name)!r}; expected {expected!r}")
    if model.training:
        raise ValueError("export: the model is in training mode; expected one in eval mode")


def _reads(model: Model, name: str) -> bool:
    """Tell whether images are given by this argument: patches are made of the whole image alone, in their own boxes."""
    return model.config.grids != "patches" or name in ("pixel_values", "image_mask")


def _sized(shape: Shape, sizes: Mapping[str, int | str]) -> Shape:
    return tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)


def example_part(
    module: nn.Module, named: dict[str, Shape], packed: dict[str, Shape], outputs: dict[str, Shape], dtype: torch.dtype
) -> ExportPart:
    """A part whose arguments are the tensors `named`, one by one, and then those `packed` into a dict."""
    generator = torch.Generator().manual_seed(0)

    def example(name: str, shape: Shape) -> Tensor:
        size = [axis if isinstance(axis, int) else EXAMPLE[axis] for axis in shape]
        last = name.rpartition(".")[2]
        if last in BOOLS:
            return torch.ones(size, dtype=torch.bool)
        if name == "input_ids":
            return torch.ones(size, dtype=torch.int64)
        if name == "length":
            return torch.zeros(size, dtype=torch.int32)
        if last == "bias":  # that of every row
            return torch.rand(size[1:], generator=generator).to(dtype).expand(size).contiguous()
        return torch.rand(size, generator=generator).to(dtype)

    # Without names: that all of them may have any number of positions follows from guards that PyTorch cannot solve.
    open_axes = lambda shape: {i: Dim.DYNAMIC for i, size in enumerate(shape) if isinstance(size, str)}  # noqa: E731
    return ExportPart(
        module.eval(),
        (*(example(*one) for one in named.items()), {name: example(name, shape) for name, shape in packed.items()}),
        (*(open_axes(shape) for shape in named.values()), {name: open_axes(shape) for name, shape in packed.items()}),
        {**named, **packed},
        outputs,
    )


__all__ = ["ExportPart", "example_part", "export_parts", "sizes_of_grids"]
