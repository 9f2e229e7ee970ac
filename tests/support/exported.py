"""Models as ONNX graphs, compared with PyTorch: logits of prompts and steps, greedy answers."""

from collections.abc import Callable

import numpy as np
import torch
from numerics import relative_error

from firebolt_vl.engines.graph_engine import NEXT, GraphEngine

Arrays = dict[str, np.ndarray]
# Of logits in float32, as the exports promise.
PARITY = 1e-4


class Parts:
    """The three graphs of an export as functions of arrays, with the state between them."""

    def __init__(self, graphs: dict[str, Callable[[Arrays], Arrays]], inputs: dict[str, dict[str, list]]):
        self.graphs, self.inputs, self.state = graphs, inputs, {}

    @classmethod
    def of(cls, engine: GraphEngine) -> "Parts":
        return cls(engine.graphs, engine.description.inputs)

    def begin(self, views: dict[str, torch.Tensor] | None, rows: int) -> None:
        """The state before the first token of rows with these views, or without any image."""
        sizes = {"B": rows, "P": 0, "G": 1}
        self.state = {
            name: np.zeros(
                [sizes.get(one, one) for one in shape], bool if name == "kept" or name.endswith(".mask") else np.float32
            )
            for name, shape in self.inputs["step"].items()
            if name != "input_ids"
        }
        if views is not None:
            self.state |= self.graphs["grids"]({name: view.numpy() for name, view in views.items()})

    def read(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The logits after more tokens [B,T], a prompt's with a mask, or one generated token of each row."""
        told = {"input_ids": ids.numpy()}
        if mask is not None:
            told["attention_mask"] = mask.bool().numpy()
        found = self.graphs["step" if mask is None else "prompt"]({**told, **self.state})
        self.state |= {name.removeprefix(NEXT): one for name, one in found.items() if name.startswith(NEXT)}
        return torch.from_numpy(found["logits"])


def make_views(rows: int, images: int, side: int, tile: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random views of images, four tiles each; the last of several rows has no image, the first image lacks a tile."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]])
    views = {
        "pixel_values": torch.randn(rows, images, 3, side, side, generator=generator),
        "pixel_tiles": torch.randn(rows, images, 4, 3, tile, tile, generator=generator),
        "tile_mask": torch.ones(rows, images, 4, dtype=torch.bool),
        "image_mask": torch.ones(rows, images, dtype=torch.bool),
        "grid_boxes": boxes.expand(rows, images, -1, -1).contiguous(),
    }
    views["tile_mask"][0, 0, -1] = False
    if rows > 1:
        views["image_mask"][-1] = False
        views["tile_mask"][-1] = False
    return views


@torch.no_grad()
def logits_error(model, parts: Parts, rows: int, tokens: int, images: int, sides: tuple[int, int]) -> float:
    """The largest relative error of the logits after a prompt of so many tokens, padded on the left, and two steps."""
    vocabulary = model.config.text_config.vocab_size
    generator = torch.Generator().manual_seed(1000 * rows + tokens)
    ids = torch.randint(4, vocabulary, (rows, tokens + 2), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : min(row * tokens // rows, tokens - 1)] = 0
    views = make_views(rows, images, *sides) if images else None
    parts.begin(views, rows)
    found = [parts.read(ids[:, :tokens], mask[:, :tokens])]
    found += [parts.read(ids[:, column : column + 1], None) for column in (tokens, tokens + 1)]
    wanted = model(input_ids=ids, attention_mask=mask, use_cache=False, **(views or {})).logits
    return max(relative_error(one, wanted[:, tokens - 1 + i]) for i, one in enumerate(found))
