"""The ops: functions of tensors, each with a plain PyTorch definition under the same name in `reference`."""

from . import reference
from .diagonal_scan import diagonal_scan
from .fft_conv import fft_conv
from .selective_scan import selective_scan
from .spectrum import cauchy, vandermonde

__all__ = ["cauchy", "diagonal_scan", "fft_conv", "reference", "selective_scan", "vandermonde"]
