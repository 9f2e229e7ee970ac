"""The modulator as exported graphs have it: real numbers, a state that goes in and comes out, no branch on data."""

from torch import Tensor, nn

from .connector import PREFIX
from .modulator import QUERY, SECOND, CrossModalModulator, ModulatorSide
from .recurrence import Recurrence, real_recurrence

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int | str, ...]]
SSM = "ssm"


class GraphModulator(nn.Module):
    """A modulator as a map (text [B,T,D_t], mask [B,T] or None, state) -> (y [B,T,D_t], the state after it).

    The state has the names and shapes of the modulator's own `DecodeState`, without its length: below "grid." what
    `encode_grids` makes of open numbers of grids, which tokens do not change and which is not returned, below "ssm."
    and "query.ssm." what they do, and all of a second layer below "second.". Padding stands on the left of a row's
    first tokens.

    Raises ValueError for a state-space model without a recurrence in real numbers (`real_recurrence`).
    """

    def __init__(self, modulator: CrossModalModulator):
        super().__init__()
        self.modulator = modulator
        self.recurrence = real_recurrence(modulator.ssm)
        self.query_recurrence = None if modulator.query is None else real_recurrence(modulator.query.ssm)
        self.second = None if modulator.second is None else GraphModulator(modulator.second)

    def state_shapes(self) -> Shapes:
        """Name -> shape of one row, of the tensors that tokens change."""
        own = {_join(part, name): shape for part, one in self._parts() for name, shape in one.state_shapes().items()}
        return {**own, **({} if self.second is None else _nested(SECOND, self.second.state_shapes()))}

    def grid_shapes(self) -> Shapes:
        """Name -> shape of one row, of what `encode_grids` makes of G grids."""
        config = self.modulator.config
        own: Shapes = {
            f"{PREFIX}mask": ("G",),
            f"{PREFIX}k": ("G", config.heads, config.head_dim),
            f"{PREFIX}table": ("G", 4 * config.text_width),
            f"{PREFIX}bias": (4 * config.text_width,),
        }
        return {**own, **({} if self.second is None else _nested(SECOND, self.second.grid_shapes()))}

    def forward(self, text: Tensor, mask: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        recurrences, after = dict(self._parts()), {}

        def mix(x: Tensor, part: str = SSM) -> tuple[Tensor, None]:
            y, stepped = recurrences[part](x, mask, _below(part, state))
            after.update(_nested(part, stepped))
            return y, None

        side = ModulatorSide(**_below(PREFIX.removesuffix("."), state))
        y, _, _ = self.modulator._connect(text, mask, side, mix)
        if self.second is None:
            return y, after
        y, later = self.second(y, mask, _below(SECOND, state))
        return y, {**after, **_nested(SECOND, later)}

    def _parts(self) -> list[tuple[str, Recurrence]]:
        query = [] if self.query_recurrence is None else [(QUERY, self.query_recurrence)]
        return [*query, (SSM, self.recurrence)]


def _join(part: str, name: str) -> str:
    return f"{part}.{name}"


def _nested(part: str, named: dict) -> dict:
    return {_join(part, name): one for name, one in named.items()}


def _below(part: str, state: Tensors) -> Tensors:
    prefix = _join(part, "")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
