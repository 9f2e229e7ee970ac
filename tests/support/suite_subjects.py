"""The two models as transformers' test suites see a model: a small one of each, its inputs and its processor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import foveated
import numpy as np
import tiny_models
import torch
from PIL import Image

from firebolt_vl.model import (
    CHAT_TEMPLATE,
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltImageProcessor,
    FireboltProcessor,
    FoveatedImageProcessor,
    FoveatedProcessor,
    FoveatedVLM,
    FoveatedVLMConfig,
)


@dataclass
class Subject:
    """A model under test.

    make        a small model with random weights, in eval mode
    config      a configuration of its size that no model was made of
    pictures    image inputs of so many rows
    size        of an image, and of a view
    """

    name: str
    model_class: type
    config_class: type
    processor_class: type
    image_processor_class: type
    make: Callable[[], Any]
    config: Callable[[], Any]
    pictures: Callable[[int], dict[str, torch.Tensor]]
    size: int
    pixels: str

    def inputs(self, rows: int = 2, columns: int = 7) -> dict[str, torch.Tensor]:
        """Text and images; every row but the first is padded on the left, by one more column each."""
        return {**tiny_models.make_text([columns - row for row in range(rows)]), **self.pictures(rows)}

    def labelled(self) -> dict[str, torch.Tensor]:
        inputs = self.inputs()
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        labels[:, :3] = -100
        return {**inputs, "labels": labels}

    def image_processor(self, **settings):
        size = {"height": self.size, "width": self.size}
        own = {"tile_size": self.size // 2} if self.image_processor_class is FireboltImageProcessor else {}
        return self.image_processor_class(**{"size": size, **own, **settings})

    def processor(self, chat_template: str | None = CHAT_TEMPLATE, **tokenizer):
        return self.processor_class(
            self.image_processor(), tiny_models.make_tokenizer(**tokenizer), chat_template=chat_template
        )

    def picture(self, seed: int = 0, height: int = 40, width: int = 60) -> Image.Image:
        levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(levels)


TEXT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}

FIREBOLT = Subject(
    "Firebolt-VL",
    FireboltForConditionalGeneration,
    FireboltConfig,
    FireboltProcessor,
    FireboltImageProcessor,
    lambda: tiny_models.make_model(text=TEXT),
    lambda: tiny_models.make_config(text=TEXT),
    tiny_models.make_pixels,
    32,
    "pixel_values",
)
FOVEATED = Subject(
    "Foveated",
    FoveatedVLM,
    FoveatedVLMConfig,
    FoveatedProcessor,
    FoveatedImageProcessor,
    foveated.make_foveated,
    foveated.make_foveated_config,
    lambda rows: foveated.make_frames([2] * rows),
    28,
    "frames",
)
SUBJECTS = (FIREBOLT, FOVEATED)
