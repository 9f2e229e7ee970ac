"""Configuration of the routed connector."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..kernels.checks import check_integer, check_one_of
from .config import MODULATOR_FIELDS, SSMS, CMMConfig, check_defaults

INSERTS = ("prepend", "mean_at_token")
ROUTES = ("score", "text")
GATES = ("sigmoid", "straight_through", "none")
ORDERS = ("image", "score")
BALANCES = ("always", "prepended")
# Each mending of the original, and what it is as the original has it.
MENDED = {
    "gate": "sigmoid",
    "order": "image",
    "grid_positions": True,
    "residual": True,
    "balance": "always",
    "black_image": False,
}
AS_WRITTEN = {
    "gate": "none",
    "order": "score",
    "grid_positions": False,
    "residual": False,
    "balance": "prepended",
    "black_image": True,
}


@dataclass(frozen=True)
class RoutedConfig(CMMConfig):
    """Sizes and choices of connector "routed", beside those of CMMConfig (docs/mathematics.md, section 2c).

    Of CMMConfig, heads and head_dim are those of route_by "text", ffn_multiplier that of ssm "self_attn"; top_k_mode
    has no effect; query, layers and start are a modulator's, and keep their defaults. Raises ValueError or TypeError,
    which name the field that is wrong.

    top_k               patches of each image that are kept; None or 0: all
    ssm                 one of CMMConfig's, or "self_attn": attention in both directions and a feed-forward part
    experts             networks of which each patch takes some
    experts_used        how many of them a patch takes
    expert_width        their hidden width
    projector_layers    layers of Linear, LayerNorm and GELU between the patches and the decoder
    insert              "prepend": the patches stand before the text; "mean_at_token": one vector an image, the mean of
                        its patches, stands where the text has image_token_id
    image_token_id      that token; of several images of a row each takes the next one
    route_by            "score": a linear score of each patch chooses; "text": the correlation with the question's words
    balance_weight      in training, the weight of the loss that spreads the patches over the experts
    original_behaviour  what the keys below are where they are None: False as mended, True as the original has them
    gate                "sigmoid" (mended): a patch is multiplied by the sigmoid of its score, through which the router
                        learns; "straight_through": in the gradient alone; "none": the router learns nothing
    order               of the patches: "image" (mended), as they lie there, or "score", the highest first
    grid_positions      add to each patch where it lies in its image (mended: True)
    residual            add to each patch what the experts make of it, in the place of taking that alone (mended: True)
    balance             "always" (mended): the loss counts wherever experts ran; "prepended": with insert "prepend"
    black_image         show a row without an image a black one (mended: False, the row bypasses the connector)
    """

    ssm_choices: ClassVar[tuple[str, ...]] = (*SSMS, "self_attn")

    top_k: int | None = 32
    grid_positions: Any = None
    experts: int = 4
    experts_used: int = 2
    expert_width: int = 512
    projector_layers: int = 1
    insert: str = "prepend"
    image_token_id: int | None = None
    route_by: str = "score"
    balance_weight: float = 0.01
    original_behaviour: bool = False
    gate: str | None = None
    order: str | None = None
    residual: bool | None = None
    balance: str | None = None
    black_image: bool | None = None

    def __post_init__(self):
        if not isinstance(self.original_behaviour, bool):
            raise TypeError(f"RoutedConfig: original_behaviour is {self.original_behaviour!r}; expected True or False")
        for name, value in (AS_WRITTEN if self.original_behaviour else MENDED).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_defaults("RoutedConfig", self, MODULATOR_FIELDS, "as a modulator alone has another")
        for name in ("experts", "experts_used", "expert_width", "projector_layers"):
            check_integer("RoutedConfig", name, getattr(self, name), at_least=1)
        if self.experts_used > self.experts:
            raise ValueError(
                f"RoutedConfig: experts_used is {self.experts_used}; expected at most {self.experts}, the experts"
            )
        choices = {"insert": INSERTS, "route_by": ROUTES, "gate": GATES, "order": ORDERS, "balance": BALANCES}
        for name, known in choices.items():
            check_one_of("RoutedConfig", name, getattr(self, name), known)
        for name in ("residual", "black_image"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"RoutedConfig: {name} is {getattr(self, name)!r}; expected True or False")
        if self.image_token_id is not None:
            check_integer("RoutedConfig", "image_token_id", self.image_token_id, at_least=0)
        elif self.insert == "mean_at_token":
            raise ValueError(
                "RoutedConfig: image_token_id is None; expected a token, where insert 'mean_at_token' puts"
            )
        self._check_number("balance_weight")
        if not self.balance_weight >= 0:
            raise ValueError(f"RoutedConfig: balance_weight is {self.balance_weight}; expected at least 0")
        if self.ssm == "self_attn" and self.grid_width % ATTENTION_HEADS:
            raise ValueError(
                f"RoutedConfig: grid_width is {self.grid_width}; expected a multiple of {ATTENTION_HEADS}, the heads "
                "of ssm 'self_attn'"
            )


ATTENTION_HEADS = 8
"""Heads of ssm "self_attn", fixed in the original."""
