"""Linear recurrence with diagonal complex modes: the public function, and its Triton kernels as a registered op."""

import torch
from torch import Tensor

from ..common.autocast import without_autocast
from ..common.checks import COMPLEX, REAL, check_dtypes, check_given, check_not_empty, check_shapes
from ..common.device import choose
from ..common.packed import check_packed
from . import pytorch, reference

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


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
        cu_seqlens: where texts packed into one row (B = 1) begin and end, [S + 1] int32 or int64, from 0 to L and never
            decreasing. Each runs as if alone: states are then [S, D, N], and that after an empty text is its h0.

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


@torch.library.custom_op("firebolt_vl::diagonal_scan", mutates_args=())
def _diagonal_scan(
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from . import triton

    return triton.diagonal_scan(u, z, b, c, _contiguous(d_skip), h0, _contiguous(cu_seqlens))


@_diagonal_scan.register_fake
def _(u, z, b, c, d_skip, h0, cu_seqlens):
    rows = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return u.new_empty(u.shape), z.new_empty(rows, *z.shape)


@torch.library.custom_op("firebolt_vl::diagonal_scan_backward", mutates_args=())
def _diagonal_scan_backward(
    dy: Tensor,
    dh: Tensor | None,
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None,
    h0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """Of u, z, b, c, and of d_skip and h0 where they are."""
    from . import triton

    return list(triton.diagonal_scan_backward(dy, dh, u, z, b, c, _contiguous(d_skip), h0, _contiguous(cu_seqlens)))


@_diagonal_scan_backward.register_fake
def _(dy, dh, u, z, b, c, d_skip, h0, cu_seqlens):
    return [tensor.new_empty(tensor.shape) for tensor in (u, z, b, c, d_skip, h0) if tensor is not None]


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dh):
    u, _, _, _, d_skip, h0, _ = ctx.saved_tensors
    if dy is None:
        dy = u.new_zeros(()).expand(u.shape)
    du, dz, db, dc, *rest = _diagonal_scan_backward(dy, dh, *ctx.saved_tensors)
    dd_skip = None if d_skip is None else rest.pop(0)
    return du, dz, db, dc, dd_skip, None if h0 is None else rest.pop(0), None


_diagonal_scan.register_autograd(_backward, setup_context=_save)
