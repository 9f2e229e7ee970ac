"""State-space models as recurrences in real numbers, for graphs that other engines run.

An exported graph has no complex numbers, no transforms of open length and no packing. So here a model runs token by
token, in one loop of the graph, from constants that are computed beforehand. The states are those of `DecodeState`.
Padding stands on the left, before the first token of a row, where it changes nothing: its inputs are zero, and a state
that is zero stays so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import SSMBlock
from .dplr import column, readout
from .linear import in_dtype_of, product
from .mamba import NO_TIME, Mamba
from .s4 import S4
from .s4d import S4D

State = dict[str, Tensor]
Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[tuple[Tensor, ...], Tensor]]
Block = TypeVar("Block", bound=SSMBlock)


class Recurrence(nn.Module, ABC, Generic[Block]):
    """A state-space block as a map (x [B,T,D], mask [B,T] or None, state) -> (y [B,T,D], the state after it).

    x is zero where mask is False. T may be open, or 1: then there is no loop in the graph.
    """

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one row, of the tensors in a state."""
        return self.block.state_shapes()

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Run the block on, as the class says."""


def real_recurrence(block: SSMBlock) -> Recurrence:
    """Make the recurrence of a block, in eval mode. Raises ValueError for a kind of block that has none."""
    if type(block) is S4:
        return ModalRecurrence(block) if block.kernel_taps is None else WindowRecurrence(block)
    if type(block) is S4D:
        return ModalRecurrence(block)
    if type(block) is Mamba:
        return MambaRecurrence(block)
    raise ValueError(f"export: the modulator's ssm is {type(block).__name__}; expected S4, S4D or Mamba")


def over_time(step: Step, state: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Call (state, inputs at t) -> (state, y_t) for each t; inputs [T,...]. Returns the last state and y [T,...]."""
    tokens = inputs[0].shape[0]
    if isinstance(tokens, int) and tokens == 1:
        state, y = step(state, tuple(one[0] for one in inputs))
        return state, y[None]
    if torch.compiler.is_compiling():
        # One loop in the graph, whatever the length. PyTorch does not promise this name; it is used here alone.
        from torch._higher_order_ops.scan import scan

        return scan(step, state, inputs)
    outputs = []
    for t in range(tokens):
        state, y = step(state, tuple(one[t] for one in inputs))
        outputs.append(y)
    return state, torch.stack(outputs)


class ModalRecurrence(Recurrence[S4 | S4D]):
    """S4 and S4D on pairs of real numbers a + ib, one for each stored mode.

    q  = h . (a, b)                       S4 alone: the rank-one part of its matrix
    a' = Re(z) a - Im(z) b + Re(dB) u - Re(g) q
    b' = Im(z) a + Re(z) b + Im(dB) u - Im(g) q
    y  = C . (a', b') + D u
    """

    z_re: Tensor
    z_im: Tensor
    g_re: Tensor
    g_im: Tensor
    h_re: Tensor
    h_im: Tensor
    dB_re: Tensor
    dB_im: Tensor
    C_re: Tensor
    C_im: Tensor

    def __init__(self, block: S4 | S4D):
        super().__init__(block)
        with torch.no_grad():
            if isinstance(block, S4):
                z, *vectors = block.kernel.real_step()
                names = ("g", "h", "dB", "C")
            else:
                _, z, b, c = block.kernel.discrete()
                names, vectors = ("dB", "C"), [column(b), readout(c).squeeze(-2)]
        self.rank_one = "g" in names
        pairs = {"z": torch.view_as_real(z), **{name: v.unflatten(-1, (-1, 2)) for name, v in zip(names, vectors)}}
        for name, pair in pairs.items():
            for part, numbers in zip(("re", "im"), pair.unbind(-1)):  # [D,N/2]
                self.register_buffer(f"{name}_{part}", numbers.detach().contiguous().clone(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
        u = x.to(self.block.dtype)
        before = tuple(part.contiguous() for part in state["modes"].unbind(-1))
        after, y = over_time(self._step, before, (u.transpose(0, 1).contiguous(),))
        y = y.transpose(0, 1) + self.block.kernel.D * u
        return self.block.gated(y, x.dtype), {"modes": torch.stack(after, -1)}

    def _step(self, state: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        (a, b), u = state, inputs[0].unsqueeze(-1)  # a, b [B,D,N/2], u [B,D,1]
        re = self.z_re * a - self.z_im * b + self.dB_re * u
        im = self.z_im * a + self.z_re * b + self.dB_im * u
        if self.rank_one:
            q = (self.h_re * a + self.h_im * b).sum(-1, keepdim=True)
            re, im = re - self.g_re * q, im - self.g_im * q
        return (re, im), (self.C_re * re + self.C_im * im).sum(-1)


class WindowRecurrence(Recurrence[S4]):
    """S4 with a kernel of K taps: a convolution of a fixed length, after the K - 1 inputs before."""

    taps: Tensor

    def __init__(self, block: S4):
        super().__init__(block)
        assert block.kernel_taps is not None
        with torch.no_grad():
            taps = block.kernel.reversed_taps(block.kernel_taps).mT.unsqueeze(1)  # [D,1,K]
        self.register_buffer("taps", taps.detach().contiguous().clone(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
        u = x.to(self.block.dtype)
        window = torch.cat([state["inputs"], u], 1)
        y = F.conv1d(window.mT, self.taps, groups=u.shape[-1]).mT + self.block.kernel.D * u
        past = self.taps.shape[-1] - 1
        return self.block.gated(y, x.dtype), {"inputs": window[:, window.shape[1] - past :]}


class MambaRecurrence(Recurrence[Mamba]):
    """Mamba: h' = exp(dt A) h + dt B u, y = C . h' + D u, the rest of the block for all tokens at once."""

    A: Tensor

    def __init__(self, block: Mamba):
        super().__init__(block)
        self.register_buffer("A", block.kernel.A().detach().clone(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
        block = self.block
        inner, gate = product(block.in_proj, in_dtype_of(block.in_proj, x, x.dtype)).chunk(2, dim=-1)
        inner = torch.cat([state["conv"], inner.to(block.dtype)], 1)
        u = F.silu(block.conv(inner.mT).mT)  # [B,T,E]
        projected = product(block.x_proj, in_dtype_of(block.x_proj, u, x.dtype))
        dt, B, C = projected.split([block.dt_rank, block.state_size, block.state_size], dim=-1)
        dt = product(block.dt_proj, dt).to(block.dtype)
        if mask is not None:
            dt = dt.masked_fill(~mask.unsqueeze(-1), NO_TIME)
        dt = F.softplus(dt + block.kernel.dt_bias)
        inputs = tuple(one.to(block.dtype).transpose(0, 1).contiguous() for one in (dt, dt * u, B, C))
        (hidden,), y = over_time(self._step, (state["hidden"],), inputs)
        y = (y.transpose(0, 1) + block.kernel.D * u) * F.silu(gate.to(block.dtype))
        past = block.conv_taps - 1
        after = {"conv": inner[:, inner.shape[1] - past :], "hidden": hidden}
        return product(block.out_proj, in_dtype_of(block.out_proj, y, x.dtype)), after

    def _step(self, state: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        dt, dtu, B, C = inputs  # [B,E], [B,E], [B,N], [B,N]
        h = torch.exp(dt.unsqueeze(-1) * self.A) * state[0] + dtu.unsqueeze(-1) * B.unsqueeze(1)
        return (h,), (h * C.unsqueeze(1)).sum(-1)
