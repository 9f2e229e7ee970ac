"""Configuration of a cross-modal modulator, or of a connector in its place."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from ..kernels.checks import check_integer, check_one_of

SSMS = ("s4", "s4d", "mamba", "liquid")
LIQUID_KERNELS = ("elementwise", "product")
TOP_K_MODES = ("renormalize", "truncate")
QUERIES = ("token", "state")
STARTS = ("norm", "identity")
MOST_LAYERS = 2
MODULATOR_FIELDS = ("query", "layers", "start")
"""What a modulator alone has; in another connector they would do nothing."""


@dataclass(frozen=True)
class CMMConfig:
    """Sizes and choices of the layer (docs/mathematics.md, section 2).

    Raises ValueError or TypeError, which name the field that is wrong.

    text_width, grid_width    D_t and D_v: widths of the text and grid embeddings
    heads, head_dim           H and D_h of the correlation
    top_k                     grids that each head of a token keeps; None or 0: all
    top_k_mode                "renormalize": softmax over the kept scores alone (the released code);
                              "truncate": softmax over all, then all but the top_k are zeroed (the paper's wording)
    ssm                       "s4", "s4d", "mamba", or "liquid": s4 with products of neighbouring inputs
    state_size                the SSM's real state size N; None: 64 for s4, s4d and liquid, 16 for mamba
    kernel_taps               s4 only: cut the kernel after so many taps (the original: 512); None: as long as the text
    liquid_order              liquid only: the most inputs of one product; 1: none, which is s4
    liquid_kernel             liquid only: "elementwise" or "product", how the products' weights are made of s4's
                              parameters
    dropout                   on the correlation's weights, in the FFN and in the s4d block
    grid_positions            add to each grid where it lies in its image
    grid_times                add to each grid, with its position, when its frame was to be seen, in seconds
    ffn_multiplier            hidden width of the FFN over text_width
    layer_norm_eps            of every LayerNorm
    query                     what a token asks the grids with: "token", itself alone; "state", itself and what a
                              state-space model of its own makes of the text up to it
    layers                    1, or 2: a second modulator reads what the first has written, and asks with that
    start                     "norm": the output is normed, as released; "identity": the output is the input until
                              training opens a gate
    """

    ssm_choices: ClassVar[tuple[str, ...]] = SSMS

    text_width: int
    grid_width: int
    heads: int = 4
    head_dim: int = 32
    top_k: int | None = 4
    top_k_mode: str = "renormalize"
    ssm: str = "s4"
    state_size: int | None = None
    kernel_taps: int | None = None
    liquid_order: int = 2
    liquid_kernel: str = "elementwise"
    dropout: float = 0.1
    grid_positions: bool = True
    grid_times: bool = False
    ffn_multiplier: int = 4
    layer_norm_eps: float = 1e-5
    query: str = "token"
    layers: int = 1
    start: str = "norm"

    def __post_init__(self):
        for name in ("text_width", "grid_width", "heads", "head_dim", "ffn_multiplier"):
            check_integer("CMMConfig", name, getattr(self, name), at_least=1)
        if self.top_k is not None:
            check_integer("CMMConfig", "top_k", self.top_k, at_least=0)
        for name in ("state_size", "kernel_taps"):
            if getattr(self, name) is not None:
                check_integer("CMMConfig", name, getattr(self, name), at_least=1)
        check_one_of("CMMConfig", "top_k_mode", self.top_k_mode, TOP_K_MODES)
        check_one_of("CMMConfig", "ssm", self.ssm, self.ssm_choices)
        if self.ssm in ("s4", "s4d", "liquid") and self.state_size is not None and self.state_size % 2:
            raise ValueError(
                f"CMMConfig: state_size is {self.state_size}; expected an even number, as {self.ssm} needs"
            )
        if self.kernel_taps is not None and self.ssm != "s4":
            raise ValueError(f"CMMConfig: kernel_taps is {self.kernel_taps}; expected None where ssm is {self.ssm!r}")
        check_integer("CMMConfig", "liquid_order", self.liquid_order, at_least=1)
        check_one_of("CMMConfig", "liquid_kernel", self.liquid_kernel, LIQUID_KERNELS)
        if self.ssm != "liquid":
            check_defaults("CMMConfig", self, ("liquid_order", "liquid_kernel"), f"where ssm is {self.ssm!r}")
        check_one_of("CMMConfig", "query", self.query, QUERIES)
        check_integer("CMMConfig", "layers", self.layers, at_least=1)
        if self.layers > MOST_LAYERS:
            raise ValueError(f"CMMConfig: layers is {self.layers}; expected at most {MOST_LAYERS}")
        check_one_of("CMMConfig", "start", self.start, STARTS)
        for name in ("grid_positions", "grid_times"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"CMMConfig: {name} is {getattr(self, name)!r}; expected True or False")
        if self.grid_times and not self.grid_positions:
            raise ValueError(
                "CMMConfig: grid_times is True; expected False where grid_positions is False, as times are a part of "
                "positions"
            )
        self._check_number("dropout")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CMMConfig: dropout is {self.dropout}; expected 0 <= dropout < 1")
        self._check_number("layer_norm_eps")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"CMMConfig: layer_norm_eps is {self.layer_norm_eps}; expected a positive number")

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"CMMConfig: {name} is {value!r}; expected a number")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Undo `to_dict`. Missing fields take their defaults; unknown ones raise a ValueError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"CMMConfig: {unknown[0]} is unknown; expected one of {', '.join(known)}")
        missing = [name for name in ("text_width", "grid_width") if name not in values]
        if missing:
            raise ValueError(f"CMMConfig: {missing[0]} is missing; expected a value, as it has no default")
        return cls(**values)


def check_defaults(owner: str, config: CMMConfig, names: Collection[str], where: str) -> None:
    """Check that the fields `names`, which would do nothing, have their defaults; raises ValueError."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            raise ValueError(f"{owner}: {field.name} is {value!r}; expected {field.default!r}, the default, {where}")
