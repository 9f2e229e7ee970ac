"""S4: a state-space model with a diagonal-plus-rank-one state matrix, LegS-initialised and bilinearly discretised."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import fft_conv
from ..kernels.common.autocast import without_autocast
from .block import GatedOutput, SSMBlock, check_present
from .compaction import Packing, window_before
from .hippo import clip_imaginary, nplr
from .precision import WideParameters

# Tokens that a prompt's state is advanced by at once: one [N, N] and one [N, CHUNK] product a channel.
CHUNK = 64


class Discrete(NamedTuple):
    """One time step on the stored half of the modes: s' = dA s + dB u with dA s = diagonal s - g 2 Re(h . s).

    All complex [D, N/2].
    """

    diagonal: Tensor
    g: Tensor
    h: Tensor
    dB: Tensor

    def advance(self, s: Tensor) -> Tensor:
        """dA s for s [B, D, N/2]: a diagonal plus a rank-one matrix, so O(N)."""
        return self.diagonal * s - self.g * both_halves(self.h * s)

    def matrix(self) -> Tensor:
        """dA [D, N, N] on states as real vectors (Re s_0, Im s_0, Re s_1, ...)."""
        re, im = self.diagonal.real, self.diagonal.imag
        blocks = torch.stack([torch.stack([re, -im], -1), torch.stack([im, re], -1)], -2)  # [D, N/2, 2, 2]
        identity = torch.eye(re.shape[-1], dtype=re.dtype, device=re.device)
        diagonal = torch.einsum("dnij,nm->dnimj", blocks, identity).flatten(3, 4).flatten(1, 2)
        return diagonal - 2 * column(self.g).unsqueeze(-1) * column(self.h.conj()).unsqueeze(-2)


def discretise(w: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> Discrete:
    """The bilinear rule for A = diag(w) - P P^H over both halves of the modes; w, P, B [D, N/2] complex, dt [D] real.

        dA = (2/dt - A)^-1 (2/dt + A),   dB = (2/dt - A)^-1 2 B

    By Woodbury (2/dt - A)^-1 = E - r E P P^H E with E = 1 / (2/dt - w) and r = 1 / (1 + P^H E P), whence
    diagonal = E (2/dt + w), g = r E P, h = conj(P) (1 + diagonal) and dB = 2 E B - g P^H 2 E B.
    S4 (arXiv 2111.00396), appendix C.
    """
    rate = (2 / dt).unsqueeze(-1)
    E = 1 / (rate - w)
    EP, EB = E * P, 2 * E * B
    g = EP / (1 + both_halves(P.conj() * EP))
    h = P.conj() * (2 * rate * E)  # 1 + diagonal without the cancellation
    return Discrete(E * (rate + w), g, h, EB - g * both_halves(P.conj() * EB))


def both_halves(x: Tensor) -> Tensor:
    """The sum over all N modes, of which x [..., N/2] holds one of each conjugate pair: 2 Re sum x."""
    return 2 * x.sum(-1, keepdim=True).real


def column(x: Tensor) -> Tensor:
    """Complex [..., N/2] as a real vector [..., N]."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def readout(C: Tensor) -> Tensor:
    """The row [..., 1, N] whose product with a state's `column` is 2 Re(C . s)."""
    return 2 * column(C.conj()).unsqueeze(-2)


class Chunk(NamedTuple):
    """What CHUNK tokens do at once, on states as rows [D, B, N]: a row times a matrix is what a CPU does fastest."""

    inputs: Tensor
    """(dA^(CHUNK-1-j) dB)^T [D, CHUNK, N]: inputs [D, B, CHUNK] -> the state they leave."""
    outputs: Tensor
    """(C dA^(j+1))^T [D, N, CHUNK]: a state -> the outputs it leaves."""
    power: Tensor
    """(dA^CHUNK)^T [D, N, N]: a state -> the state it leaves."""


def chunked(step: Discrete, C: Tensor, size: int = CHUNK) -> Chunk:
    """By doubling (size is a power of two): log2(size) squarings of dA, the rest follows in as many products.

    dA never expands a state (A + A^H is negative definite), so its powers lose nothing in float32.
    """
    power = step.matrix().mT
    inputs, outputs = column(step.dB).unsqueeze(-2), (readout(C) @ power.mT).mT
    while inputs.shape[-2] < size:
        inputs = torch.cat([inputs @ power, inputs], -2)
        outputs = torch.cat([outputs, power @ outputs], -1)
        power = power @ power
    return Chunk(inputs, outputs, power.contiguous())


def kernel(step: Discrete, C: Tensor, length: int) -> Tensor:
    """K_l = 2 Re(C dA^l dB), l < length -> [D, length].

    With l = b i + j the product of the rows C dA^(b i) and the columns dA^j dB, b about sqrt(length). Exact for every
    length and without the generating function, whose correction (I - dA^length) needs such powers anyway: at D = 1024,
    N = 64 on one core 70 ms against 1 s (length 512) and 0.15 s against 6 s (2048), and in float32 two to forty times
    closer to float64 than the original's (7e-7 against 3e-5 at N = 64, length 512).
    """
    A, columns = step.matrix(), column(step.dB).unsqueeze(-1)
    for _ in range(round(math.log2(length) / 2)):
        columns = torch.cat([columns, A @ columns], -1)
        A = A @ A
    rows = [readout(C)]
    while len(rows) * columns.shape[-1] < length:
        rows.append(rows[-1] @ A)
    return (torch.cat(rows, -2) @ columns).flatten(-2)[:, :length]


def unfold(C: Tensor, step: Discrete, length: int) -> Tensor:
    """The original stores C (I - dA^length): the C it stands for. C [D, N/2] complex, in its own precision."""
    A = step.matrix()
    folding = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - torch.linalg.matrix_power(A, length)
    row = torch.linalg.solve(folding, readout(C), left=False) / 2
    return torch.view_as_complex(row.squeeze(-2).unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj()


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
        """The convolution kernel [D, length]; what is kept is as long as the next power of two, and sliced."""
        if self.records_gradients:
            return self._taps(length)
        longer = 1 << (length - 1).bit_length()
        return self.derived(("taps", longer), lambda: self._taps(longer))[:, :length]

    def reversed_taps(self, length: int) -> Tensor:
        """K_(length-1), ..., K_0 as [length, D]: what a window of inputs is weighed by."""
        return self.derived(("reversed", length), lambda: self.taps(length).flip(-1).mT.contiguous())

    def chunk(self) -> Chunk:
        return self.derived("chunk", self._chunk)

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
        w = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        P, B, C = (torch.view_as_complex(parameter.double()) for parameter in (self.P, self.B, self.C))
        step = discretise(w, P, B, self.log_dt.double().exp())
        narrow = torch.promote_types(dtype, torch.complex64)
        return Discrete(*(coefficient.to(narrow) for coefficient in step)), C.to(narrow)


class S4(SSMBlock):
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
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"state_size: an even number >= 2 wanted, {state_size} found")
        if kernel_taps is not None and kernel_taps < 1:
            raise ValueError(f"kernel_taps: None or at least 1 wanted, {kernel_taps} found")
        self.kernel_taps = kernel_taps
        self.kernel = S4Kernel(width, self.state_size, dt_min, dt_max)
        self.output = GatedOutput(width, dropout)
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

    def _run(self, x, packing, state, need_state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            run = self._convolve if self.kernel_taps is None else self._convolve_truncated
            y, state = run(u, packing, state, need_state)
        return self.output(y), state

    def _run_step(self, x, state):
        u = x.to(self.dtype)
        with without_autocast(x.device):
            y, state = (self._advance if self.kernel_taps is None else self._advance_truncated)(u, state)
        return self.output(y.unsqueeze(1)).squeeze(1), state

    def _convolve(
        self, u: Tensor, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        y = fft_conv(u.mT, self.kernel.taps(u.shape[1]), self.kernel.D)
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
        self, u: Tensor, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        T, past = u.shape[1], self.kernel_taps - 1
        if state is not None:
            u = torch.cat([state["inputs"], u], 1)
        y = fft_conv(u.mT, self.kernel.taps(min(u.shape[1], self.kernel_taps)), self.kernel.D).mT[:, -T:]
        if not need_state:
            return y, None
        if state is None:
            u = F.pad(u, (0, 0, past, 0))
        return y, {"inputs": window_before(u, packing.lengths + past, past)}

    def _advance_truncated(self, u: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        window = torch.cat([state["inputs"], u.unsqueeze(1)], 1)
        y = (window * self.kernel.reversed_taps(self.kernel_taps)).sum(1) + self.kernel.D * u
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
                raise ValueError(f"layer.{name}: first axis 1 (rank and channels) wanted, {tuple(tensor.shape)} found")
        P, B, C, D = P[0], B[0], C[0], D[0]
        if folded > 0:
            w = torch.complex(-A_real.double().exp(), -A_imag.double())
            step = discretise(w, *(torch.view_as_complex(x.double()) for x in (P, B)), inv_dt[:, 0].double().exp())
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


def response_to_inputs(u: Tensor, chunk: Chunk) -> Tensor:
    """The state after u [B, T, D] from nothing, T tokens a row (leading zeros do nothing) -> complex [B, D, N/2]."""
    u = u.permute(2, 0, 1).contiguous()  # [D, B, T]
    first = (u.shape[-1] - 1) % CHUNK + 1
    s = u[..., :first].contiguous() @ chunk.inputs[:, CHUNK - first :]
    whole = u[..., first:].unflatten(-1, (-1, CHUNK))  # [D, B, chunks, CHUNK]
    left = (whole.flatten(1, 2) @ chunk.inputs).unflatten(1, whole.shape[1:3])
    for left_by_chunk in left.unbind(2):
        s = s @ chunk.power + left_by_chunk
    return as_modes(s)


def response_to_state(
    s: Tensor, time: int, lengths: Tensor | None, step: Discrete, chunk: Chunk
) -> tuple[Tensor, Tensor]:
    """What a state s [B, D, N/2] does when nothing else comes in.

    Returns y_l = 2 Re(C dA^(l+1) s), l < time [B, D, time], and the state after `time` tokens, or after each row's
    `lengths` [B]: whole chunks by dA^CHUNK, what remains by single steps.
    """
    s = column(s).transpose(0, 1)  # [D, B, N]
    outputs, after = [], s
    for start in range(0, time, CHUNK):
        outputs.append(s @ chunk.outputs[..., : time - start])
        if start + CHUNK <= time:
            s = s @ chunk.power
            after = s if lengths is None else torch.where((lengths >= start + CHUNK).unsqueeze(-1), s, after)
    after = as_modes(after)
    for t in range(time % CHUNK if lengths is None else min(time, CHUNK - 1)):
        stepped = step.advance(after)
        after = stepped if lengths is None else torch.where((lengths % CHUNK > t)[:, None, None], stepped, after)
    return torch.cat(outputs, -1).transpose(0, 1), after


def as_modes(s: Tensor) -> Tensor:
    """Real rows [D, B, N] -> complex [B, D, N/2], what `column` undoes."""
    return torch.view_as_complex(s.transpose(0, 1).unflatten(-1, (-1, 2)).contiguous())
