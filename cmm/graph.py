"""The modulator as exported graphs have it: real numbers, a state that goes in and comes out, no branch on data."""

from torch import Tensor, nn

from .connector import PREFIX
from .modulator import QUERY, SECOND, CrossModalModulator, ModulatorSide
from .recurrence import Recurrence, real_recurrence

SSM = "ssm"


class GraphModulator(nn.Module):
    """A modulator as a map (text [B,T,D_t], mask [B,T] or None, state) -> (y [B,T,D_t], the state after it).

    The state has the names and shapes of the modulator's own `DecodeState`, without its length: below "grid." what
    `encode_grids` makes of open numbers of grids (mask, k, table, bias), which tokens do not change and which is not
    returned, and below "ssm." what they do, with query "state" below "query.ssm." too, and all of a second layer below
    "second.". Padding stands on the left of a row's first tokens.

    Raises ValueError for a state-space model without a recurrence in real numbers (`real_recurrence`).
    """

    def __init__(self, modulator: CrossModalModulator):
        super().__init__()
        self.modulator = modulator
        self.recurrence = real_recurrence(modulator.ssm)
        self.query = None if modulator.query is None else real_recurrence(modulator.query.ssm)
        self.second = None if modulator.second is None else GraphModulator(modulator.second)

    def _recurrences(self) -> dict[str, Recurrence]:
        return {SSM: self.recurrence} if self.query is None else {SSM: self.recurrence, QUERY: self.query}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one row, of the tensors that tokens change."""
        shapes = {
            f"{part}.{name}": shape
            for part, recurrence in self._recurrences().items()
            for name, shape in recurrence.state_shapes().items()
        }
        above = {} if self.second is None else self.second.state_shapes()
        return shapes | {f"{SECOND}.{name}": shape for name, shape in above.items()}

    def forward(self, text: Tensor, mask: Tensor | None, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, _, after = self.weighed(text, mask, state)
        return y, after

    def weighed(
        self, text: Tensor, mask: Tensor | None, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute what `forward` does, with the weights [B,T,G] of the grids between; of two layers the second's."""
        side = ModulatorSide(**_below(PREFIX, state))
        after: dict[str, Tensor] = {}
        recurrences = self._recurrences()

        def mix(x: Tensor, part: str = SSM) -> tuple[Tensor, None]:
            y, stepped = recurrences[part](x, mask, _below(f"{part}.", state))
            after.update({f"{part}.{name}": tensor for name, tensor in stepped.items()})
            return y, None

        y, weights, _ = self.modulator._connect(text, mask, side, mix)
        if self.second is not None:
            y, weights, above = self.second.weighed(y, mask, _below(f"{SECOND}.", state))
            after.update({f"{SECOND}.{name}": tensor for name, tensor in above.items()})
        return y, weights, {name: after[name] for name in self.state_shapes()}


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
