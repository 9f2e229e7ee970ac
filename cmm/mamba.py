"""Mamba: a selective state-space model, whose step size and matrices depend on the input."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import selective_scan
from ..kernels.autocast import without_autocast
from ..kernels.checks import check_integer
from .block import SSMBlock, tied_dropout
from .compaction import window_before
from .linear import in_dtype_of, product
from .precision import WideParameters
from .sequences import Sequences

# Its softplus is 0, exactly: a masked position takes no time.
NO_TIME = -1e4


class MambaKernel(WideParameters):
    """A = -exp(A_log) [E, N], skip D [E] and the bias of the time steps [E], E the inner width."""

    def __init__(self, inner_width: int, state_size: int, dt_min: float, dt_max: float):
        super().__init__()
        self.dt_min, self.dt_max = dt_min, dt_max
        self.A_log = self.new_parameter(inner_width, state_size)
        self.D = self.new_parameter(inner_width)
        self.dt_bias = self.new_parameter(inner_width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """S4D-Real, A_n = -n; softplus(dt_bias) log-uniform; D one."""
        state_size = self.A_log.shape[-1]
        self.A_log.copy_(torch.arange(1, state_size + 1, dtype=torch.float64).log())
        self.D.fill_(1)
        dt = self.dt_bias.uniform_(math.log(self.dt_min), math.log(self.dt_max)).exp().clamp(min=1e-4)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus inverted

    def A(self) -> Tensor:
        return self.derived("A", lambda: -self.A_log.exp())


class ShiftedConv1d(nn.Conv1d):
    """`nn.Conv1d` of each channel alone, as a sum of shifted products in the dtype of its input.

        y_t = sum over j < K of w_j x_(t+j) + b                     x [B,E,K-1+T] -> [B,E,T]

    The same arithmetic for one position as for many, in every dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.groups < self.in_channels:  # an adapter makes its own of this class, over all channels
            return super().forward(input)
        taps, length = self.weight.squeeze(1).to(input.dtype), input.shape[-1] - self.kernel_size[0] + 1
        assert self.bias is not None
        shifted = (taps[:, j, None] * input[..., j : j + length] for j in range(self.kernel_size[0]))
        return sum(shifted, self.bias.to(input.dtype)[:, None])


class Mamba(SSMBlock):
    """x, z = in_proj(x);  x = silu(conv(x));  dt, B, C = x_proj(x);  y = out_proj(scan(x, dt, B, C) silu(z)).

    Arguments:
        width: channels D; inside there are `expand` times as many.
        state_size: N of each inner channel.
        conv_taps: taps of the short causal convolution.
        dropout: before out_proj, one mask for all times.
        dt_min, dt_max: range of the initial time steps.

    Source: Gu, Dao 2023 (arXiv 2312.00752), figure 3 and section 3.6.
    """

    def __init__(
        self,
        width: int,
        state_size: int | None = None,
        *,
        conv_taps: int = 4,
        expand: int = 2,
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ):
        super().__init__(width, dropout)
        self.state_size = 16 if state_size is None else state_size
        for name, value in (("state_size", self.state_size), ("conv_taps", conv_taps), ("expand", expand)):
            check_integer("Mamba", name, value, at_least=1)
        self.conv_taps = conv_taps
        self.inner_width = expand * width
        self.dt_rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * self.inner_width, bias=False)
        self.conv = ShiftedConv1d(self.inner_width, self.inner_width, conv_taps, groups=self.inner_width)
        self.x_proj = nn.Linear(self.inner_width, self.dt_rank + 2 * self.state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.inner_width, bias=False)
        self.kernel = MambaKernel(self.inner_width, self.state_size, dt_min, dt_max)
        self.out_proj = nn.Linear(self.inner_width, width, bias=False)
        self.kernel.reset_parameters()
        self._reset_dt_proj()

    def reset_parameters(self) -> None:
        for module in (self.in_proj, self.conv, self.x_proj, self.kernel, self.out_proj):
            module.reset_parameters()
        self._reset_dt_proj()

    def _reset_dt_proj(self) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel.D.dtype

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.conv_taps - 1, self.inner_width), "hidden": (self.inner_width, self.state_size)}

    def _run(self, x, packing, state, need_state):
        past = self.conv_taps - 1
        inner, gate = self._project(x)
        if packing.sequences is not None:
            return self._mix_packed(inner, gate, packing.sequences, x.dtype), None
        inner = F.pad(inner, (0, 0, past, 0)) if state is None else torch.cat([state["conv"], inner], 1)
        kept = None if packing.mask is None else packing.packed_mask
        y, hidden = self._mix(inner, gate, kept, None if state is None else state["hidden"], x.dtype)
        if not need_state:
            return y, None
        return y, {"conv": window_before(inner, packing.lengths + past, past), "hidden": hidden}

    def _run_step(self, x, state):
        inner, gate = self._project(x.unsqueeze(1))
        inner = torch.cat([state["conv"], inner], 1)
        y, hidden = self._mix(inner, gate, None, state["hidden"], x.dtype)
        return y.squeeze(1), {"conv": inner[:, 1:], "hidden": hidden}

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> what goes into the convolution and what gates the output, both [B, T, E]."""
        inner, gate = product(self.in_proj, in_dtype_of(self.in_proj, x, x.dtype)).chunk(2, dim=-1)
        return inner.to(self.dtype), gate

    def _mix(
        self, inner: Tensor, gate: Tensor, kept: Tensor | None, hidden: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """inner [B, conv_taps - 1 + T, E], gate [B, T, E], kept [B, T] -> (y [B, T, D], hidden state [B, E, N])."""
        return self._scan(F.silu(self.conv(inner.mT).mT), gate, kept, hidden, dtype)

    def _mix_packed(self, inner: Tensor, gate: Tensor, sequences: Sequences, dtype: torch.dtype) -> Tensor:
        """inner, gate [1, T, E] -> y [1, T, D], for sequences packed into the row."""
        past = self.conv_taps - 1
        shifted = F.pad(self.conv(sequences.with_gaps(inner, past).mT), (past, 0)).mT
        x = F.silu(sequences.without_gaps(shifted, past))
        return self._scan(x, gate, None, None, dtype, sequences)[0]

    def _scan(
        self,
        x: Tensor,
        gate: Tensor,
        kept: Tensor | None,
        hidden: Tensor | None,
        dtype: torch.dtype,
        sequences: Sequences | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, E] behind its convolution -> (y [B, T, D], hidden state [B, E, N]); the others as in `_mix`."""
        projected = product(self.x_proj, in_dtype_of(self.x_proj, x, dtype))
        dt, B, C = projected.split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        dt = product(self.dt_proj, dt).to(self.dtype)
        if kept is not None:
            dt = dt.masked_fill(~kept.unsqueeze(-1), NO_TIME)
        with without_autocast(x.device):
            y, hidden = selective_scan(
                x.mT,
                dt.mT,
                self.kernel.A(),
                B.mT.to(self.dtype),
                C.mT.to(self.dtype),
                self.kernel.D,
                z=gate.mT.to(self.dtype),
                delta_bias=self.kernel.dt_bias,
                delta_softplus=True,
                return_last_state=True,
                initial_state=hidden,
                cu_seqlens=None if sequences is None else sequences.cu_seqlens,
            )
        y = tied_dropout(y.mT, self.dropout, self.training, sequences)
        return product(self.out_proj, in_dtype_of(self.out_proj, y, dtype)), hidden
