"""Mamba's selective scan: the public function."""

from torch import Tensor

from ..common.autocast import without_autocast
from ..common.checks import COMPLEX, REAL, check_dtypes, check_given, check_not_empty, check_shapes
from ..common.device import choose
from . import pytorch, reference

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space model in the layout of Mamba's own function.

        delta_t = softplus(delta_t + delta_bias)                      (the bias and the softplus are optional)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t = (C_t . h_t + D u_t) silu(z_t)                           (2 Re of the product if A is complex)

    Arguments:
        u, delta: inputs and step sizes [batch, D, L], real.
        A: [D, N], real or complex.
        B, C: [D, N] constant in time (of the type of A), or real and varying in time: [batch, N, L], or
            [batch, groups, N, L] where channel d takes group d // (D / groups). If A is complex, a varying matrix has
            length 2 L along time: pairs of real and imaginary part.
        D, delta_bias: [D], real.
        z: gate [batch, D, L], real.
        initial_state: [batch, D, N], of the type of A; zero if None.

    Returns: y [batch, D, L] in the dtype of u; with `return_last_state` also the state after the last step
    [batch, D, N], float32 or wider. Half precision is computed in float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: Mamba (Gu and Dao 2023, arXiv 2312.00752), section 3.2, algorithm 2.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    run = IMPLEMENTATIONS[choose("selective_scan", u)].selective_scan
    if A.is_complex():
        run = reference.selective_scan
    with without_autocast(u.device):
        return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, initial_state)


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    op = "selective_scan"
    check_given(op, u=u, delta=delta, A=A, B=B, C=C)
    sizes = check_shapes(
        op,
        u=(u, "batch D L"),
        delta=(delta, "batch D L"),
        A=(A, "D N"),
        D=(D, "D"),
        z=(z, "batch D L"),
        delta_bias=(delta_bias, "D"),
        initial_state=(initial_state, "batch D N"),
    )
    check_dtypes(op, REAL, u=u, delta=delta, D=D, z=z, delta_bias=delta_bias)
    kind = COMPLEX if A.is_complex() else REAL
    check_dtypes(op, REAL + COMPLEX, A=A)
    check_dtypes(op, kind, initial_state=initial_state)
    check_not_empty(op, u=u, A=A)
    batch, width, N = str(sizes["batch"]), str(sizes["D"]), str(sizes["N"])
    steps = str(sizes["L"] * (2 if A.is_complex() else 1))
    for name, matrix in (("B", B), ("C", C)):
        if not isinstance(matrix, Tensor) or matrix.ndim not in (2, 3, 4):
            found = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(f"{op}: {name} is {found}; wanted [D, N], [batch, N, L] or [batch, groups, N, L]")
        patterns = {2: f"{width} {N}", 3: f"{batch} {N} {steps}", 4: f"{batch} groups {N} {steps}"}
        groups = check_shapes(op, u=(u, "..."), **{name: (matrix, patterns[matrix.ndim])}).get("groups", 1)
        if sizes["D"] % groups:
            raise ValueError(f"{op}: {name} has {groups} groups; wanted a divisor of D = {width}")
        check_dtypes(op, kind if matrix.ndim == 2 else REAL, **{name: matrix})
