"""HiPPO-LegS and its normal-plus-low-rank form, in numpy float64 so that the initialisation is the same everywhere."""

import functools

import numpy as np
from numpy.typing import NDArray

Reals, Complexes = NDArray[np.floating], NDArray[np.complex128]


def legs(state_size: int) -> tuple[Reals, Reals]:
    """The scaled Legendre matrices A [N, N] and B [N]: x' = A x + B u keeps the whole past on Legendre polynomials.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) for n > k, -(n + 1) for n = k, 0 above;  B[n] = sqrt(2n + 1).
    HiPPO (arXiv 2008.07669), theorem 2.
    """
    root = np.sqrt(2.0 * np.arange(state_size) + 1.0)
    A = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(state_size) + 1.0)
    return A, root


@functools.cache
def nplr(state_size: int) -> tuple[Complexes, Complexes, Complexes, Complexes]:
    """LegS in the basis that makes it diagonal plus rank one: A = V (diag(w) - P P^H) V^H.

    p[n] = sqrt(n + 1/2) turns A into A + p p^T = -I/2 + S with S real and skew-symmetric, so its eigenvectors are
    unitary; P = V^H p and B = V^H B_legs. Of each conjugate pair only the mode with negative imaginary part is kept,
    in ascending order. Returns w, P, B [N/2] and V [N, N/2], complex128. S4 (arXiv 2111.00396), theorem 1.

    An eigenvector's phase is arbitrary; here its first component is real and positive. What is later done to P and B
    elementwise (clipping, Liquid-S4's powers) depends on that choice.
    """
    if state_size < 2 or state_size % 2:
        raise ValueError(f"nplr: state_size is {state_size}; expected an even number from 2 on")
    A, B = legs(state_size)
    p = np.sqrt(np.arange(state_size) + 0.5)
    normal = A + np.outer(p, p)
    skew = (normal - normal.T) / 2
    imaginary, V = np.linalg.eigh(-1j * skew)
    half = state_size // 2
    imaginary, V = imaginary[:half], V[:, :half]
    V = V * (np.abs(V[0]) / V[0])
    w = -0.5 + 1j * imaginary
    return w, V.conj().T @ p, V.conj().T @ B, V


def clip_imaginary(B: Complexes, limit: float = 2.0) -> Complexes:
    """Im B cut to [-limit, limit], as the original S4 initialises: the system is then not exactly LegS."""
    return B.real + 1j * np.clip(B.imag, -limit, limit)
