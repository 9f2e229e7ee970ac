"""The ops: functions of tensors, each with a plain PyTorch definition under the same name in `reference`."""

from . import reference
from .correlation import correlation_context
from .diagonal_scan import diagonal_scan
from .fft_conv import fft_conv
from .film import film_residual, grounded_film
from .selective_scan import selective_scan
from .spectrum import cauchy, vandermonde

__all__ = [
    "cauchy",
    "correlation_context",
    "diagonal_scan",
    "fft_conv",
    "film_residual",
    "grounded_film",
    "reference",
    "selective_scan",
    "vandermonde",
]
