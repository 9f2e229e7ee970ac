"""Mamba's selective scan and one step of it: the public functions, and their Triton kernels as registered ops."""

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..checks import COMPLEX, REAL, check_dtypes, check_given, check_not_empty, check_shapes
from ..common.packed import check_packed, kept_states
from ..common.registered import Backward, contiguous_gradients, register
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference
from .heads import by_heads
from .inputs import Inputs
from .shapes import KEPT, laid_out_like

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


@replayed
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
    cu_seqlens: Tensor | None = None,
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
        cu_seqlens: borders [texts + 1], int32 or int64, from 0 to L, of sequences packed into one row (batch = 1): each
            runs as if it were alone. States then have a row for each sequence; that of an empty sequence stays.

    Returns: y [batch, D, L] in the dtype of u; with `return_last_state` also the state after the last step
    [batch, D, N] (or [texts, D, N]), float32 or wider. Half precision is computed in float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: Mamba (Gu and Dao 2023, arXiv 2312.00752), section 3.2, algorithm 2.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    _check(*tensors, cu_seqlens)
    chosen = "reference" if A.is_complex() else choose("selective_scan", *tensors)
    with without_autocast(u.device):
        if chosen == "triton":
            learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
            options = (delta_softplus, initial_state, cu_seqlens, learns)
            y, last_state, _ = _selective_scan(u, delta, A, B, C, D, z, delta_bias, *options)
            return (y, last_state) if return_last_state else y
        options = (delta_softplus, return_last_state, initial_state, cu_seqlens)
        return IMPLEMENTATIONS[chosen].selective_scan(u, delta, A, B, C, D, z, delta_bias, *options)


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens) -> None:
    op = "selective_scan"
    check_given(op, u=u, delta=delta, A=A, B=B, C=C)
    known = {"u": (u, "batch D L"), "A": (A, "D N")}
    sizes = check_shapes(
        op, **known, delta=(delta, "batch D L"), D=(D, "D"), z=(z, "batch D L"), delta_bias=(delta_bias, "D")
    )
    check_dtypes(op, REAL, u=u, delta=delta, D=D, z=z, delta_bias=delta_bias)
    kind = COMPLEX if A.is_complex() else REAL
    check_dtypes(op, REAL + COMPLEX, A=A)
    check_dtypes(op, kind, initial_state=initial_state)
    check_not_empty(op, u=u, A=A)
    check_packed(op, u, cu_seqlens)
    if cu_seqlens is None:
        check_shapes(op, **known, initial_state=(initial_state, "batch D N"))
    else:
        check_shapes(op, **known, cu_seqlens=(cu_seqlens[1:], "texts"), initial_state=(initial_state, "texts D N"))
    steps = str(2 * sizes["L"]) if A.is_complex() else "L"
    patterns = {2: "D N", 3: f"batch N {steps}", 4: f"batch groups N {steps}"}
    for name, matrix in (("B", B), ("C", C)):
        if not isinstance(matrix, Tensor) or matrix.ndim not in patterns:
            found = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(f"{op}: {name} is {found}; expected [D, N], [batch, N, L] or [batch, groups, N, L]")
        groups = check_shapes(op, **known, **{name: (matrix, patterns[matrix.ndim])}).get("groups", 1)
        if sizes["D"] % groups:
            raise ValueError(f"{op}: {name} has {groups} groups; expected a divisor of D = {sizes['D']}")
        check_dtypes(op, kind if matrix.ndim == 2 else REAL, **{name: matrix})


def _forward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_forward

    *inputs, keep_states = arguments
    return triton_forward.selective_scan(Inputs(*inputs), keep_states)


def _fake(*arguments):
    *given, keep_states = arguments
    inputs = Inputs(*given)
    (width, N), u = inputs.A.shape, inputs.u
    kept = kept_states(u.shape[0], u.shape[2], KEPT, inputs.cu_seqlens) if keep_states else 0
    last_state = u.new_empty(inputs.texts, width, N, dtype=torch.float32)
    return laid_out_like(u, u.dtype), last_state, u.new_empty(kept, N, width, dtype=torch.float32)


def _backward(outputs, *arguments) -> list[Tensor | None]:
    from . import triton_backward

    *inputs, keep_states = arguments
    if not keep_states:
        raise RuntimeError("selective_scan: keep_states is False; expected True, since gradients are computed")
    dy, dlast_state, states = outputs
    return triton_backward.selective_scan_backward(dy, dlast_state, states, Inputs(*inputs))


def _fake_gradients(u, delta, A, B, C, D, z, delta_bias, initial_state):
    sequences = [None if x is None else laid_out_like(u, x.dtype) for x in (u, delta, z)]
    others = contiguous_gradients(A, B, C, D, delta_bias, initial_state)
    return *sequences[:2], *others[:4], sequences[2], *others[4:]


_selective_scan = register(
    "selective_scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool softplus, "
    "Tensor? initial_state, Tensor? cu_seqlens, bool keep_states) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    Backward(
        "selective_scan_backward",
        ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"),
        _backward,
        _fake_gradients,
    ),
    kept=1,  # the states before some of the steps, which gradients are made from
)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """One step of Mamba's selective scan that changes its state in place, for generation; it has no gradients.

        dt = softplus(dt + dt_bias)                                   (the bias and the softplus are optional)
        state <- exp(dt A) state + dt B x
        y = (C . state + D x) silu(z)

    Arguments are named and laid out as those of mamba_ssm's function:
        state: [batch, D, N], or with heads [batch, H, P, N], real; it is computed in float32 and kept in its dtype.
        x, dt: [batch, D] or [batch, H, P], and so z, the gate.
        A: [D, N] or [H, P, N], real.
        B, C: [batch, N], or [batch, groups, N]: channel d takes group d // (D / groups), head h h // (H / groups).
        D, dt_bias: [D] or [H, P].
    Each may have any strides, such as the zeros of one step size for a whole head.

    Returns: y, of the shape and dtype of x.

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device or a state whose elements share memory,
    and RuntimeError where a gradient is wanted, which `selective_scan` has.

    Source: Mamba (Gu and Dao 2023, arXiv 2312.00752), section 3.2; docs/mathematics.md, 4.5.
    """
    y = _updated(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    if not (torch.compiler.is_dynamo_compiling() or state.is_inference()):
        torch.autograd.graph.increment_version(state)  # a graph that had saved the state knows that it is another
    return y


@replayed
def _updated(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    tensors = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _check_update(state, tensors)
    given = tensors.values()
    chosen = choose("selective_state_update", *given)
    with without_autocast(x.device):
        if chosen == "triton":
            return _selective_state_update(*given, dt_softplus)
        return IMPLEMENTATIONS[chosen].selective_state_update(*given, dt_softplus)


def _check_update(state: Tensor, tensors: dict[str, Tensor | None]) -> None:
    op = "selective_state_update"
    check_given(op, **{name: tensors[name] for name in ("state", "x", "dt", "A", "B", "C")})
    heads = "H P" if isinstance(state, Tensor) and state.ndim == 4 else "D"
    patterns = {"state": f"batch {heads} N", "x": f"batch {heads}", "dt": f"batch {heads}", "A": f"{heads} N"}
    patterns |= {"D": heads, "z": f"batch {heads}", "dt_bias": heads}
    known = {name: (tensors[name], pattern) for name, pattern in patterns.items()}
    sizes = check_shapes(op, **known)
    counts = {name: _groups_of_step(op, name, tensors[name], known["state"]) for name in ("B", "C")}
    axis = heads.split()[0]
    for name, groups in counts.items():
        if not groups or sizes[axis] % groups:
            raise ValueError(f"{op}: {name} has {groups} groups; expected a divisor of {axis} = {sizes[axis]}")
    if counts["B"] != counts["C"]:
        raise ValueError(f"{op}: C has {counts['C']} groups; expected {counts['B']}, as B has")
    check_dtypes(op, REAL, **tensors)
    check_not_empty(op, state=state)
    if any(size > 1 and not stride for size, stride in zip(state.shape, state.stride())):
        raise ValueError(f"{op}: state has strides {list(state.stride())}; expected memory of its own for each element")
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor is not None and tensor.requires_grad:
                raise RuntimeError(
                    f"{op}: {name} needs a gradient; expected none, since the state is changed in place: call it under "
                    "torch.no_grad(), or selective_scan with one step"
                )


def _groups_of_step(op: str, name: str, matrix: Tensor | None, state: tuple[Tensor | None, str]) -> int:
    """Check the shape of B or C, and count its groups."""
    if not isinstance(matrix, Tensor) or matrix.ndim not in (2, 3):
        found = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(f"{op}: {name} is {found}; expected [batch, N] or [batch, groups, N]")
    pattern = "batch N" if matrix.ndim == 2 else "batch groups N"
    return check_shapes(op, state=state, **{name: (matrix, pattern)}).get("groups", 1)


def _update(*arguments) -> Tensor:
    from . import triton_update

    return triton_update.selective_state_update(by_heads(*arguments)).view(arguments[1].shape)


def _fake_update(state, x, *_):
    return x.new_empty(x.shape)


_selective_state_update = register(
    "selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "bool softplus) -> Tensor",
    _update,
    _fake_update,
)
