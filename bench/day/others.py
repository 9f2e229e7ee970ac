"""Other libraries' implementations of ops, where they are installed: timed beside ours, never held to our budget."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ... import kernels
from ..cases import Inputs

Provider = Callable[[], Any]
LONG_CONVOLUTIONS = ("fla.modules.conv.long_conv", "fla.modules.convolution")


def others(op: str, call: Inputs) -> dict[str, Provider]:
    """The providers of an op by name, for those arguments that they can take."""
    makers = {"fft_conv": _convolutions, "diagonal_scan": _scans_by_taps, "selective_scan": _mamba}
    makers["selective_state_update"] = _mamba_step
    return makers[op](call) if op in makers else {}


def by_vendor_fft(u: Tensor, k: Tensor, d_skip: Tensor, gate: Tensor | None = None) -> Tensor:
    """gate (k * u + d_skip u), causal, by torch.fft, on a GPU cuFFT."""
    size = 2 * u.shape[-1]
    x = u.to(k.dtype)
    y = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(k, size), size)[..., : u.shape[-1]]
    y = y + d_skip[:, None] * x
    return (y if gate is None else y * gate).to(u.dtype)


def _convolutions(call: Inputs) -> dict[str, Provider]:
    if call.kwargs.keys() - {"gate", "precision"}:
        return {}
    (u, k, d_skip), gate = call.args, call.kwargs.get("gate")
    found: dict[str, Provider] = {"cuFFT": lambda: by_vendor_fft(u, k, d_skip, gate)}
    # It adds u itself, which is a skip of ones.
    if theirs := _imported(LONG_CONVOLUTIONS, "fft_conv"):
        found["fla"] = lambda: theirs(u, k, None, gelu=False) * (1 if gate is None else gate)
    return found


def _scans_by_taps(call: Inputs) -> dict[str, Provider]:
    """A scan that starts at zero is a convolution with K[l] = 2 Re sum_n c_n b_n z_n^l."""
    u, z, b, c, d_skip, h0 = call.args
    if h0 is not None or call.kwargs:
        return {}
    return {"taps + cuFFT": lambda: by_vendor_fft(u, kernels.vandermonde(b * c, z.log(), u.shape[-1]), d_skip)}


def _mamba(call: Inputs) -> dict[str, Provider]:
    theirs = _imported(("mamba_ssm.ops.selective_scan_interface",), "selective_scan_fn")
    if theirs is None or call.kwargs.keys() & {"initial_state", "cu_seqlens"}:
        return {}
    return {"mamba_ssm": lambda: theirs(*call.args, **call.kwargs)}


def _mamba_step(call: Inputs) -> dict[str, Provider]:
    theirs = _imported(("mamba_ssm.ops.triton.selective_state_update",), "selective_state_update")
    return {} if theirs is None else {"mamba_ssm": lambda: theirs(*call.args, **call.kwargs)}


def _imported(modules: tuple[str, ...], name: str) -> Callable[..., Any] | None:
    """A function of the first of these modules that can be imported; a library that is broken counts as none."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except Exception:
            continue
    return None
