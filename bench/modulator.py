"""The cross-modal modulator and its S4 block as their equations say it, and their linear maps alone: what the layers
are compared with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cmm import S4, CMMConfig, CrossModalModulator
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
    """In the place of the SSM and of the FFN: what comes in goes out."""

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
    return block_by_formulas(layer, T) if isinstance(layer, S4) else modulator_by_equations(layer)


def modulator_by_equations(layer: CrossModalModulator) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer's function of (text, grids), written from firebolt-vl.md section 2: the context c of each token, then
    W_f c + b_f of each token."""
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
        y = layer.ssm(film(layer.norm_in(text), layer.film_in, c), None)
        r = text + film(y, layer.film_out, c)
        norm = layer.ffn.norm
        normed = F.layer_norm(r, r.shape[-1:], norm.weight, norm.bias, norm.eps)
        return layer.norm_out(r + layer.ffn.after_norm(normed))

    return forward


def block_by_formulas(block: S4, T: int) -> Callable[[Tensor], Tensor]:
    """The block with the taps that S4's paper derives (arXiv 2111.00396, appendix C): the generating function at the
    roots of unity, by the plain Cauchy sum, and its inverse transform; then torch.fft.

    C (I - dA^T) is computed once, as the original's checkpoints store it.
    """
    kernel = block.kernel
    with torch.no_grad():
        step, C = kernel.discrete()
        row = torch.view_as_real(2 * C.conj()).flatten(-2).unsqueeze(-2).double()
        row = row - row @ torch.linalg.matrix_power(step.matrix().double(), T)
        C = torch.view_as_complex((row.squeeze(-2) / 2).unflatten(-1, (-1, 2))).conj()
    angles = 2 * math.pi * torch.arange(T // 2, dtype=torch.float64, device=C.device) / T
    omega = torch.polar(torch.ones_like(angles), -angles)
    C, omega = (x.to(torch.promote_types(block.dtype, torch.complex64)) for x in (C, omega))

    def forward(x: Tensor) -> Tensor:
        w = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
        P, B, dt = torch.view_as_complex(kernel.P), torch.view_as_complex(kernel.B), kernel.log_dt.exp().unsqueeze(-1)
        numerators = dt * torch.stack([B * C, B * P.conj(), P * C, P * P.conj()])
        r00, r01, r10, r11 = reference.cauchy(numerators, 2 * (1 - omega) / (1 + omega), w * dt)
        spectrum = (r00 - r01 * r10 / (1 + r11)) * 2 / (1 + omega)
        nyquist = numerators[0].sum(-1, keepdim=True).real.to(spectrum.dtype)
        K = torch.fft.irfft(torch.cat([spectrum, nyquist], -1), n=T)
        u = x.mT
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * T) * torch.fft.rfft(K, n=2 * T), n=2 * T)[..., :T]
        return block.output((y + kernel.D.unsqueeze(-1) * u).mT)

    return forward


def linear_maps(layer: CrossModalModulator) -> Callable[[Tensor, Tensor], Tensor]:
    """The dense part of the layer alone: the linear maps of the FFN and of the gated output, added up."""

    def forward(text: Tensor, grids: Tensor) -> Tensor:
        first, second = F.linear(text, layer.ssm.output.weight, layer.ssm.output.bias).chunk(2, -1)
        return layer.ffn.down(layer.ffn.up(text)) + first + second

    return forward
