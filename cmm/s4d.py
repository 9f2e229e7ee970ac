"""S4D: a state-space model with a diagonal state matrix, discretised by zero-order hold."""

import math

import torch
from torch import Tensor

from ..kernels import diagonal_scan, fft_conv, vandermonde
from ..kernels.autocast import without_autocast
from ..kernels.implementation import choose
from .block import GatedSSMBlock, check_present, check_state_size
from .precision import WideParameters


def zero_order_hold(A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """A [D, n] complex, dt [D] real -> (log z = dt A, b = (exp(dt A) - 1) / A), both [D, n].

    exp(x + iy) - 1 as its real part expm1(x) cos y - 2 sin^2(y/2) and imaginary part exp(x) sin y, so that a small
    step loses nothing to cancellation.
    """
    log_z = dt.unsqueeze(-1) * A
    x, y = log_z.real, log_z.imag
    expm1 = torch.complex(torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y))
    return log_z, expm1 / A


def scan_is_faster(u: Tensor) -> bool:
    """Tell whether a whole sequence u runs as a scan of its modes even where no state is asked for.

    The scan's Triton kernel takes the inputs through memory once at any length, and does a few hundred operations for
    each. A convolution needs taps, as long as the sequence, and their spectrum first, and takes the inputs through
    memory again for each pass of its transforms. Counted, not yet measured. The PyTorch forms on a CPU are measured:
    there the convolution is ahead.
    """
    return choose("diagonal_scan", u) == "triton"


class S4DKernel(WideParameters):
    """The state-space model of each channel: A = -exp(log_A_real) + i A_imag, B = 1, and C, dt, skip D."""

    def __init__(self, width: int, state_size: int, dt_min: float, dt_max: float):
        super().__init__()
        self.dt_min, self.dt_max = dt_min, dt_max
        modes = state_size // 2
        self.log_dt = self.new_parameter(width)
        self.log_A_real = self.new_parameter(width, modes)
        self.A_imag = self.new_parameter(width, modes)
        self.C = self.new_parameter(width, modes, 2)
        self.D = self.new_parameter(width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """S4D-Lin, A_n = -1/2 + i pi n, the same for every channel; dt log-uniform, C and D normal."""
        modes = self.A_imag.shape[-1]
        self.log_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(math.pi * torch.arange(modes, dtype=torch.float64))
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        self.C.normal_(std=math.sqrt(0.5))
        self.D.normal_()

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(log z, z, b, c), all [D, N/2] complex: h_t = z h_{t-1} + b u_t, y_t = 2 Re(c . h_t)"""
        return self.derived("discrete", self._discretise)

    def taps(self, length: int) -> Tensor:
        """K_l = 2 Re sum_n c_n b_n z_n^l [D, length]."""
        return self.taps_of(length, self._kernel)

    def _kernel(self, length: int) -> Tensor:
        log_z, _, b, c = self.discrete()
        return vandermonde(c * b, log_z, length)

    def _discretise(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # In float64, since every power of z multiplies what is lost here, and it is few numbers.
        A = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        log_z, b = zero_order_hold(A, self.log_dt.double().exp())
        c = torch.view_as_complex(self.C)
        return log_z.to(c.dtype), torch.exp(log_z).to(c.dtype), b.to(c.dtype), c


class S4D(GatedSSMBlock):
    """y = GLU(Linear(GELU(K * x + D x))), K the kernel of one diagonal state-space model a channel.

    Arguments:
        width: channels D.
        state_size: N, even; N/2 conjugate modes are stored.
        dropout: before the Linear, one mask for all times.
        dt_min, dt_max: range of the initial time steps.

    Source: Gu, Gupta, Goel, Re 2022 (arXiv 2206.11893), in the form of Firebolt-VL.
    """

    def __init__(
        self,
        width: int,
        state_size: int | None = None,
        *,
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ):
        super().__init__(width, dropout)
        self.state_size = 64 if state_size is None else state_size
        check_state_size("S4D", self.state_size)
        self.kernel = S4DKernel(width, self.state_size, dt_min, dt_max)
        self.kernel.reset_parameters()

    def reset_parameters(self) -> None:
        self.kernel.reset_parameters()
        self.output.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel.D.dtype

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"modes": (self.width, self.state_size // 2, 2)}

    def _run(self, x, packing, state, need_state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            if need_state or scan_is_faster(u):
                y, state = self._scan(u, packing, state, need_state)
            else:
                y = fft_conv(u.mT, self.kernel.taps(packing.longest), self.kernel.D, cu_seqlens=packing.cu_seqlens).mT
        return self.gated(y, x.dtype, packing.sequences), state

    def _run_step(self, x, state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            _, z, b, c = self.kernel.discrete()
            before = torch.view_as_complex(state["modes"])
            y, after = diagonal_scan(u.unsqueeze(-1), z, b, c, self.kernel.D, before)
        return self.gated(y.mT, x.dtype).squeeze(1), {"modes": torch.view_as_real(after)}

    def _scan(self, u, packing, state, need_state):
        log_z, z, b, c = self.kernel.discrete()
        before = None if state is None else torch.view_as_complex(state["modes"])
        y, after = diagonal_scan(u.mT, z, b, c, self.kernel.D, before, cu_seqlens=packing.cu_seqlens)
        if not need_state:
            return y.mT, None
        if packing.mask is not None:
            # A shorter row's state went on to decay through the zeros after its end: take it where all rows end alike.
            _, after = diagonal_scan(packing.right_from_left(u).mT, z, b, c)
            if before is not None:
                after = after + torch.exp(log_z * packing.lengths[:, None, None]) * before
        return y.mT, {"modes": torch.view_as_real(after)}

    @staticmethod
    def original_parameters(original: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original block's state dict (names without prefix) -> this class's; ValueError where one is missing."""
        names = {f"kernel.{name}": f"kernel.{name}" for name in ("log_dt", "log_A_real", "A_imag", "C")}
        names |= {"D": "kernel.D", "output_linear.0.weight": "output.weight", "output_linear.0.bias": "output.bias"}
        check_present(original, list(names))
        ours = {new: original[old] for old, new in names.items()}
        return {**ours, "output.weight": ours["output.weight"][..., 0]}
