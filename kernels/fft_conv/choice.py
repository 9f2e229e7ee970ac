"""Choice of the convolution algorithm: one function, and the measurement behind it."""

import torch

# On a CPU, in float32: the longest L that is always convolved in time, so that a later input does not change one bit of
# an earlier output; the largest D L with which the chunked algorithm does that, direct beyond; and the longest L, with
# the fewest B D, for which direct is still faster than the FFT.
#
# Measured by `firebolt bench crossover --seconds 0.3 --longest 16384` on an AMD EPYC with AVX-512: one thread, shortest
# time of direct / chunked / FFT in ms, forward.
#
#       L    D 64, B 1             D 64, B 8             D 256, B 1            D 256, B 8
#      16    0.10 / 0.07 / 0.07    0.11 / 0.09 / 0.10    0.11 / 0.08 / 0.09    0.15 / 0.14 / 0.19
#      32    0.11 / 0.07 / 0.07    0.13 / 0.10 / 0.12    0.12 / 0.13 / 0.10    0.22 / 0.24 / 0.28
#      48    0.20 / 0.20 / 0.09    0.25 / 0.27 / 0.18    0.24 / 0.54 / 0.15    0.45 / 0.84 / 0.56
#      64    0.21 / 0.19 / 0.09    0.27 / 0.27 / 0.19    0.25 / 0.54 / 0.16    0.57 / 0.85 / 0.60
#     128    0.40 / 0.40 / 0.12    0.62 / 0.58 / 0.31    0.54 / 1.3  / 0.25    1.9  / 2.3  / 1.4
#     256    0.82 / 0.82 / 0.17    1.6  / 1.4  / 0.67    1.3  / 3.1  / 0.48    7.0  / 6.2  / 2.8
#    1024    4.7  / 4.7  / 0.54    16   / 12   / 3.0     10   / 16   / 2.2     103  / 52   / 12
#
#       L    D 1024, B 1           D 1024, B 8
#      16    0.14 / 0.18 / 0.16    0.30 / 0.36 / 0.61
#      32    0.18 / 0.39 / 0.22    0.73 / 0.89 / 1.1
#      48    0.38 / 2.0  / 0.41    1.8  / 3.6  / 2.3
#      64    0.45 / 2.0  / 0.44    2.6  / 3.7  / 2.6
#     128    1.3  / 5.3  / 0.93    7.8  / 9.5  / 5.4
#     256    3.4  / 13   / 1.8     41   / 31   / 13
#    1024    45   / 67   / 7.9     965  / 207  / 54
#
# The FFT's lead grows on to L = 16384. What is chosen takes at most 1.14 times the fastest at every length and width of
# that run. Forward + backward it is at most 1.17 times beyond L = 32, the fastest beyond L = 48, and up to 1.47 times
# (D 256, B 1, L 32) where it has to be in time.
#
# Direct adds up blocks of at most 32 taps. Without them it is up to 1.6 times as fast beyond L = 32, but no candidate:
# one sum of 64 products, one by one, has three times the float32 error of the reference, where the budget is twice;
# and at D 1024 and L 128 it would be 1.4 times as fast as the FFT, with 3.5 times the error.
#
# float64 has no fast grouped convolution: the chunked algorithm stands in. Other devices have not been measured.
IN_TIME_UP_TO = 32
MOST_OF_ONE_CHUNK = 4096
DIRECT_UP_TO, FEWEST_ROWS_OF_DIRECT = 48, 1024


# Longest L for Toeplitz blocks by Triton's kernels: predicted for an H100 by `bench/predict`, not measured; `firebolt
# bench crossover --device cuda` measures it. Microseconds at B 64, D 768 with a gate, of Toeplitz / Monarch; of the
# vendor's FFT its launches and bytes alone, 75 an output.
#
#       L    bfloat16, fast    bfloat16         float32    vendor's FFT
#    1024     119               133              344         923
#    2048     307               476              817        1838
#    4096    1026 /  3230      1797 /  5308     2886        3670
#    8192    3699 /  6308      6954 / 10230                 7330
#
# Toeplitz blocks take L / 2 multiply-adds of 16-bit numbers an output for each pair of terms that stand for a product:
# one with precision "fast", two or three where u has 16 bits; six in float32, and three beyond 1024. From 2048 on they
# are bound by that.
TOEPLITZ_UP_TO = {torch.float32: 4096, torch.float16: 8192, torch.bfloat16: 8192}
# Beyond. In float32 Monarch and the vendor's FFT need as much; the vendor's is tuned on GPUs.
BEYOND_TOEPLITZ = {torch.float32: "vendor", torch.float16: "monarch", torch.bfloat16: "monarch"}

# The smallest transform of the Monarch kernels; the others are the powers of two beyond.
SMALLEST_TRANSFORM = 512


def choose_algorithm(
    L: int, D: int, B: int, dtype: torch.dtype, device: torch.device | str, *, kernels: bool = False
) -> str:
    """The algorithm for u [B,D,L]: `"direct"`, `"chunked"` or `"fft"`, computed in `dtype`.

    Where Triton's `kernels` run, and u has `dtype`: `"toeplitz"`, `"monarch"`, or `"vendor"`, the FFT of the device's
    library.
    """
    if kernels:
        return "toeplitz" if TOEPLITZ_UP_TO[dtype] >= L else BEYOND_TOEPLITZ[dtype]
    if dtype != torch.float32 or torch.device(device).type != "cpu":
        return "chunked" if L <= IN_TIME_UP_TO else "fft"
    if L <= IN_TIME_UP_TO:
        return "chunked" if D * L <= MOST_OF_ONE_CHUNK else "direct"
    return "direct" if L <= DIRECT_UP_TO and B * D >= FEWEST_ROWS_OF_DIRECT else "fft"


def transform_size(L: int, K: int) -> int:
    """Return the size of the Monarch transform that convolves L inputs with K taps without wrapping around."""
    return max(SMALLEST_TRANSFORM, 2 ** int(L + min(K, L) - 2).bit_length())


def has_transform(size: int) -> bool:
    """Tell whether the Monarch kernels have a transform of this size."""
    return size >= SMALLEST_TRANSFORM and size & (size - 1) == 0
