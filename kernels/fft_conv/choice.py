"""Which of the three convolution algorithms runs: one function, and the measurement behind it."""

import torch

# Longest L for an algorithm that works in time; beyond it the FFT.
#
# Measured with `python -m firebolt_vl.bench.crossover` on an AMD EPYC with AVX-512, one thread, shortest time in ms of
# direct / chunked / FFT, forward (float32; forward + backward crosses at the same place):
#
#       L     D 64, B 1              D 256, B 8             D 1024, B 1             D 1024, B 8
#      16     0.06 / 0.04 / 0.03     0.10 / 0.5 / 0.15      0.08 / 0.15 / 0.11      0.4 / 2.3 / 0.8
#      64     0.07 / 0.20 / 0.05     0.40 / 1.1 / 0.51      0.19 / 6.6  / 0.30      1.8 / 9.0 / 2.0
#     128     0.09 / 0.37 / 0.07     1.3  / 2.5 / 1.3       0.72 / 12   / 0.87      15  / 19  / 8.9
#     256     0.17 / 0.72 / 0.12     7.7  / 11  / 2.2       2.6  / 25   / 1.9       33  / 47  / 20
#    1024     2.7  / 9.0  / 0.80     170  / 110 / 25        72   / 98   / 13        720 / 380 / 110
#
# Direct wins or ties (within 0.03 ms) up to 64 whatever D and B are. In float64 there is no fast grouped convolution:
# the chunked algorithm (0.2 ms at D 64, L 64, against 0.06 for the FFT) stands in, so that up to the same length a later
# input does not change one bit of an earlier output. On other devices nothing has been measured yet.
IN_TIME_UP_TO = 64


def choose_algorithm(L: int, D: int, B: int, dtype: torch.dtype, device: torch.device | str) -> str:
    """`"direct"`, `"chunked"` or `"fft"` for u [B,D,L], computed in `dtype`.

    D and B do not move the crossover on the machine measured; they are arguments because they may on another.
    """
    if L > IN_TIME_UP_TO:
        return "fft"
    return "direct" if dtype == torch.float32 and torch.device(device).type == "cpu" else "chunked"
