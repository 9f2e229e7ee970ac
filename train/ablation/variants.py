"""The configurations that are compared, and the tables that they stand in."""

from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, SiglipVisionModel

from ...cmm.routed_config import MENDED
from ...model import FireboltConfig, FireboltForConditionalGeneration
from ..tiny.models import CMM, TEXT, VISION
from .pool import define

BASE = "base"
WIDTH_STEP = 4
TOLERANCE = 0.05


@dataclass(frozen=True)
class Variant:
    """Difference of a configuration to the base (S4, CMM, top 4 of 14 grids, replace, positions, no grounding loss)."""

    says: str
    connector: str = "cmm"
    fusion: str = "replace"
    cmm: dict = field(default_factory=dict)
    grounding_loss: float = 0.0


# Five of 14 grids are kept, as in most of the original's configurations; small experts, as all else here.
ROUTED = {"top_k": 5, "expert_width": 64, "dropout": 0.0}
AS_WRITTEN = {**ROUTED, "original_behaviour": True}

VARIANTS = {
    BASE: Variant("base: S4, CMM, top 4, replace"),
    "s4d": Variant("S4D", cmm={"ssm": "s4d"}),
    "mamba": Variant("Mamba", cmm={"ssm": "mamba"}),
    "liquid": Variant("Liquid-S4", cmm={"ssm": "liquid"}),
    "prepend": Variant("prepend", connector="prepend"),
    "cross-attend": Variant("cross-attend", connector="cross_attend"),
    "routed": Variant("routed, mended", connector="routed", cmm=ROUTED),
    "routed-by-text": Variant("routed by the question", connector="routed", cmm={**ROUTED, "route_by": "text"}),
    "routed-straight-through": Variant(
        "routed, straight-through gate", connector="routed", cmm={**ROUTED, "gate": "straight_through"}
    ),
    "routed-as-written": Variant("routed, as written", connector="routed", cmm=AS_WRITTEN),
    **{
        f"routed-{name}": Variant(f"routed, {name} mended", connector="routed", cmm={**AS_WRITTEN, key: MENDED[key]})
        for name, key in {"gate": "gate", "order": "order", "places": "grid_positions", "residual": "residual"}.items()
    },
    "query-state": Variant("queries of the text so far", cmm={"query": "state"}),
    "two-layers": Variant("two layers", cmm={"layers": 2}),
    "identity-start": Variant("starts as the identity", cmm={"start": "identity"}),
    "top-1": Variant("top 1", cmm={"top_k": 1}),
    "top-2": Variant("top 2", cmm={"top_k": 2}),
    "top-3": Variant("top 3", cmm={"top_k": 3}),
    "top-all": Variant("all 14", cmm={"top_k": 0}),
    "concat": Variant("concat", fusion="concat"),
    "pool": Variant("pool", fusion="pool"),
    "no-positions": Variant("no positions", cmm={"grid_positions": False}),
    "grounded": Variant("positions, grounding loss", grounding_loss=1.0),
    "grounded-no-positions": Variant("no positions, grounding loss", cmm={"grid_positions": False}, grounding_loss=1.0),
}
# table -> variant -> what it is called there
TABLES = {
    "ssm": {"mamba": "Mamba", "s4d": "S4D", "liquid": "Liquid-S4", BASE: "S4"},
    "connector": {"prepend": "prepend", "cross-attend": "cross-attend", BASE: "CMM"},
    "routed": {
        "routed-as-written": "as written",
        "routed-gate": "gate mended",
        "routed-order": "order mended",
        "routed-places": "places mended",
        "routed-residual": "residual mended",
        "routed": "all mended",
        "routed-straight-through": "straight-through",
        "routed-by-text": "by the question",
        "prepend": "prepend",
        BASE: "CMM",
    },
    "query": {BASE: "token", "query-state": "query state", "two-layers": "two layers"},
    "start": {BASE: "norm", "identity-start": "identity start"},
    "top-k": {"top-1": "1", "top-2": "2", "top-3": "3", BASE: "4", "top-all": "all 14"},
    "fusion": {BASE: "replace", "concat": "concat", "pool": "pool"},
    "positions": {
        "no-positions": "off",
        BASE: "on",
        "grounded-no-positions": "off, grounding loss",
        "grounded": "on, grounding loss",
    },
}


def variants_of(tables: list[str]) -> list[str]:
    """The distinct variants of some tables, in the order of VARIANTS."""
    return [name for name in VARIANTS if any(name in TABLES[table] for table in tables)]


def definition(name: str) -> dict:
    """Describe what the name of a variant stands for: the parts of its configuration decided here, and its loss."""
    return define(VARIANTS[name], CMM, TEXT, VISION)


def make_config(variant: Variant, tokenizer: PreTrainedTokenizerBase, width: int) -> FireboltConfig:
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return FireboltConfig(
        text_config={**TEXT, "intermediate_size": width, "vocab_size": len(tokenizer), **ends},
        vision_config=VISION,
        cmm_config={**CMM, **variant.cmm},
        connector=variant.connector,
        fusion=variant.fusion,
    )


def learning(model: FireboltForConditionalGeneration) -> int:
    """Parameters of the connector and the decoder."""
    tower = {id(parameter) for parameter in model.model.vision_tower.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tower)


def matched_width(variant: Variant, tokenizer: PreTrainedTokenizerBase) -> int:
    """The decoder's feed-forward width that gives a variant as many learning parameters as the base has.

    Connectors differ in size by a factor of eight; the decoder makes up for it, so that a table compares what the
    parameters do and not how many there are. Raises ValueError where no width comes within 5 %.
    """

    def count(chosen: Variant, width: int) -> int:
        with torch.device("meta"):
            return learning(FireboltForConditionalGeneration(make_config(chosen, tokenizer, width)))

    base = TEXT["intermediate_size"]
    wanted, found = count(VARIANTS[BASE], base), count(variant, base)
    if abs(found / wanted - 1) <= TOLERANCE:
        return base
    of_one = (count(variant, base + WIDTH_STEP) - found) / WIDTH_STEP
    width = base + WIDTH_STEP * round((wanted - found) / of_one / WIDTH_STEP)
    if width < WIDTH_STEP or abs(count(variant, width) / wanted - 1) > TOLERANCE:
        raise ValueError(
            f"{variant.says}: no width of the decoder gives {wanted:,} parameters, as many as the base has"
        )
    return width


def make_model(
    variant: Variant, tokenizer: PreTrainedTokenizerBase, tower: SiglipVisionModel, seed: int
) -> FireboltForConditionalGeneration:
    """The untrained model of a variant and seed around the trained tower."""
    config = make_config(variant, tokenizer, matched_width(variant, tokenizer))
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config = GenerationConfig(
        **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    )
    return model
