"""S4: a state-space model with a diagonal-plus-rank-one state matrix, LegS-initialised and bilinearly discretised."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import fft_conv
from ..kernels.autocast import without_autocast
from ..kernels.checks import check_integer
from ..kernels.symbolic import varies
from .block import GatedSSMBlock, check_present, check_state_size
from .compaction import Packing, window_before
from .dplr import (
    Chunk,
    Discrete,
    chunked,
    column,
    discretise,
    kernel,
    readout,
    response_to_inputs,
    response_to_state,
    unfold,
)
from .hippo import clip_imaginary, nplr
from .precision import WideParameters


class S4Kernel(WideParameters):
    """The state-space model of each channel: A = diag(-exp(log_A_real) + i A_imag) - P P^H, and B, C, dt, skip D."""

    def __init__(self, width: int, state_size: int, dt_min: float, dt_max: float):
        super().__init__()
        self.dt_min, self.dt_max = dt_min, dt_max
        modes = state_size // 2
        self.log_dt = self.new_parameter(width)
        self.log_A_real = self.new_parameter(width, modes)
        self.A_imag = self.new_parameter(width, modes)
        self.P = self.new_parameter(width, modes, 2)
        self.B = self.new_parameter(width, modes, 2)
        self.C = self.new_parameter(width, modes, 2)
        self.D = self.new_parameter(width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """HiPPO-LegS, the same for every channel; dt log-uniform, C and D normal."""
        w, P, B, _ = nplr(2 * self.A_imag.shape[-1])
        self.log_A_real.copy_(torch.from_numpy(-w.real).log())
        self.A_imag.copy_(torch.from_numpy(w.imag))
        self.P.copy_(torch.view_as_real(torch.from_numpy(P)))
        self.B.copy_(torch.view_as_real(torch.from_numpy(clip_imaginary(B))))
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        self.C.normal_(std=math.sqrt(0.5))
        self.D.normal_()

    def discrete(self) -> tuple[Discrete, Tensor]:
        """(one time step, C [D, N/2] complex)"""
        return self.derived("discrete", lambda: self._discretise(self.D.dtype))

    def real_step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(diagonal [D, N/2] complex; g, h, dB, C [D, N]): dA s = diagonal s - g (h . s), y = C . s on real vectors."""
        return self.derived("real step", self._real_step)

    def taps(self, length: int) -> Tensor:
        """The convolution kernel [D, length]."""
        return self.taps_of(length, self._taps)

    def reversed_taps(self, length: int) -> Tensor:
        """K_(length-1), ..., K_0 as [length, D]: what a window of inputs is weighed by."""
        return self.derived(("reversed", length), lambda: self.taps(length).flip(-1).mT.contiguous())

    def chunk(self) -> Chunk:
        return self.derived("chunk", self._chunk)

    def in_float64(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(w, P, B, C [D, N/2] complex128, dt [D] float64): the model in continuous time, and its time step."""
        w = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        P, B, C = (torch.view_as_complex(parameter.double()) for parameter in (self.P, self.B, self.C))
        return w, P, B, C, self.log_dt.double().exp()

    def _real_step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        step, C = self.discrete()
        return step.diagonal, column(step.g), readout(step.h).squeeze(-2), column(step.dB), readout(C).squeeze(-2)

    def _taps(self, length: int) -> Tensor:
        return kernel(*self._discretise(self._dtype_of_powers), length).to(self.D.dtype)

    def _chunk(self) -> Chunk:
        return Chunk(*(table.to(self.D.dtype) for table in chunked(*self._discretise(self._dtype_of_powers))))

    @property
    def _dtype_of_powers(self) -> torch.dtype:
        # On a GPU float32 products may be TF32's, if its owner says so, and squaring doubles their error each time.
        return torch.float64 if self.D.is_cuda else self.D.dtype

    def _discretise(self, dtype: torch.dtype) -> tuple[Discrete, Tensor]:
        # In float64, since every power of the step multiplies what is lost here, and it is few numbers.
        w, P, B, C, dt = self.in_float64()
        step = discretise(w, P, B, dt)
        narrow = torch.promote_types(dtype, torch.complex64)
        return Discrete(*(coefficient.to(narrow) for coefficient in step)), C.to(narrow)


class S4(GatedSSMBlock):
    """y = GLU(Linear(GELU(K * x + D x))), K the kernel of one DPLR state-space model a channel.

    Arguments:
        width: channels D.
        state_size: N, even; N/2 conjugate modes are stored.
        kernel_taps: None lets a token see everything before it. An integer cuts the kernel to so many taps, as the
            original does; the state is then that many inputs, since a truncated kernel has no O(1) state.
        dropout: before the Linear, one mask for all times.
        dt_min, dt_max: range of the initial time steps.

    Source: Gu, Goel, Re 2021 (arXiv 2111.00396).
    """

    def __init__(
        self,
        width: int,
        state_size: int | None = None,
        *,
        kernel_taps: int | None = None,
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ):
        super().__init__(width, dropout)
        self.state_size = 64 if state_size is None else state_size
        check_state_size(type(self).__name__, self.state_size)
        if kernel_taps is not None:
            check_integer("S4", "kernel_taps", kernel_taps, at_least=1)
        self.kernel_taps = kernel_taps
        self.kernel = S4Kernel(width, self.state_size, dt_min, dt_max)
        self.kernel.reset_parameters()

    def reset_parameters(self) -> None:
        self.kernel.reset_parameters()
        self.output.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel.D.dtype

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.kernel_taps is not None:
            return {"inputs": (self.kernel_taps - 1, self.width)}
        return {"modes": (self.width, self.state_size // 2, 2)}

    def product_weights(self) -> Tensor | None:
        """Weights [D, P - 1] of the products of 2 .. P neighbouring inputs; here there are none."""
        return None

    def _run(self, x, packing, state, need_state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            if self.kernel_taps is None:
                y, state = self._convolve(u, packing, state, need_state)
            else:
                y, state = self._convolve_truncated(u, self.kernel_taps, packing, state, need_state)
        return self.gated(y, x.dtype, packing.sequences), state

    def _run_step(self, x, state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            if self.kernel_taps is None:
                y, state = self._advance(u, state)
            else:
                y, state = self._advance_truncated(u, self.kernel_taps, state)
        return self.gated(y.unsqueeze(1), x.dtype).squeeze(1), state

    def _convolve(
        self, u: Tensor, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        taps, weights = self.kernel.taps(packing.longest), self.product_weights()
        y = fft_conv(u.mT, taps, self.kernel.D, product_weights=weights, cu_seqlens=packing.cu_seqlens)
        if not need_state:
            return y.mT, None
        step, _ = self.kernel.discrete()
        chunk = self.kernel.chunk()
        final = response_to_inputs(packing.right_from_left(u), chunk)
        if state is not None:
            before = torch.view_as_complex(state["modes"])
            lengths = None if packing.mask is None else packing.lengths
            decay, remains = response_to_state(before, u.shape[1], lengths, step, chunk)
            y, final = y + decay, final + remains
        return y.mT, {"modes": torch.view_as_real(final)}

    def _advance(self, u: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        diagonal, g, h, dB, C = self.kernel.real_step()
        modes = state["modes"]
        s = torch.view_as_real(diagonal * torch.view_as_complex(modes)).flatten(-2)
        # Real and in place: a step's time goes into temporaries of the state's size.
        s = s.addcmul_(dB, u.unsqueeze(-1)).addcmul_(g, (h * modes.flatten(-2)).sum(-1, keepdim=True), value=-1)
        return (C * s).sum(-1) + self.kernel.D * u, {"modes": s.unflatten(-1, (-1, 2))}

    def _convolve_truncated(
        self, u: Tensor, taps: int, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        T, past = u.shape[1], taps - 1
        if state is not None:
            u = torch.cat([state["inputs"], u], 1)
        wanted = taps if varies(u.shape[1]) else min(packing.longest + u.shape[1] - T, taps)
        y = fft_conv(u.mT, self.kernel.taps(wanted), self.kernel.D, cu_seqlens=packing.cu_seqlens).mT[:, -T:]
        if not need_state:
            return y, None
        if state is None:
            u = F.pad(u, (0, 0, past, 0))
        return y, {"inputs": window_before(u, packing.lengths + past, past)}

    def _advance_truncated(self, u: Tensor, taps: int, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        window = torch.cat([state["inputs"], u.unsqueeze(1)], 1)
        y = (window * self.kernel.reversed_taps(taps)).sum(1) + self.kernel.D * u
        return y, {"inputs": window[:, 1:]}

    @staticmethod
    def original_parameters(original: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original block's state dict (names without prefix) -> this class's, in the same dtype.

        The original stores log dt as `inv_dt` and C folded by (I - dA^l_kernel), 0 meaning not folded; it is unfolded
        in float64. Raises ValueError naming a tensor that is missing.
        """
        wanted = [f"layer.kernel.{name}" for name in ("inv_dt", "A_real", "A_imag", "P", "B", "C", "l_kernel")]
        wanted += ["layer.D", "output_linear.0.weight", "output_linear.0.bias"]
        check_present(original, wanted)
        inv_dt, A_real, A_imag, P, B, C, folded, D, weight, bias = (original[name] for name in wanted)
        for name, tensor in (("P", P), ("B", B), ("C", C), ("D", D)):
            if tensor.shape[0] != 1:
                raise ValueError(
                    f"original_parameters: layer.{name} has shape {list(tensor.shape)}; expected 1 on the first axis"
                )
        P, B, C, D = P[0], B[0], C[0], D[0]
        if folded > 0:
            w = torch.complex(-A_real.double().exp(), -A_imag.double())
            wide_P, wide_B = (torch.view_as_complex(x.double()) for x in (P, B))
            step = discretise(w, wide_P, wide_B, inv_dt[:, 0].double().exp())
            C = torch.view_as_real(unfold(torch.view_as_complex(C.double()), step, int(folded))).to(C.dtype)
        return {
            "kernel.log_dt": inv_dt[:, 0],
            "kernel.log_A_real": A_real,
            "kernel.A_imag": -A_imag,
            "kernel.P": P,
            "kernel.B": B,
            "kernel.C": C,
            "kernel.D": D,
            "output.weight": weight[..., 0],
            "output.bias": bias,
        }
