"""The cross-modal modulator and its S4 block as their equations say it, and their linear maps alone: what the layers
are compared with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cmm import S4, CMMConfig, CrossModalModulator
from ..cmm.config import MODULATOR_FIELDS, check_defaults
from ..cmm.dplr import readout
from ..cmm.s4 import S4Kernel
from ..kernels import reference

SIZES = {"B": 8, "T": 512, "G": 5, "K": 4, "D": 1024, "D_v": 768, "H": 4, "D_h": 32}
BLOCK = "S4 block"
CASES = (
    ("film part", SIZES),
    ("whole layer", SIZES),
    ("whole layer", {**SIZES, "B": 1, "T": 32}),
    (BLOCK, {"B": 8, "T": 512, "D": 1024, "N": 64}),
)


class _Through(nn.Module):
    """Identity in the place of the SSM and of the FFN."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x

    after_norm = forward


def make_layer(part: str, sizes: dict[str, int], dtype: torch.dtype = torch.float32) -> CrossModalModulator | S4:
    """A modulator, or only its film part: the same layer with an SSM and an FFN that do nothing. Or its S4 block."""
    if part == BLOCK:
        return S4(sizes["D"], sizes["N"]).to(dtype)
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


def by_equations(layer: CrossModalModulator | S4, T: int) -> Callable[..., Tensor]:
    """The layer's function of its inputs, T tokens, written from its equations."""
    return block_by_formulas(layer, T) if isinstance(layer, S4) else modulator_by_equations(layer, layer.ssm)


def modulator_by_equations(
    layer: CrossModalModulator, ssm: Callable[[Tensor, Tensor | None], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer's function of (text, grids) by its equations (docs/mathematics.md, section 2): the context c of each
    token, then W_f c + b_f of each token; `ssm` in the place of the layer's own."""
    config = layer.config

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
    """S4's taps as the original makes them at every call: Cauchy sums at the roots of unity, written out.

    K^(omega_j) = 2 / (1 + omega) (r_BC - r_BP* r_PC / (1 + r_PP*)),  r_xy = sum over all n of x_n y_n dt / (z - dt w_n)
    with z = 2 (1 - omega) / (1 + omega), at omega = -1 its limit, and K its inverse Fourier transform. S4
    (arXiv 2111.00396), section 3.2 and appendix C. What the original keeps in its checkpoints, C (I - dA^length), and
    the nodes are made once.
    """

    @torch.no_grad()
    def __init__(self, kernel: S4Kernel, length: int = 512):
        self.kernel, self.length = kernel, length
        step, C = kernel.discrete()
        row = readout(C).double()
        row = row - row @ torch.linalg.matrix_power(step.matrix().double(), length)
        C = torch.view_as_complex((row.squeeze(-2) / 2).unflatten(-1, (-1, 2))).conj()
        angles = 2 * math.pi * torch.arange(length // 2, dtype=torch.float64, device=C.device) / length
        omega = torch.polar(torch.ones_like(angles), -angles)
        self.C, self.omega = (x.to(torch.promote_types(kernel.D.dtype, torch.complex64)) for x in (C, omega))

    def __call__(self, length: int) -> Tensor:
        """The first taps [D, min(length, self.length)]."""
        kernel, C, omega = self.kernel, self.C, self.omega
        dt = kernel.log_dt.exp()[:, None]
        w = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag) * dt
        B, P = torch.view_as_complex(kernel.B), torch.view_as_complex(kernel.P)
        numerators = dt * torch.stack([B * C, B * P.conj(), P * C, P * P.conj()])
        r00, r01, r10, r11 = reference.cauchy(numerators, 2 * (1 - omega) / (1 + omega), w)
        spectrum = (r00 - r01 * r10 / (1 + r11)) * 2 / (1 + omega)
        nyquist = numerators[0].sum(-1, keepdim=True).real.to(spectrum.dtype)
        return torch.fft.irfft(torch.cat([spectrum, nyquist], -1), n=self.length)[:, :length]


def block_by_formulas(block: S4, taps: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The block with `NaiveTaps`, so many of them, and torch.fft."""
    naive = NaiveTaps(block.kernel, taps)

    def forward(x: Tensor, mask: Tensor | None = None) -> Tensor:
        u = x.mT.to(block.dtype)
        length, k = 2 * u.shape[-1], naive(u.shape[-1])
        y = torch.fft.irfft(torch.fft.rfft(u, length) * torch.fft.rfft(k, length), length)[..., : u.shape[-1]]
        return block.gated((y + block.kernel.D[:, None] * u).mT, x.dtype)

    return forward


class PlainModulator(nn.Module):
    """A CrossModalModulator with S4 in its place, written from the equations: the context and both FiLMs of each token,
    S4's kernel anew at every call and cut at 512 taps, as the original runs."""

    inserts_grids = places_images = reads_prompt = packs = False

    def __init__(self, layer: CrossModalModulator):
        super().__init__()
        check_defaults("PlainModulator", layer.config, MODULATOR_FIELDS, "of which the equations here are")
        self.layer, self.config = layer, layer.config
        self.run = modulator_by_equations(layer, block_by_formulas(layer.ssm, 512))

    def forward(
        self, text, grids, text_mask=None, grid_mask=None, grid_boxes=None, *, grid_images=None, grid_times=None
    ) -> Tensor:
        if self.layer.positions is not None:
            grids = self.layer.positions(grids, grid_boxes, grid_images, grid_times)
        return self.run(text, grids)


def linear_maps(layer: CrossModalModulator) -> Callable[[Tensor, Tensor], Tensor]:
    """The dense part of the layer alone, as torch.nn.Linear computes it: the linear maps of the FFN and of the gated
    output, added up."""
    up, down, output = layer.ffn.up, layer.ffn.down, layer.ssm.output

    def forward(text: Tensor, grids: Tensor) -> Tensor:
        first, second = F.linear(text, output.weight, output.bias).chunk(2, -1)
        return F.linear(F.linear(text, up.weight, up.bias), down.weight, down.bias) + first + second

    return forward
