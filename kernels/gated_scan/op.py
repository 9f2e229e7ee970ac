"""Linear recurrence with real gates: the public function, and its Triton kernels as a registered op."""

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..checks import REAL, check_dtypes, check_given, check_not_empty, check_shapes
from ..common.packed import check_packed, kept_states
from ..common.registered import Backward, register
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference
from .shapes import KEPT

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


@replayed
def gated_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Real linear recurrence whose decay depends on the input: h_t = a_t h_{t-1} + b_t, each channel alone.

    Arguments:
        a: gates [B, T, D], real; those in -1 .. 1 are what it is made for. Beyond, a product of many may overflow
            float32 although the states do not: it is exact from a state of 0 alone.
        b: inputs [B, T, D], real; T = 1 is the decode step. A gated recurrent unit such as HGRN's has b = (1 - a) x.
        initial_state: state before the first step [B, D], real; zero if None.
        cu_seqlens: borders [S + 1] of sequences packed into one row (B = 1), int32 or int64, from 0 to T and never
            decreasing. Each runs as if alone: states are then [S, D], and an empty sequence hands on its own.

    a and b may differ in dtype: bfloat16 knows no number between 0.996 and 1, so that gates near 1 are best float32.

    Returns: the states h [B, T, D] in the dtype of b, and the state after the last step [B, D], float32 (float64 if an
    argument has 64-bit numbers). Half precision is computed in float32. Both are differentiable in every argument.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: HGRN (Qin et al. 2023, arXiv 2311.04823), section 3.1; docs/mathematics.md, 5.7.
    """
    op = "gated_scan"
    check_given(op, a=a, b=b)
    known = {"a": (a, "B T D")}
    check_shapes(op, **known, b=(b, "B T D"))
    check_dtypes(op, REAL, a=a, b=b, initial_state=initial_state)
    check_not_empty(op, a=a)
    rows = check_packed(op, a, cu_seqlens, "a", time=1)
    check_shapes(op, **known, initial_state=(initial_state, "B D" if cu_seqlens is None else f"{rows} D"))
    chosen = choose(op, a, b, initial_state)
    with without_autocast(a.device):
        if chosen == "triton":
            tensors = (a, b, initial_state)
            learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
            h, last, _ = _gated_scan(*tensors, cu_seqlens, learns)
            return h, last
        return IMPLEMENTATIONS[chosen].gated_scan(a, b, initial_state, cu_seqlens=cu_seqlens)


def _forward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_forward

    return triton_forward.gated_scan(*arguments)


def _fake(a, b, initial_state, cu_seqlens, keep_states):
    batch, T, width = b.shape
    kept = kept_states(batch, T, KEPT, cu_seqlens) if keep_states else 0
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    wide = {"dtype": torch.float32}
    return b.new_empty(b.shape), b.new_empty(rows, width, **wide), b.new_empty(kept, width, **wide)


def _backward(outputs, *arguments) -> list[Tensor | None]:
    from . import triton_backward

    *inputs, keep_states = arguments
    if not keep_states:
        raise RuntimeError("gated_scan: keep_states is False; expected True, since gradients are computed")
    return triton_backward.gated_scan_backward(*outputs, *inputs)


_gated_scan = register(
    "gated_scan",
    "(Tensor a, Tensor b, Tensor? initial_state, Tensor? cu_seqlens, bool keep_states) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    Backward("gated_scan_backward", ("a", "b", "initial_state"), _backward),
    kept=1,  # the states before some of the steps, which gradients are made from
)
