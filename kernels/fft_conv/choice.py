"""Which of the convolution algorithms runs: one function, and the measurement behind it."""

import torch

# Longest L for an algorithm that works in time; beyond it the FFT.
#
# Measured by `firebolt bench crossover` on an AMD EPYC with AVX-512: float32, one thread, shortest time of
# direct / chunked / FFT in ms, forward. Forward + backward crosses at the same place.
#
#       L    D 64, B 1             D 256, B 8            D 1024, B 1           D 1024, B 8
#      16    0.06 / 0.05 / 0.04    0.11 / 0.34 / 0.15    0.10 / 0.29 / 0.12    0.32 / 1.3 / 0.56
#      32    0.06 / 0.05 / 0.04    0.18 / 0.44 / 0.22    0.14 / 0.41 / 0.17    0.79 / 2.1 / 1.0
#      64    0.07 / 0.13 / 0.05    0.36 / 0.66 / 0.47    0.32 / 1.5  / 0.35    1.7  / 3.4 / 2.0
#     128    0.10 / 0.29 / 0.07    3.1  / 2.4  / 1.1     0.87 / 4.5  / 0.94    5.4  / 8.0 / 4.6
#     256    0.19 / 0.64 / 0.12    8.4  / 6.3  / 2.3     2.4  / 12   / 1.7     30   / 24  / 8.5
#    1024    2.2  / 3.9  / 0.71    72   / 63   / 13      31   / 65   / 8.3     310  / 240 / 75
#
# The times cross between 64 and 128 whatever D and B are. But a sum of 64 terms, one by one, has more than twice the
# float32 error of the definition, and the FFT has not: the line is where direct meets the error budget as well.
# float64 has no fast grouped convolution: the chunked algorithm stands in, so that up to the same length a later input
# does not change one bit of an earlier output. Other devices have not been measured.
IN_TIME_UP_TO = 32


# Longest L for Toeplitz blocks by Triton's kernels. Not measured: no GPU has been at hand. `firebolt bench crossover
# --device cuda` measures it where there is one.
#
# Counted, as 16-bit multiply-adds an output: Toeplitz blocks take L / 2 for each pair of terms that stand for a product
# (six in float32, two or three where u has 16 bits, one with precision "fast"), and no memory worth counting. A Monarch
# FFT takes 500 to 900 for each, six, three or one of them, and beyond one kernel 36 bytes an output. The vendor's FFT
# takes 75 bytes. An H100 does 2000 to 4000 multiply-adds in the time of 36 bytes.
TOEPLITZ_UP_TO = {torch.float32: 1024, torch.float16: 2048, torch.bfloat16: 2048}
# Beyond. In float32 Monarch and the vendor's FFT come out even; the vendor's has been measured by its makers.
BEYOND_TOEPLITZ = {torch.float32: "vendor", torch.float16: "monarch", torch.bfloat16: "monarch"}

# The smallest transform of the Monarch kernels; the others are the powers of two beyond.
SMALLEST_TRANSFORM = 512


def choose_algorithm(
    L: int, D: int, B: int, dtype: torch.dtype, device: torch.device | str, *, kernels: bool = False
) -> str:
    """The algorithm for u [B,D,L]: `"direct"`, `"chunked"` or `"fft"`, computed in `dtype`.

    Where Triton's `kernels` run, and u has `dtype`: `"toeplitz"`, `"monarch"`, or `"vendor"`, the FFT of the device's
    library.

    D and B do not move the crossover on the machine measured; they are arguments because they may on another.
    """
    if kernels:
        return "toeplitz" if TOEPLITZ_UP_TO[dtype] >= L else BEYOND_TOEPLITZ[dtype]
    if L > IN_TIME_UP_TO:
        return "fft"
    return "direct" if dtype == torch.float32 and torch.device(device).type == "cpu" else "chunked"


def transform_size(L: int, K: int) -> int:
    """Of the Monarch transform that convolves L inputs with K taps: nothing wraps around."""
    return max(SMALLEST_TRANSFORM, 2 ** int(L + min(K, L) - 2).bit_length())


def has_transform(size: int) -> bool:
    """Whether the Monarch kernels have a transform of this size."""
    return size >= SMALLEST_TRANSFORM and size & (size - 1) == 0
