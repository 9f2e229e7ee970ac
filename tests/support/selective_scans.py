"""Inputs of selective_scan by name, and the op as a function of them in order."""

import golden
import torch
from hypothesis import strategies as st

CASES = {case["case"]: case for case in golden.load("selective_scan").cases}
KINDS = st.sampled_from(["constant", "shared", "grouped"])


def matrix_shape(kind: str, batch: int, D: int, N: int, L: int, groups: int) -> tuple[int, ...]:
    return {"constant": (D, N), "shared": (batch, N, L), "grouped": (batch, groups, N, L)}[kind]


def inputs(batch=2, D=4, N=3, L=9, dtype=torch.float64, B_kind="shared", C_kind="shared", groups=2, is_complex=False):
    """u, delta, A, B, C, D, z, delta_bias, and the initial state, by name."""
    wide = dtype.to_complex() if is_complex else dtype
    A = -torch.rand(D, N, dtype=dtype) - 0.1
    shapes = {"u": (batch, D, L), "delta": (batch, D, L), "D": (D,), "z": (batch, D, L), "delta_bias": (D,)}
    named = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    for name in ("delta", "delta_bias"):
        named[name] /= 4  # of both signs, and short: a growing mode stays far from float32's end for some tens of steps
    for name, kind in (("B", B_kind), ("C", C_kind)):
        shape = matrix_shape(kind, batch, D, N, L * (1 + is_complex), groups)
        named[name] = torch.randn(shape, dtype=wide if kind == "constant" else dtype)
    named["A"] = torch.complex(A, torch.randn_like(A)) if is_complex else A
    named["initial_state"] = torch.randn(batch, D, N, dtype=wide)
    return named


def in_order(op, names, **options):
    """The op as a function of these arguments in this order, with the state among its outputs."""

    def run(*tensors, **more):
        return op(**dict(zip(names, tensors, strict=True)), return_last_state=True, **options, **more)

    return run
