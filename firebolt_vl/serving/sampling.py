"""Sampling of single rows in a batch: each with its own random numbers, whatever else is in the batch."""

import secrets
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.generation import sampled_with, warpers
from .chat import Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Sampler:
    """Choice of one row's tokens: of the same logits and seed those that `generate` samples for the row alone."""

    def __init__(self, settings: "GenerationConfig", asked: Sampling, device: torch.device):
        """`settings` are the checkpoint's, of which `asked` replaces what it names."""
        self.seed = secrets.randbits(63) if asked.seed is None else asked.seed
        self.warpers = warpers(sampled_with(settings, asked.temperature, asked.top_p), device)
        self.random = torch.Generator(device)
        self.begin_again()

    def begin_again(self) -> None:
        self.random.manual_seed(self.seed)

    def choose(self, tokens: Tensor, scores: Tensor) -> int:
        """Return the next token of a row, of its tokens [1,T] and scores [1,V]."""
        chances = torch.softmax(self.warpers(tokens, scores), dim=-1)
        return int(torch.multinomial(chances, 1, generator=self.random))
