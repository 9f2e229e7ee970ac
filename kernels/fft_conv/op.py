"""Causal convolution with a skip, products of inputs and a gate: the public function, its Triton kernels as an op."""

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..checks import COMPLEX, REAL, check_dtypes, check_given, check_not_empty, check_one_of, check_shapes
from ..common.packed import check_packed
from ..common.registered import Backward, register
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference
from .choice import choose_algorithm, has_transform, transform_size

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}
PRECISIONS = ("accurate", "fast")


@replayed
def fft_conv(
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    k_spectrum: Tensor | None = None,
    precision: str = "accurate",
    cu_seqlens: Tensor | None = None,
    product_weights: Tensor | None = None,
) -> Tensor:
    """Causal convolution of each channel with its own kernel, plus a skip and products of neighbouring inputs, gated:

        y_t = gate_t (sum_{s <= t} k_{t-s} u_s + d u_t + sum_{p = 2 .. P} a_p u_t u_{t-1} ... u_{t-p+1})

    Arguments:
        u: inputs [B, D, L], real.
        k: kernels [D, K], real, of any number of taps (taps beyond L have no effect).
        d_skip: skip weights [D], real.
        gate: factors of the output [B, D, L], real.
        k_spectrum: `torch.fft.rfft(k, n)` [D, n / 2 + 1] for an even n of at least L + K - 1, complex, kept from an
            earlier call: it saves a transform of k. The FFT is then used, and gradients go to it instead of to k. On a
            GPU it is a Triton kernel where n is a power of two from 512 on, and else the device's library.
        precision: "accurate", or "fast": where u has 16 bits, operands of products on a GPU may have 16 too. The error
            is then, rms of the output, 2e-3 to 5e-3 in bfloat16 and 3e-4 to 6e-4 in float16, where rounding the output
            takes 2e-3 and 2e-4. Taps of float16 end at 65504.
        cu_seqlens: borders [texts + 1] of sequences packed into one row (B = 1), int32 or int64, from 0 to L: each is
            convolved alone, as if it were a row of its own.
        product_weights: a_p [D, P - 1], real, of the products of p = 2 .. P inputs. Before a sequence all inputs are 0.

    Returns: y [B, D, L] in the dtype of u. Half precision is computed in float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape, value or device.

    Source: S4 (Gu et al. 2021, arXiv 2111.00396), section 2.4; the products, Liquid-S4 (Hasani et al. 2022, arXiv
    2209.12951), section 3.
    """
    check_given("fft_conv", u=u, k=k)
    check_shapes(
        "fft_conv",
        u=(u, "B D L"),
        k=(k, "D K"),
        d_skip=(d_skip, "D"),
        gate=(gate, "B D L"),
        product_weights=(product_weights, "D orders"),
    )
    check_dtypes("fft_conv", REAL, u=u, k=k, d_skip=d_skip, gate=gate, product_weights=product_weights)
    check_dtypes("fft_conv", COMPLEX, k_spectrum=k_spectrum)
    check_not_empty("fft_conv", u=u, k=k, **({} if product_weights is None else {"product_weights": product_weights}))
    check_one_of("fft_conv", "precision", precision, PRECISIONS)
    check_packed("fft_conv", u, cu_seqlens)
    if k_spectrum is not None:
        if cu_seqlens is not None:
            raise ValueError("fft_conv: k_spectrum and cu_seqlens are both given; expected one of them")
        _check_spectrum(u, k, k_spectrum)
    options = {
        "gate": gate,
        "k_spectrum": k_spectrum,
        "precision": precision,
        "cu_seqlens": cu_seqlens,
        "product_weights": product_weights,
    }
    chosen = choose("fft_conv", u, k, d_skip, gate, k_spectrum, product_weights)
    with without_autocast(u.device):
        if chosen == "triton":
            return convolve_by(_choose_form(u, k_spectrum, cu_seqlens), u, k, d_skip, **options)
        return IMPLEMENTATIONS[chosen].fft_conv(u, k, d_skip, **options)


def _choose_form(u: Tensor, k_spectrum: Tensor | None, cu_seqlens: Tensor | None) -> str:
    if cu_seqlens is not None:
        return "toeplitz"  # sequences have no one length that an FFT could have
    if k_spectrum is not None:
        return "monarch" if has_transform(2 * (k_spectrum.shape[-1] - 1)) else "vendor"
    B, D, L = u.shape
    return choose_algorithm(L, D, B, u.dtype, u.device, kernels=True)


def convolve_by(
    form: str,
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    k_spectrum: Tensor | None = None,
    precision: str = "accurate",
    cu_seqlens: Tensor | None = None,
    product_weights: Tensor | None = None,
) -> Tensor:
    """`fft_conv` where Triton's kernels run, by "toeplitz", "monarch" or "vendor"."""
    if form == "vendor":
        return pytorch.fft_conv(u, k, d_skip, gate=gate, k_spectrum=k_spectrum, product_weights=product_weights)
    if form == "monarch":
        L, taps = u.shape[-1], k.shape[-1]
        k = torch.fft.rfft(k[:, :L].float(), transform_size(L, taps)) if k_spectrum is None else k_spectrum
    return _fft_conv(u, k, d_skip, gate, cu_seqlens, precision == "fast", product_weights)


def _check_spectrum(u: Tensor, k: Tensor, k_spectrum: Tensor) -> None:
    check_shapes("fft_conv", k=(k, "D K"), k_spectrum=(k_spectrum, "D F"))
    size, least = 2 * (k_spectrum.shape[-1] - 1), u.shape[-1] + k.shape[-1] - 1
    if size < least:
        raise ValueError(
            f"fft_conv: k_spectrum has shape {list(k_spectrum.shape)}, for transforms of {size}; expected "
            f"one of at least L + K - 1 = {least}, so that nothing wraps around"
        )


def _forward(u, k, d_skip, gate, cu_seqlens, fast, product_weights=None) -> Tensor:
    from . import triton_monarch, triton_toeplitz

    if k.is_complex():
        return triton_monarch.monarch(u, k, d_skip, gate, fast, product_weights)
    return triton_toeplitz.toeplitz(u, k, d_skip, gate, cu_seqlens, fast, product_weights)


def _fake(u, *rest):
    return u.new_empty(u.shape)


def _backward(grads, u, k, d_skip, gate, cu_seqlens, fast, product_weights=None) -> tuple[Tensor | None, ...]:
    from . import triton_monarch, triton_products, triton_toeplitz

    (dy,) = grads
    of_products = triton_products.gradient_of_weights(dy, u, product_weights, gate, cu_seqlens)
    if not k.is_complex():
        found = triton_toeplitz.toeplitz_backward(dy, u, k, d_skip, gate, cu_seqlens, fast, product_weights)
        return *found, of_products
    du, dk, dgate = triton_monarch.monarch_backward(dy, u, k, d_skip, gate, fast, product_weights)
    return du, dk, triton_toeplitz.skip_gradient(dy, u, gate, d_skip), dgate, of_products


_fft_conv = register(
    "fft_conv",
    "(Tensor u, Tensor k, Tensor? d_skip, Tensor? gate, Tensor? cu_seqlens, bool fast, Tensor? product_weights=None) "
    "-> Tensor",
    _forward,
    _fake,
    Backward("fft_conv_backward", ("u", "k", "d_skip", "gate", "product_weights"), _backward),
)
