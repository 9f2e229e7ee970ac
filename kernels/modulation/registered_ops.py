"""The Triton kernels of token-grid correlation and FiLM as registered ops (`common/registered.py`).

Shapes: B rows of T tokens and G grids, H heads of D_h numbers, D columns; `selection` has the fields of `Selection`.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ..common.registered import Backward, register
from .selection import Selection

SELECTION = "SymInt top_k, Tensor? grid_mask, Tensor? text_mask, bool renormalize, float dropout_p, Tensor? seed"


def _run_context(q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, Tensor]:
    from . import triton_context

    return triton_context.correlation_context(q, k, v, Selection(*selection))


def _fake_context(q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], k.shape[1])


def _differentiate_context(grads: list, q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, ...]:
    from . import triton_context

    dcontext, dw = grads
    return triton_context.correlation_context_backward(dcontext, dw, q, k, v, Selection(*selection))


correlation_context = register(
    "correlation_context",
    f"(Tensor q, Tensor k, Tensor v, {SELECTION}) -> (Tensor, Tensor)",
    _run_context,
    _fake_context,
    Backward("correlation_context_backward", ("q", "k", "v"), _differentiate_context),
)


def _contiguous(*vectors: Tensor) -> list[Tensor]:
    """The small parameters as the kernels read them, without strides."""
    return [vector.contiguous() for vector in vectors]


def _run_grounded(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    channels_first: bool,
    *selection: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_f, w, and mean and 1 / deviation of the rows of x, [2,B,T] float32."""
    from . import triton_film

    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    return triton_film.grounded_film(
        x, q, k, table, bias, gate, ln_weight, ln_bias, eps, channels_first, Selection(*selection)
    )


def _fake_grounded(x: Tensor, q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_modulation import new_rows

    channels_first = rest[6]
    statistics = x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    return new_rows(x, channels_first), q.new_empty(*q.shape[:2], k.shape[1]), statistics


def _differentiate_grounded(
    grads: list,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    channels_first: bool,
    *selection: Any,
) -> tuple[Tensor, ...]:
    from . import triton_film_backward

    dx_f, dw, statistics = grads
    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    return triton_film_backward.grounded_film_backward(
        dx_f, dw, x, q, k, table, bias, gate, ln_weight, ln_bias, statistics, Selection(*selection)
    )


grounded_film = register(
    "grounded_film",
    "(Tensor x, Tensor q, Tensor k, Tensor table, Tensor bias, Tensor gate, Tensor ln_weight, Tensor ln_bias, "
    f"float eps, bool channels_first, {SELECTION}) -> (Tensor, Tensor, Tensor)",
    _run_grounded,
    _fake_grounded,
    Backward(
        "grounded_film_backward",
        ("x", "q", "k", "table", "bias", "gate", "ln_weight", "ln_bias"),
        _differentiate_grounded,
    ),
    kept=1,
)


def _run_residual(y: Tensor, x: Tensor, w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    from . import triton_residual

    return triton_residual.film_residual(y, x, w, table, bias.contiguous(), gate, None, None, 0.0)[0]


def _fake_residual(y: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate_residual(
    grads: list, y: Tensor, x: Tensor, w: Tensor, table: Tensor, bias: Tensor, gate: Tensor
) -> tuple[Tensor, ...]:
    from . import triton_residual_backward

    return triton_residual_backward.film_residual_backward(
        grads[0], None, y, x, w, table, bias.contiguous(), gate, None, None
    )


film_residual = register(
    "film_residual",
    "(Tensor y, Tensor x, Tensor w, Tensor table, Tensor bias, Tensor gate) -> Tensor",
    _run_residual,
    _fake_residual,
    Backward("film_residual_backward", ("y", "x", "w", "table", "bias", "gate"), _differentiate_residual),
)


def _run_residual_norm(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """r, LN(r), and mean and 1 / deviation of the rows of r, [2,B,T] float32."""
    from . import triton_residual

    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    outputs = triton_residual.film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias, eps)
    return cast("tuple[Tensor, Tensor, Tensor]", outputs)  # with a norm none of them is None


def _fake_residual_norm(y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape), x.new_empty(2, *x.shape[:2], dtype=torch.float32)


def _differentiate_residual_norm(
    grads: list,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    from . import triton_residual_backward

    dr, dnormed, statistics = grads
    bias, ln_weight = _contiguous(bias, ln_weight)
    return triton_residual_backward.film_residual_backward(
        dr, dnormed, y, x, w, table, bias, gate, ln_weight, statistics
    )


film_residual_norm = register(
    "film_residual_norm",
    "(Tensor y, Tensor x, Tensor w, Tensor table, Tensor bias, Tensor gate, Tensor ln_weight, Tensor ln_bias, "
    "float eps) -> (Tensor, Tensor, Tensor)",
    _run_residual_norm,
    _fake_residual_norm,
    Backward(
        "film_residual_norm_backward",
        ("y", "x", "w", "table", "bias", "gate", "ln_weight", "ln_bias"),
        _differentiate_residual_norm,
    ),
    kept=1,
)
