"""Queries for the grids in which the text before a token has a say."""

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from .config import CMMConfig
from .inputs import without_masked
from .ssms import ssm_block


class QueryContext(nn.Module):
    """A first pass over the text alone, X_t + SSM(LN(X_t)), of which a modulator's queries are made.

    Its `ssm` runs in the modes of the modulator around it, which keeps its state (docs/mathematics.md, section 2d).
    """

    def __init__(self, config: CMMConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.text_width, eps=config.layer_norm_eps)
        self.ssm = ssm_block(config, config.text_width)

    def reset_parameters(self) -> None:
        """Initialise this part and everything in it anew."""
        for part in cast("Iterator[Any]", self.children()):  # each of them can, which nn.Module does not say
            part.reset_parameters()

    def normed(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """LN(text) [B,T,D_t] in the dtype of the text, zero where masked: what the state-space model reads."""
        return without_masked(self.norm(text).to(text.dtype), mask)
