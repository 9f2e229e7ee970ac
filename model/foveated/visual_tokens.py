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


# A field of the model's output, which a graph returns.
torch.export.register_dataclass(VisualTokens, serialized_type_name="firebolt_vl.VisualTokens")


@dataclass
class Frames:
    """Rows of frames, those of `kept` [B,T] there; `memory` of the F of these, row by row, or of all B T if `whole`."""

    memory: PatchMemory
    kept: Tensor
    whole: bool = False

    def chosen(self, values: Tensor) -> Tensor:
        """Those of the values [B,T,...] that belong to the frames in memory: [F,...]."""
        return values.flatten(0, 1) if self.whole else values[self.kept]

    def spread(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """The values [F,...] of the frames in memory at their places, `elsewhere` [B,T,...] where there is no frame."""
        values = values.to(elsewhere.dtype)
        if self.whole:
            kept = self.kept.view(*self.kept.shape, *[1] * (values.ndim - 1))
            return torch.where(kept, values.unflatten(0, self.kept.shape), elsewhere)
        spread = elsewhere.clone()
        spread[self.kept] = values
        return spread

    def only(self, frame: int) -> "Frames":
        """Return one frame of each row, T = 1."""
        kept = self.kept[:, frame]
        if self.whole:
            batch_size, frames = self.kept.shape
            index = torch.arange(batch_size, device=kept.device) * frames + frame
            return Frames(self.memory.select(index), kept[:, None], whole=True)
        index = (self.kept.flatten().cumsum(0) - 1).view_as(self.kept)[:, frame]
        return Frames(self.memory.select(index[kept]), kept[:, None])


__all__ = ["Frames", "VisualTokens"]
