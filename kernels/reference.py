"""Reference implementations: every op in plain PyTorch, with the signature of its public function."""

from .diagonal_scan.reference import diagonal_scan
from .fft_conv.reference import fft_conv
from .gated_scan.reference import gated_scan
from .linear.reference import linear
from .modulation.reference import correlation_context, film_residual, grounded_film
from .selective_scan.reference import selective_scan, selective_state_update
from .spectrum.reference import cauchy, vandermonde

__all__ = [
    "cauchy",
    "correlation_context",
    "diagonal_scan",
    "fft_conv",
    "film_residual",
    "gated_scan",
    "grounded_film",
    "linear",
    "selective_scan",
    "selective_state_update",
    "vandermonde",
]
