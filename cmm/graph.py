"""The modulator as exported graphs have it: real numbers, a state that goes in and comes out, no branch on data."""

from torch import Tensor, nn

from .connector import PREFIX
from .modulator import CrossModalModulator, ModulatorSide
from .recurrence import real_recurrence

SSM = "ssm."


class GraphModulator(nn.Module):
    """A modulator as a map (text [B,T,D_t], mask [B,T] or None, state) -> (y [B,T,D_t], the state after it).

    The state has the names and shapes of the modulator's own `DecodeState`, without its length: below "grid." what
    `encode_grids` makes of open numbers of grids (mask, k, table, bias), which tokens do not change and which is not
    returned, and below "ssm." what they do. Padding stands on the left of a row's first tokens.

    Raises ValueError for a state-space model without a recurrence in real numbers (`real_recurrence`).
    """

    def __init__(self, modulator: CrossModalModulator):
        super().__init__()
        self.modulator = modulator
        self.recurrence = real_recurrence(modulator.ssm)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one row, of the tensors that tokens change."""
        return {SSM + name: shape for name, shape in self.recurrence.state_shapes().items()}

    def forward(self, text: Tensor, mask: Tensor | None, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        side = ModulatorSide(**_below(PREFIX, state))
        before = _below(SSM, state)
        after: dict[str, Tensor] = {}

        def mix(x: Tensor) -> tuple[Tensor, None]:
            y, stepped = self.recurrence(x, mask, before)
            after.update(stepped)
            return y, None

        y, _, _ = self.modulator._connect(text, mask, side, mix)
        return y, {SSM + name: tensor for name, tensor in after.items()}


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
