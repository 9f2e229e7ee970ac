"""Choice of the patches that are kept: their scores, the best of each image, and their order."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels import correlation_context
from .compaction import take
from .connector import PlacedGrids
from .inputs import without_masked
from .linear import product
from .precision import wide_dtype

# A patch that no word looks at: its score is finite, and so is the gradient.
SMALLEST_SHARE = 2.0**-20


class ScoreRouter(nn.Module):
    """A linear score of each patch, s_n = w . Z_n + b; keys as in the original, `importance`."""

    def __init__(self, width: int):
        super().__init__()
        self.importance = nn.Linear(width, 1)

    def reset_parameters(self) -> None:
        self.importance.reset_parameters()

    def forward(self, seen: PlacedGrids) -> Tensor:
        """Compute scores [B,G], in float32 or wider."""
        return product(self.importance, seen.x).squeeze(-1).to(wide_dtype(seen.x.dtype))


class TextRouter(nn.Module):
    """Correlation of each patch with the question: how much more its words weigh it than they would an average one.

        s_n = log(G mean over the question's words of w_n)          w as in the modulator, softmax over all patches

    so that sigmoid(s_n) is 1/2 for a patch of average weight. G counts the row's patches that there are.
    """

    def __init__(self, width: int, text_width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q_proj = nn.Linear(text_width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, heads * head_dim, bias=False)

    def reset_parameters(self) -> None:
        self.q_proj.reset_parameters()
        self.k_proj.reset_parameters()

    def forward(self, seen: PlacedGrids) -> Tensor:
        """Compute scores [B,G], in float32 or wider. Raises ValueError where there is no prompt."""
        if seen.prompt is None:
            raise ValueError(
                "Routed: prompt is None; expected the question's embeddings [B, P, D_t], by which route_by 'text' "
                "chooses"
            )
        text = without_masked(seen.prompt.text, seen.prompt.mask)
        k = product(self.k_proj, seen.x)
        q, heads = product(self.q_proj, text), (self.heads, self.head_dim)
        _, w = correlation_context(
            q.unflatten(-1, heads), k.unflatten(-1, heads), k, grid_mask=seen.mask, text_mask=seen.prompt.mask
        )
        w = w.to(wide_dtype(seen.x.dtype))
        if seen.prompt.mask is None:
            share = w.mean(1)
        else:
            share = w.sum(1) / seen.prompt.mask.sum(-1, keepdim=True).clamp(min=1)
        patches = w.shape[-1] if seen.mask is None else seen.mask.sum(-1, keepdim=True)
        return (patches * share).clamp(min=SMALLEST_SHARE).log()


class Slots(NamedTuple):
    """Places for the kept patches of I images in each row, K an image.

    members  [B,I,G] bool: the patches of each image; None where all are of one image and none is masked
    kept     [B,I,K] bool: which places are taken, the first ones of each image
    """

    members: Tensor | None
    kept: Tensor

    @classmethod
    def of(cls, x: Tensor, grid_mask: Tensor | None, grid_images: Tensor | None, top_k: int | None) -> "Slots":
        """Count the places for patches x [B,G,...]. Looks into grid_images, if there are any, and into no other."""
        (batch, G), device = x.shape[:2], x.device
        wanted = min(top_k or G, G)
        if grid_mask is None and grid_images is None:
            return cls(None, torch.ones(batch, 1, wanted, dtype=torch.bool, device=device))
        members = torch.ones(batch, G, dtype=torch.bool, device=device) if grid_mask is None else grid_mask
        members = members[:, None]
        if grid_images is not None:
            numbers, image = torch.unique(grid_images, return_inverse=True)
            members = members & (image[:, None] == torch.arange(len(numbers), device=device)[:, None])
        count = members.sum(-1, keepdim=True)
        if grid_images is not None and count.numel():
            wanted = max(1, min(wanted, int(count.max())))
        return cls(members, torch.arange(wanted, device=device) < count)


def best(scores: Tensor, slots: Slots) -> Tensor:
    """Find the patches of highest score of each image: indices [B,I,K], the best one first.

    Of equal scores the lower index comes first. Places that are not kept hold any index.
    """
    members, (batch, images, wanted) = slots.members, slots.kept.shape
    scores = scores.detach()[:, None].expand(batch, images, -1)
    if members is not None:
        scores = scores.masked_fill(~members, -math.inf)
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :wanted]


def in_image_order(chosen: Tensor, kept: Tensor, ranks: Tensor | None) -> Tensor:
    """Sort chosen patches [B,I,K] by where they lie, the places that are not kept last.

    ranks [B,G] are those of `reading_order`; None: the order that patches came in.
    """
    rank = chosen if ranks is None else ranks.gather(1, chosen.flatten(1)).view(chosen.shape)
    return chosen.gather(-1, rank.masked_fill(~kept, torch.iinfo(rank.dtype).max).argsort(dim=-1, stable=True))


def reading_order(boxes: Tensor, times: Tensor | None = None) -> Tensor:
    """Rank boxes [B,G,4] row by row and from left to right; of those with one corner the larger one comes first.

    With times [B,G] the boxes of an earlier frame come before those of a later one.
    """
    y0, x0, y1, x1 = boxes.unbind(-1)
    order = torch.argsort(-x1, dim=1, stable=True)
    for key in (-y1, x0, y0, *(() if times is None else (times,))):  # from the least to the most important
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


def gathered(x: Tensor, chosen: Tensor) -> Tensor:
    """x [B,G,D] at chosen [B,I,K] -> [B I,K,D]."""
    return take(x, chosen.flatten(1)).view(-1, chosen.shape[-1], x.shape[-1])
