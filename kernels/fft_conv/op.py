"""Causal convolution with a skip: the public function."""

from torch import Tensor

from ..common.checks import COMPLEX, REAL, check_dtypes, check_shapes
from ..common.device import implementation
from . import pytorch


def fft_conv(u: Tensor, k: Tensor, d_skip: Tensor | None = None, *, k_spectrum: Tensor | None = None) -> Tensor:
    """Causal convolution of each channel with its own kernel, plus a skip: y_t = sum_{s <= t} k_{t-s} u_s + d u_t.

    Arguments:
        u: inputs [B, D, L], real.
        k: kernels [D, K], real, of any number of taps (taps beyond L have no effect).
        d_skip: skip weights [D], real.

    Returns: y [B, D, L] in the dtype of u. Half precision is computed in float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: S4 (Gu et al. 2021, arXiv 2111.00396), section 2.4.
    """
    check_shapes("fft_conv", u=(u, "B D L"), k=(k, "D K"), d_skip=(d_skip, "D"))
    check_dtypes("fft_conv", REAL, u=u, k=k, d_skip=d_skip)
    check_dtypes("fft_conv", COMPLEX, k_spectrum=k_spectrum)
    run = {"pytorch": pytorch.fft_conv}[implementation("fft_conv", u.device).name]
    return run(u, k, d_skip, k_spectrum=k_spectrum)
