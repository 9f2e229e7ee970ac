"""A connector that chooses the patches of an image that matter most, and puts them before the text."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .connector import PREFIX, GivenGrids, PlacedGrids, Whole
from .experts import Experts
from .inputs import without_masked
from .inserting import Inserting, WaitingGrids
from .linear import product
from .routed_config import ATTENTION_HEADS, RoutedConfig
from .routing import ScoreRouter, Slots, TextRouter, best, gathered, in_image_order, reading_order
from .self_attention import SelfAttention
from .ssms import ssm_block


@dataclass
class RoutedSide(WaitingGrids):
    """Kept patches as the decoder takes them, and the `balance` of their experts, a number that no state keeps."""

    balance: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().tensors().items() if name != f"{PREFIX}balance"}


class Projector(nn.Module):
    """`layers` times dropout(GELU(LN(W x + b))), the first from `width` to `text_width`."""

    def __init__(self, width: int, text_width: int, layers: int, dropout: float, eps: float):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(text_width if layer else width, text_width) for layer in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(text_width, eps=eps) for _ in range(layers))
        self.dropout = dropout

    def reset_parameters(self) -> None:
        for module in (*self.linears, *self.norms):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]  # a ModuleList forgets its items' class

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms):
            x = F.dropout(F.gelu(norm(product(linear, x))), self.dropout, self.training)
        return x


class Routed(Inserting[RoutedSide]):
    """Tokens before the text: of each image the patches of highest score, mixed by experts and an SSM.

        s_n = w . Z_n + b                                   a score of each patch, or that of `TextRouter`
        Z_top = the K patches of highest score, times sigmoid(s), in image order          [B,I,K,D_v]
        Z_e = Z_top + sum over e of a_e MLP_e(Z_top)        a = softmax over the largest of W_r Z_top + b_r
        Z_s = SSM(Z_e)                                      over the K patches of an image
        T = GELU(LN(W Z_s + b))                             [B,I K,D_t], image by image
        output [T ; X_t], or, with insert "mean_at_token", [mean of T over each image ; X_t], M = I

    There is a position for K patches of each image, of which `inserted_mask` tells the ones that there are. With insert
    "mean_at_token" it is for who has the token ids to put each where its token is; a model does. `RoutedConfig` tells
    what differs from the original, and how to undo it. With K None, or at least the number of patches, nothing is
    left out.

    Source: the public code of Firebolt-VL V2 (docs/mathematics.md, section 2c).
    """

    side_class = RoutedSide
    balances = True
    config: RoutedConfig

    def __init__(self, config: RoutedConfig):
        if not isinstance(config, RoutedConfig):
            raise TypeError(f"Routed: config is of type {type(config).__name__}; expected a RoutedConfig")
        super().__init__(config)
        width, dropout, eps = config.grid_width, config.dropout, config.layer_norm_eps
        if config.route_by == "text":
            self.router = TextRouter(width, config.text_width, config.heads, config.head_dim)
        else:
            self.router = ScoreRouter(width)
        self.experts = Experts(width, config.expert_width, config.experts, config.experts_used, dropout)
        if config.ssm == "self_attn":
            self.ssm = SelfAttention(width, ATTENTION_HEADS, config.ffn_multiplier, dropout, eps)
        else:
            self.ssm = ssm_block(config, width)
        self.projector = Projector(width, config.text_width, config.projector_layers, dropout, eps)
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "Routed":
        """Change whether parameters learn; a router whose scores multiply nothing (gate "none") never does."""
        super().requires_grad_(requires_grad)
        if self.config.gate == "none":
            self.router.requires_grad_(False)
        return self

    @classmethod
    def from_original(cls, state_dict: dict[str, Tensor], **config) -> "Routed":
        """The layer of a checkpoint of Firebolt-VL V2, in the dtype of its state dict, with original_behaviour.

        `state_dict` has the original's names without the first "model.": router, expert_connector, ssm, visual_proj.
        `config` are fields of RoutedConfig that it does not say: top_k, insert, experts_used, dropout and such. Raises
        ValueError naming keys that are missing, unknown or of the wrong shape.
        """
        from .routed_original import routed_from_original

        return routed_from_original(cls, state_dict, config)

    @property
    def reads_prompt(self) -> bool:
        return self.config.route_by == "text"

    @property
    def places_images(self) -> bool:
        return self.config.insert == "mean_at_token"

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.norms[0].weight.dtype  # pyright: ignore[reportReturnType]  # a ModuleList's item

    def inserted_mask(self, grid_mask: Tensor, grid_images: Tensor | None = None) -> Tensor:
        """The inserted positions that there are, [B,M] bool, of grid_mask [B,G] and grid_images [B,G]."""
        kept = Slots.of(grid_mask, grid_mask, grid_images, self.config.top_k).kept
        return kept.any(-1) if self.config.insert == "mean_at_token" else kept.flatten(1)

    def forward(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        grid_times: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        return_weights: bool = False,
        return_balance: bool = False,
        **mode: Any,
    ) -> Any:
        """Run over whole sequences, as `Connector.forward` does.

        Returns: [B,M+T,D_t], or with return_balance that and the balance loss of the experts (`experts.balance`), not
        yet weighted.
        """
        if mode:  # of `prefill` and `step`
            others = {"grid_images": grid_images, "grid_times": grid_times}
            others |= {"prompt_mask": prompt_mask, "return_weights": return_weights}
            return super().forward(text, grids, text_mask, grid_mask, grid_boxes, **others, **mode)
        self._check(text, text_mask, return_weights)
        given = GivenGrids(cast(Tensor, grids), grid_mask, grid_boxes, grid_images, grid_times)
        y, _, side = self._whole(Whole(text, text_mask, given, prompt_mask))
        assert side.balance is not None  # a new side has one
        return (y, side.balance) if return_balance else y

    def _side_of(self, seen: PlacedGrids, tokens: int | None) -> RoutedSide:
        config = self.config
        scores = self.router(seen)
        slots = Slots.of(seen.x, seen.mask, seen.images, config.top_k)
        chosen = best(scores, slots)
        if config.order == "image":
            chosen = in_image_order(chosen, slots.kept, self._ranks(seen))
        kept = None if slots.members is None else slots.kept.flatten(0, 1)
        z = without_masked(self._gated(gathered(seen.x, chosen), gathered(scores[..., None], chosen)), kept)
        mixed, balance = self.experts(z, kept)
        mixed = self.ssm(without_masked(z + mixed if config.residual else mixed, kept), kept)
        made = without_masked(self.projector(mixed), kept)
        if config.balance == "prepended" and config.insert != "prepend":
            balance = torch.zeros_like(balance)
        batch = seen.x.shape[0]
        if config.insert == "prepend":
            return RoutedSide(seen.mask, made.view(batch, -1, made.shape[-1]), balance)
        count = slots.kept.sum(-1, keepdim=True).clamp(min=1).to(made.dtype)
        return RoutedSide(seen.mask, made.view(*chosen.shape, -1).sum(2) / count, balance)

    def _ranks(self, seen: PlacedGrids) -> Tensor | None:
        """The places of patches in the order of reading; None where they came in it, as default boxes do."""
        if self.positions is None or seen.boxes is None:
            return None
        times = seen.times
        if times is not None and seen.mask is not None:
            times = times.masked_fill(~seen.mask, 0)
        return reading_order(without_masked(seen.boxes, seen.mask), times)

    def _gated(self, z: Tensor, scores: Tensor) -> Tensor:
        """Patches z [n,K,D_v] with the gradient of their scores [n,K,1]."""
        if self.config.gate == "none":
            return z
        gate = scores.sigmoid()
        if self.config.gate == "straight_through":
            gate = 1 + gate - gate.detach()
        return z * gate.to(z.dtype)
