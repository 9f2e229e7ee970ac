"""Vandermonde and Cauchy products over conjugate pairs: kernels and spectra of state-space models."""

from .op import cauchy, vandermonde

__all__ = ["cauchy", "vandermonde"]
