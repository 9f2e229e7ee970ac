"""Small connectors, and inputs for them, that the tests run through the same claims."""

import torch
from hypothesis import strategies as st

from firebolt_vl.cmm import CMMConfig, CrossAttend, CrossModalModulator, Prepend, Routed, RoutedConfig

TEXT_WIDTH, GRID_WIDTH = 8, 6
SSMS = {
    "s4": {"ssm": "s4", "state_size": 8},
    "s4_truncated": {"ssm": "s4", "state_size": 8, "kernel_taps": 5},
    "liquid": {"ssm": "liquid", "state_size": 8, "liquid_order": 3, "liquid_kernel": "product"},
    "s4d": {"ssm": "s4d", "state_size": 8},
    "mamba": {"ssm": "mamba", "state_size": 3},
}
# What a modulator may have beside its SSM, all of it at once.
ASKING = {"asking": {"ssm": "s4", "state_size": 8, "query": "state", "layers": 2, "start": "identity"}}
ROUTED = {
    "prepended": {"ssm": "s4"},
    "mean": {"ssm": "s4d", "insert": "mean_at_token", "image_token_id": 9},
}
CONNECTORS = (
    *(f"cmm_{kind}" for kind in (*SSMS, *ASKING)),
    "cross_attend",
    "prepend",
    *(f"routed_{kind}" for kind in ROUTED),
)


def make_config(**fields) -> CMMConfig:
    return CMMConfig(
        **{"text_width": TEXT_WIDTH, "grid_width": GRID_WIDTH, "heads": 2, "head_dim": 5, "top_k": 2} | fields
    )


def make_routed_config(**fields) -> RoutedConfig:
    """Where every patch is kept each expert is used too: nothing then hangs on which of two scores is larger."""
    sizes = {**make_config().to_dict(), "state_size": 8, "experts": 3, "expert_width": 4}
    used = 3 if fields.get("top_k", 2) is None else 2
    return RoutedConfig(**{**sizes, "experts_used": used, "dropout": 0.0} | fields)


def make_connector(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **fields) -> torch.nn.Module:
    """In eval mode, parameters drawn in float32 so that every dtype holds the same numbers, none at a default."""
    torch.manual_seed(seed)
    kind, _, rest = name.partition("_")
    if kind == "routed":
        connector = Routed(make_routed_config(**ROUTED[rest] | fields))
    else:
        classes = {"cmm": CrossModalModulator, "cross": CrossAttend, "prepend": Prepend}
        connector = classes[kind](make_config(**({**SSMS, **ASKING}[rest] if kind == "cmm" else {}) | fields))
    with torch.no_grad():
        for name, parameter in connector.named_parameters():
            if "norm" in name or name.endswith("gate"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return connector.to(dtype).eval()


def inserted(connector, grids, grid_mask=None, grid_images=None, **_) -> torch.Tensor:
    """Which positions before the text there are, [B,M] bool; M is 0 where a connector inserts none."""
    if not connector.inserts_grids:
        return torch.ones(grids.shape[0], 0, dtype=torch.bool)
    mask = torch.ones(grids.shape[:2], dtype=torch.bool) if grid_mask is None else grid_mask
    return connector.inserted_mask(mask, grid_images)


def random_boxes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes [*shape, 4] inside the image, no two alike."""
    corner = 0.7 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(*shape, 2, generator=generator)], -1)


@st.composite
def connector_inputs(draw, max_tokens: int = 8, max_grids: int = 6):
    """text, grids, and text_mask, grid_mask (padding, holes, nothing kept or None), grid_boxes, grid_images."""
    B, T, G = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens)), draw(st.integers(1, max_grids))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def mask(columns):
        return draw(st.none() | random_masks(B, columns))

    return (
        torch.randn(B, T, TEXT_WIDTH, generator=generator, dtype=torch.float64),
        torch.randn(B, G, GRID_WIDTH, generator=generator, dtype=torch.float64),
        {
            "text_mask": mask(T),
            "grid_mask": mask(G),
            "grid_boxes": random_boxes(B, G, generator=generator),
            "grid_images": draw(st.none() | st.just(torch.randint(0, 3, (B, G), generator=generator))),
        },
    )


@st.composite
def random_masks(draw, rows: int, columns: int):
    """[rows, columns] bool, each row padded on the left, on the right, full of holes or empty."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in mask:
        kind, count = draw(st.sampled_from(["left", "right", "holes"])), draw(st.integers(0, columns))
        if kind == "holes":
            row[draw(st.permutations(range(columns)))[:count]] = True
        elif count:
            row[slice(count) if kind == "right" else slice(-count, None)] = True
    return mask


@st.composite
def cuts(draw, total: int):
    """Sizes of consecutive pieces that make up `total`."""
    ends = sorted(draw(st.sets(st.integers(1, total - 1), max_size=3))) if total > 1 else []
    return [end - start for start, end in zip([0, *ends], [*ends, total])]


def run_in_pieces(connector, text, grids, pieces, steps, text_mask=None, **sides):
    """`prefill` in pieces, the last `steps` positions by `step` -> (embeddings, state)."""
    outputs, state, start = [], None, 0
    for size in pieces:
        part = slice(start, start + size)
        mask = None if text_mask is None else text_mask[:, part]
        if state is None:
            y, state = connector.prefill(text[:, part], grids, mask, **sides)
        else:
            y, state = connector.prefill(text[:, part], text_mask=mask, state=state)
        outputs.append(y)
        start += size
    for t in range(start, start + steps):
        y, state = connector.step(text[:, t], state)
        outputs.append(y.unsqueeze(1))
    return torch.cat(outputs, 1), state
