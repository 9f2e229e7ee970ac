"""Linear recurrence with diagonal complex modes: the public function, and its Triton kernels as a registered op."""

from torch import Tensor

from ..autocast import without_autocast
from ..checks import COMPLEX, REAL, check_dtypes, check_given, check_not_empty, check_shapes
from ..common.packed import check_packed
from ..common.registered import Backward, register
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


@replayed
def diagonal_scan(
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Diagonal state-space model run over time: h_t = z h_{t-1} + b u_t, y_t = 2 Re sum_n c_n h_{t,n} + d u_t.

    Arguments:
        u: inputs [B, D, L], real; L = 1 is the decode step.
        z: modes exp(dt A) [D, N], complex: one of each conjugate pair (not their logarithm).
        b, c: input and output coefficients [D, N], complex.
        d_skip: skip weights [D], real.
        h0: state before the first step [B, D, N], complex; zero if None.
        cu_seqlens: borders [S + 1] of sequences packed into one row (B = 1), int32 or int64, from 0 to L and never
            decreasing. Each runs as if alone: states are then [S, D, N], and that after an empty sequence is its h0.

    Returns: y [B, D, L] in the dtype of u, and the state h_T [B, D, N] after the last step, complex64 (complex128 if
    an argument has 64-bit numbers). Half precision is computed in float32. Both are differentiable in every argument.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: S4D (Gu et al. 2022, arXiv 2206.11893), section 3.
    """
    check_given("diagonal_scan", u=u, z=z, b=b, c=c)
    check_shapes(
        "diagonal_scan",
        u=(u, "B D L"),
        z=(z, "D N"),
        b=(b, "D N"),
        c=(c, "D N"),
        d_skip=(d_skip, "D"),
    )
    rows = check_packed("diagonal_scan", u, cu_seqlens)
    check_shapes(
        "diagonal_scan", u=(u, "B D L"), z=(z, "D N"), h0=(h0, "B D N" if cu_seqlens is None else f"{rows} D N")
    )
    check_dtypes("diagonal_scan", REAL, u=u, d_skip=d_skip)
    check_dtypes("diagonal_scan", COMPLEX, z=z, b=b, c=c, h0=h0)
    check_not_empty("diagonal_scan", u=u, z=z)
    chosen = choose("diagonal_scan", u, z, b, c, d_skip, h0)
    with without_autocast(u.device):
        if chosen == "triton":
            return _diagonal_scan(u, z, b, c, d_skip, h0, cu_seqlens)
        return IMPLEMENTATIONS[chosen].diagonal_scan(u, z, b, c, d_skip, h0, cu_seqlens=cu_seqlens)


def _forward(*arguments) -> tuple[Tensor, Tensor]:
    from . import triton_forward

    return triton_forward.diagonal_scan(*arguments)


def _fake(u, z, b, c, d_skip, h0, cu_seqlens):
    rows = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return u.new_empty(u.shape), z.new_empty(rows, *z.shape)


def _backward(grads, *arguments):
    from . import triton_backward

    return triton_backward.diagonal_scan_backward(*grads, *arguments)


_diagonal_scan = register(
    "diagonal_scan",
    "(Tensor u, Tensor z, Tensor b, Tensor c, Tensor? d_skip, Tensor? h0, Tensor? cu_seqlens) -> (Tensor, Tensor)",
    _forward,
    _fake,
    Backward("diagonal_scan_backward", ("u", "z", "b", "c", "d_skip", "h0"), _backward),
)
