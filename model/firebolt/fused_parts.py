"""Firebolt-VL in two parts for ONNX Runtime: images to grids, and one graph that reads prompts and tokens alike."""

from typing import cast

import torch
from torch import Tensor, nn

from ...cmm.connector import PREFIX
from ...cmm.graph import GraphModulator
from ...cmm.modulator import CrossModalModulator
from ..compat.fused_decoder import LENGTH, FusedDecoder
from ..cpu.quantized_models import quantized_linears
from .parts import ExportPart, Model, Shape, Tensors, example_part, export_parts, sizes_of_grids

TEXT = "text"


class TextPart(nn.Module):
    """The next tokens of texts after a state -> logits of the token after them [B,V], and the state.

    input_ids [B,T] int64, rows without padding, all of one length. The state is that of `GraphModulator` and
    `FusedDecoder`: "grid." (returned by `GridsPart`, a row without an image all masked; also below "second.") goes in
    and does not come out; the rest is zeros before the first token, with room for S positions.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.embeddings, self.head = model.get_input_embeddings(), model.lm_head
        self.modulator = GraphModulator(cast(CrossModalModulator, model.model.connector))
        self.decoder = FusedDecoder(model.model.language_model)

    def forward(self, input_ids: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        text = self.embeddings(input_ids)
        connected, seen = self.modulator(text, None, state)
        rows = state[f"{PREFIX}mask"].any(-1)
        hidden, after = self.decoder(torch.where(rows[:, None, None], connected, text), state)
        return self.head(hidden).squeeze(1), {**seen, **after}


def fused_parts(model: Model, view_size: int | None = None, tile_size: int | None = None) -> dict[str, ExportPart]:
    """Make the parts "grids", as `export_parts` has it, and "text", which is its "prompt" and "step" in one.

    One graph for both phases has its weights in memory once. "text" is for export to ONNX alone (`FusedDecoder`).

    Raises ValueError as `export_parts` does.
    """
    grids = export_parts(model, view_size, tile_size)["grids"]
    part = TextPart(model)
    modulator, decoder = (
        {name: ("B", *shape) for name, shape in one.state_shapes().items()} for one in (part.modulator, part.decoder)
    )
    state: dict[str, Shape] = {**modulator, LENGTH: (1,), **decoder}
    outputs: dict[str, Shape] = {"logits": ("B", model.lm_head.out_features)}
    outputs |= {f"next.{name}": shape for name, shape in state.items()}
    inputs: dict[str, Shape] = {"input_ids": ("B", "T")}
    return {"grids": grids, TEXT: example_part(part, inputs, {**sizes_of_grids(model), **state}, outputs, model.dtype)}


def kept_whole(model: Model) -> list[Tensor]:
    """Return the weights of products that no rounding may touch: those inside a state-space model (`quantize_int4`)."""
    rounded = {id(layer) for layer in quantized_linears(model).values()}
    layers = (layer for layer in model.model.connector.modules() if isinstance(layer, nn.Linear))
    return [layer.weight for layer in layers if id(layer) not in rounded]


__all__ = ["TEXT", "fused_parts", "kept_whole"]
