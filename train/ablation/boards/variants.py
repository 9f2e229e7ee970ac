"""The configurations that are compared on boards, and the tables that they stand in."""

from dataclasses import dataclass, field

import torch
from torch import nn

from ....cmm.routed_config import MENDED
from ....model import FireboltConfig, FireboltForConditionalGeneration
from ...tiny.fusion import EMBEDDING_STD, sharpen_queries
from ..pool import define
from .questions import PAD, WORDS
from .tower import VISION

BASE = "base"
WIDTH_STEP = 4
TOLERANCE = 0.05
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "vocab_size": len(WORDS),
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Without dropout, as noise that hides differences; a small feed-forward part, so that two layers have the parameters
# of one and a wider decoder. All patches are weighed: where each head keeps 4 of 16, the one that answers is mostly not
# among them at the start.
CMM = {"heads": 4, "head_dim": 32, "top_k": 0, "ssm": "s4", "dropout": 0.0, "ffn_multiplier": 2}
ROUTED = {"top_k": 5, "expert_width": 64}
AS_WRITTEN = {**ROUTED, "original_behaviour": True}
# Name of a mending -> the field that undoes it.
MENDINGS = {"gate": "gate", "order": "order", "places": "grid_positions", "residual": "residual"}


@dataclass(frozen=True)
class Variant:
    """Difference of a configuration to the base: S4, CMM, all of 16 patches, replace, query of the token, a norm."""

    says: str
    connector: str = "cmm"
    fusion: str = "replace"
    grids: str = "patches"
    cmm: dict = field(default_factory=dict)
    trained: bool = False
    """Whether the decoder comes trained on texts."""


VARIANTS = {
    BASE: Variant("base"),
    "views": Variant("views", grids="views"),
    "both": Variant("views and patches", grids="both"),
    "top-4": Variant("top 4", cmm={"top_k": 4}),
    "top-8": Variant("top 8", cmm={"top_k": 8}),
    "prepend": Variant("prepend", connector="prepend"),
    "cross-attend": Variant("cross-attend", connector="cross_attend"),
    "concat": Variant("CMM, concat", fusion="concat"),
    "pool": Variant("CMM, pool", fusion="pool"),
    "routed": Variant("routed, mended", connector="routed", cmm=ROUTED),
    "routed-all": Variant("routed, mended, all patches", connector="routed", cmm={**ROUTED, "top_k": 0}),
    "routed-by-text": Variant("routed, by the question", connector="routed", cmm={**ROUTED, "route_by": "text"}),
    "routed-as-written": Variant("routed, as written", connector="routed", cmm=AS_WRITTEN),
    **{
        f"routed-{name}": Variant(f"routed, {name} mended", connector="routed", cmm={**AS_WRITTEN, key: MENDED[key]})
        for name, key in MENDINGS.items()
    },
    "s4d": Variant("S4D", cmm={"ssm": "s4d"}),
    "mamba": Variant("Mamba", cmm={"ssm": "mamba"}),
    "liquid": Variant("Liquid-S4, elementwise", cmm={"ssm": "liquid"}),
    "liquid-product": Variant("Liquid-S4, product", cmm={"ssm": "liquid", "liquid_kernel": "product"}),
    "query-state": Variant("query of the state", cmm={"query": "state"}),
    "two-layers": Variant("two layers", cmm={"layers": 2}),
    "identity": Variant("start as the identity", cmm={"start": "identity"}),
    "trained-norm": Variant("in a trained decoder", trained=True),
    "trained-identity": Variant("in a trained decoder, start as the identity", cmm={"start": "identity"}, trained=True),
}
# table -> variant -> what it is called there; the first one is what the others are compared with
TABLES = {
    "boards-grids": {BASE: "patches", "views": "views", "both": "both"},
    "boards-top-k": {BASE: "all 16", "top-8": "8", "top-4": "4"},
    "boards-connector": {
        BASE: "CMM",
        "prepend": "prepend",
        "cross-attend": "cross-attend",
        "concat": "CMM, concat",
        "pool": "CMM, pool",
        "routed": "routed, mended",
        "routed-as-written": "routed, as written",
    },
    "boards-routed": {
        "routed-as-written": "as written",
        **{f"routed-{name}": f"{name} mended" for name in MENDINGS},
        "routed": "all mended",
        "routed-by-text": "all mended, by the question",
        "routed-all": "all mended, all 16 kept",
    },
    "boards-ssm": {
        BASE: "S4",
        "s4d": "S4D",
        "mamba": "Mamba",
        "liquid": "Liquid-S4, elementwise",
        "liquid-product": "Liquid-S4, product",
    },
    "boards-query": {BASE: "token", "query-state": "state", "two-layers": "two layers"},
    "boards-start": {
        "trained-norm": "norm, trained decoder",
        "trained-identity": "identity, trained decoder",
        BASE: "norm",
        "identity": "identity",
    },
}


def variants_of(tables: list[str]) -> list[str]:
    """The distinct variants of some tables, in the order of VARIANTS."""
    return [name for name in VARIANTS if any(name in TABLES[table] for table in tables)]


def definition(name: str) -> dict:
    """Describe what the name of a variant stands for: the parts of its configuration that this module decides."""
    return define(VARIANTS[name], CMM, TEXT, VISION)


def make_config(variant: Variant, width: int) -> FireboltConfig:
    return FireboltConfig(
        text_config={**TEXT, "intermediate_size": width},
        vision_config=VISION,
        cmm_config={**CMM, **variant.cmm},
        connector=variant.connector,
        fusion=variant.fusion,
        grids=variant.grids,
    )


def learning(model: FireboltForConditionalGeneration) -> int:
    """Parameters of the connector and the decoder."""
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    return sum(parameter.numel() for parameter in model.parameters()) - tower


def matched_width(variant: Variant) -> int:
    """The decoder's feed-forward width that gives a variant as many learning parameters as the base has, to a step.

    Raises ValueError where no width comes within 5 %.
    """

    def count(chosen: Variant, width: int) -> int:
        with torch.device("meta"):
            return learning(FireboltForConditionalGeneration(make_config(chosen, width)))

    base = TEXT["intermediate_size"]
    wanted, found = count(VARIANTS[BASE], base), count(variant, base)
    of_one = (count(variant, base + WIDTH_STEP) - found) / WIDTH_STEP
    width = base + WIDTH_STEP * round((wanted - found) / of_one / WIDTH_STEP)
    if width < WIDTH_STEP or abs(count(variant, width) / wanted - 1) > TOLERANCE:
        raise ValueError(
            f"{variant.says}: no width of the decoder gives {wanted:,} parameters, as many as the base has"
        )
    return width


def make_model(variant: Variant, seed: int) -> FireboltForConditionalGeneration:
    """The untrained model of a variant and seed; grids are given to it, so its vision tower has no part in anything.

    Embeddings of the usual size and queries of the usual scale would make all scores alike: every word would see the
    mean of all grids for long, and some seeds would not find the look in time.
    """
    config = make_config(variant, matched_width(variant))
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    sharpen_queries(model.model.connector)
    return model
