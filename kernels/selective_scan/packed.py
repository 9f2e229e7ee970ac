"""Packed sequences one after the other, as the reference implementation and the PyTorch form run them."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.dtypes import complex_dtype, compute_dtype
from .inputs import Inputs


def text_by_text(
    scan: Callable, inputs: Inputs, borders: Tensor, return_last_state: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Run `scan`, a selective_scan, on each sequence between two `borders` alone, and join its results.

    An empty sequence hands on its state as it is.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, _ = inputs
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if initial_state is None:
        initial_state = A.new_zeros(borders.shape[0] - 1, *A.shape)
    outputs, states = [], []
    for h, (first, end) in zip(initial_state.split(1), itertools.pairwise(borders.tolist())):
        if end > first:
            x, step, gate = (None if t is None else t[..., first:end] for t in (u, delta, z))
            pairs = 2 if A.is_complex() else 1
            of_time = slice(pairs * first, pairs * end)
            b, c = (matrix if matrix.ndim == 2 else matrix[..., of_time] for matrix in (B, C))
            y, h = scan(x, step, A, b, c, D, gate, delta_bias, delta_softplus, True, h)
            outputs.append(y)
        states.append(h.to(complex_dtype(dtype) if A.is_complex() else dtype))
    y = torch.cat(outputs, -1)
    return (y, torch.cat(states)) if return_last_state else y
