"""The cross-modal modulator as its equations say it, token by token: what the grid-side table is compared with."""

import cmath
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cmm import CMMConfig, CrossModalModulator
from ..cmm.s4 import S4Kernel, readout
from ..kernels import reference

SIZES = {"B": 8, "T": 512, "G": 5, "K": 4, "D": 1024, "D_v": 768, "H": 4, "D_h": 32}
PARTS = ("film part", "whole layer")


class _Through(nn.Module):
    """In the place of the SSM and of the FFN: what comes in goes out."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x

    after_norm = forward


def make_layer(part: str, sizes: dict[str, int] = SIZES, dtype: torch.dtype = torch.float32) -> CrossModalModulator:
    """A modulator, or only its film part: the same layer with an SSM and an FFN that do nothing."""
    config = CMMConfig(
        text_width=sizes["D"],
        grid_width=sizes["D_v"],
        heads=sizes["H"],
        head_dim=sizes["D_h"],
        top_k=sizes["K"],
        dropout=0.0,
        grid_positions=False,
    )
    layer = CrossModalModulator(config).to(dtype)
    if part == "film part":
        layer.ssm, layer.ffn = _Through(), _Through(layer.ffn.norm)
    return layer


def by_equations(
    layer: CrossModalModulator, ssm: Callable[[Tensor, Tensor | None], Tensor] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer's function of (text, grids), written from firebolt-vl.md section 2: the context c of each token, then
    W_f c + b_f of each token; `ssm` in the place of the layer's own."""
    config = layer.config
    ssm = ssm or layer.ssm

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (config.heads, config.head_dim))

    def film(x: Tensor, linear: nn.Linear, c: Tensor) -> Tensor:
        gamma, beta = linear(c).chunk(2, -1)
        return x * (1 + layer.gate * gamma) + layer.gate * beta

    def forward(text: Tensor, grids: Tensor) -> Tensor:
        q, k, v = heads(layer.q_proj(text)), heads(layer.k_proj(grids)), layer.v_proj(grids)
        s = torch.einsum("bthd,bghd->bhtg", q, k) / math.sqrt(config.head_dim)
        kept = s.argsort(dim=-1, descending=True, stable=True)[..., : config.top_k]
        a = s.masked_fill(torch.ones_like(s, dtype=torch.bool).scatter(-1, kept, False), -math.inf).softmax(-1)
        c = a.mean(1) @ v
        y = ssm(film(layer.norm_in(text), layer.film_in, c), None)
        r = text + film(y, layer.film_out, c)
        norm = layer.ffn.norm
        normed = F.layer_norm(r, r.shape[-1:], norm.weight, norm.bias, norm.eps)
        return layer.norm_out(r + layer.ffn.after_norm(normed))

    return forward


class NaiveTaps:
    """S4's convolution kernel as the original makes it at every call: Cauchy sums at the roots of unity, written out.

    K^(omega_j) = 2 / (1 + omega) (r_BC - r_BQ r_PC / (1 + r_PQ)),  r_xy = sum over all n of x_n y_n dt / (z - dt w_n)
    with z = 2 (1 - omega) / (1 + omega), and K its inverse Fourier transform. S4 (arXiv 2111.00396), section 3.2.

    What the original keeps in its checkpoints, C (I - dA^`length`) and the nodes, is made once.
    """

    @torch.no_grad()
    def __init__(self, kernel: S4Kernel, length: int = 512):
        self.kernel, self.length = kernel, length
        step, C = kernel.discrete()
        A = step.matrix()
        row = readout(C) @ (torch.eye(A.shape[-1], dtype=A.dtype) - torch.linalg.matrix_power(A, length)) / 2
        self.C = torch.view_as_complex(row.squeeze(-2).unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj()
        # A power in the working precision, as the original has it: exactly -1 would be a pole.
        root = torch.tensor(cmath.exp(-2j * math.pi / length), dtype=self.C.dtype)
        self.nodes = root ** torch.arange(length // 2 + 1)

    def __call__(self, length: int) -> Tensor:
        """The first taps [D, min(length, self.length)]."""
        kernel = self.kernel
        dt = kernel.log_dt.exp()[:, None]
        w = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag) * dt
        B, P = torch.view_as_complex(kernel.B), torch.view_as_complex(kernel.P)
        z = 2 * (1 - self.nodes) / (1 + self.nodes)
        pairs = torch.stack([B * self.C, B * P.conj(), P * self.C, P * P.conj()])
        r_bc, r_bq, r_pc, r_pq = reference.cauchy(pairs, z, w) * dt
        spectrum = 2 / (1 + self.nodes) * (r_bc - r_bq * r_pc / (1 + r_pq))
        return torch.fft.irfft(spectrum, self.length)[:, :length]


class PlainModulator(nn.Module):
    """A CrossModalModulator with S4 in its place, written from the equations: the context and both FiLMs of each token,
    S4's kernel anew at every call and cut at 512 taps, as the original runs."""

    inserts_grids = False

    def __init__(self, layer: CrossModalModulator):
        super().__init__()
        self.layer, taps = layer, NaiveTaps(layer.ssm.kernel)

        def ssm(x: Tensor, mask: Tensor | None) -> Tensor:
            u = x.mT.to(layer.ssm.dtype)
            length, k = 2 * u.shape[-1], taps(u.shape[-1])
            y = torch.fft.irfft(torch.fft.rfft(u, length) * torch.fft.rfft(k, length), length)[..., : u.shape[-1]]
            return layer.ssm.output((y + layer.ssm.kernel.D[:, None] * u).mT)

        self.run = by_equations(layer, ssm)

    def forward(self, text, grids, text_mask=None, grid_mask=None, grid_boxes=None, *, grid_images=None) -> Tensor:
        if self.layer.positions is not None:
            grids = self.layer.positions(grids, grid_boxes, grid_images)
        return self.run(text, grids)
