"""Vandermonde and Cauchy products: the public functions, and their Triton kernels as registered ops."""

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..checks import COMPLEX, check_dtypes, check_given, check_integer, check_not_empty, check_shapes
from ..common.registered import Backward, register
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference
from .shapes import by_channel

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


@replayed
def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """Kernel of a diagonal state-space model: K[l] = 2 Re sum_n c_n z_n^l for l = 0 .. L-1, with z = exp(log_z).

    Arguments:
        c: coefficients [D, N] (or [..., N]), complex: one of each conjugate pair of modes.
        log_z: dt * A, the logarithm of the modes, complex, of the same shape or one that broadcasts to it.
        L: number of taps, at least 1.

    Returns: K [D, L], float32 for complex64 and float64 for complex128.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape.

    Source: S4D (Gu et al. 2022, arXiv 2206.11893), section 3.3, equation 9.
    """
    check_given("vandermonde", c=c, log_z=log_z)
    check_shapes("vandermonde", c=(c, "... N"), log_z=(log_z, "... N"))
    check_dtypes("vandermonde", COMPLEX, c=c, log_z=log_z)
    _check_broadcast("vandermonde", "c", c.shape[:-1], "log_z", log_z.shape[:-1])
    check_not_empty("vandermonde", c=c, log_z=log_z)
    check_integer("vandermonde", "L", L, at_least=1)
    chosen = choose("vandermonde", c, log_z)
    with without_autocast(c.device):
        if chosen == "triton":
            c, log_z = torch.broadcast_tensors(c, log_z)
            return _vandermonde(*(x.reshape(-1, x.shape[-1]) for x in (c, log_z)), L).reshape(*c.shape[:-1], L)
        return IMPLEMENTATIONS[chosen].vandermonde(c, log_z, L)


@replayed
def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Cauchy product over conjugate pairs: sum_n v_n / (z - w_n) + conj(v_n) / (z - conj w_n).

    Arguments:
        v: numerators [..., N], complex; leading axes of v and w broadcast, and several v over one w cost little more.
        z: nodes [Lz], complex.
        w: poles [..., N], complex: one of each conjugate pair.

    Returns: the sums [..., Lz], complex. At a node that is a pole the result is not finite.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape.

    Source: S4 (Gu et al. 2021, arXiv 2111.00396), section 3.3 and appendix C.3.
    """
    check_given("cauchy", v=v, z=z, w=w)
    check_shapes("cauchy", v=(v, "... N"), w=(w, "... N"), z=(z, "Lz"))
    check_dtypes("cauchy", COMPLEX, v=v, z=z, w=w)
    _check_broadcast("cauchy", "v", v.shape[:-1], "w", w.shape[:-1])
    check_not_empty("cauchy", v=v, z=z, w=w)
    chosen = choose("cauchy", v, z, w)
    with without_autocast(v.device):
        if chosen == "triton":
            leading = torch.broadcast_shapes(v.shape[:-1], w.shape[:-1])
            v, w = by_channel(v, w)
            return _cauchy(v, z, w).transpose(0, 1).reshape(*leading, z.shape[0])
        return IMPLEMENTATIONS[chosen].cauchy(v, z, w)


def _check_broadcast(op: str, name: str, shape: torch.Size, other_name: str, other_shape: torch.Size) -> None:
    try:
        torch.broadcast_shapes(shape, other_shape)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} has leading axes {list(shape)}; expected some that broadcast with {list(other_shape)} "
            f"of {other_name}"
        ) from None


def _forward_vandermonde(c, log_z, L) -> Tensor:
    from . import triton_vandermonde

    return triton_vandermonde.vandermonde(c, log_z, L)


def _fake_vandermonde(c, log_z, L):
    return c.new_empty(c.shape[0], L, dtype=torch.float32)


def _backward_vandermonde(grads, c, log_z, L) -> tuple[Tensor, Tensor]:
    from . import triton_vandermonde

    (grad,) = grads
    return triton_vandermonde.vandermonde_backward(grad, c, log_z)


_vandermonde = register(
    "vandermonde",
    "(Tensor c, Tensor log_z, SymInt L) -> Tensor",
    _forward_vandermonde,
    _fake_vandermonde,
    Backward("vandermonde_backward", ("c", "log_z"), _backward_vandermonde),
)


def _forward_cauchy(v, z, w) -> Tensor:
    """[channels, rows, Lz] of v [channels, rows, N], z [Lz], w [channels, N]."""
    from . import triton_cauchy

    return triton_cauchy.cauchy(v, z, w)


def _fake_cauchy(v, z, w):
    return v.new_empty(*v.shape[:2], z.shape[0])


def _backward_cauchy(grads, v, z, w) -> tuple[Tensor, Tensor]:
    from . import triton_cauchy

    (grad,) = grads
    return triton_cauchy.cauchy_backward(grad, v, z, w)


def _backward_nodes(grads, v, z, w) -> tuple[Tensor]:
    from . import triton_cauchy

    (grad,) = grads
    return (triton_cauchy.cauchy_backward_nodes(grad, v, z, w),)


_cauchy = register(
    "cauchy",
    "(Tensor v, Tensor z, Tensor w) -> Tensor",
    _forward_cauchy,
    _fake_cauchy,
    Backward("cauchy_backward", ("v", "w"), _backward_cauchy),
    Backward("cauchy_backward_nodes", ("z",), _backward_nodes),  # seldom asked for
)
