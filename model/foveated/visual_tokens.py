"""Frames on their way into the decoder: the patches of each, and the visual tokens that queries make of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .encoder import PatchMemory


@dataclass
class VisualTokens:
    """Visual tokens of B rows of T frames, and what they were made of.

    tokens      [B,T,E], visual_scale (W z + b): the decoder's input
    mask        [B,T] bool, the frames that are there: all others are nothing to the decoder (with `original_behaviour`
                it attends to them too)
    features    [B,T,D], z: what the query saw; 0 where there is no frame
    queries     [B,T,Q], where it looked (both None where only tokens were given)
    coarse      [B,T,E], the coarse visual tokens of mode `coarse_fine`; None in the others
    attention   [B,T,L,H,1+patches] float32, the query's weights in each layer of the vision tower, the class token
                first; None unless asked for
    """

    tokens: Tensor
    mask: Tensor
    features: Tensor | None = None
    queries: Tensor | None = None
    coarse: Tensor | None = None
    attention: Tensor | None = None

    def maps(self) -> Tensor:
        """Return where each query looked, [B,T,h,w]: each patch's share of a square frame, 0 where there is no frame.

        Mean over the layers and heads of the weights of the patches, without the class token, scaled to a sum of 1:
        what the query weighed, which need not be what the answer rests on.
        """
        if self.attention is None:
            raise ValueError(
                "VisualTokens: attention is None; expected the weights that get_visual_tokens returns with "
                "return_attention=True"
            )
        patches = self.attention[..., 1:].mean(dim=(2, 3))
        side = round(patches.shape[-1] ** 0.5)
        if side * side != patches.shape[-1]:
            raise ValueError(f"VisualTokens: attention has {patches.shape[-1]} patches; expected a square number")
        shares = patches / patches.sum(-1, keepdim=True).clamp(min=torch.finfo(patches.dtype).tiny)
        return shares.unflatten(-1, (side, side))


@dataclass
class Frames:
    """Rows of frames; `memory` of the F that are there, which are those of `kept` [B,T], row by row."""

    memory: PatchMemory
    kept: Tensor

    def only(self, frame: int) -> "Frames":
        """Return one frame of each row, T = 1."""
        kept = self.kept[:, frame]
        index = (self.kept.flatten().cumsum(0) - 1).view_as(self.kept)[:, frame]
        return Frames(self.memory.select(index[kept]), kept[:, None])


__all__ = ["Frames", "VisualTokens"]
