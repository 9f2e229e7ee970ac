"""Which of the three convolution algorithms runs: one function, and the measurement behind it."""

import torch

# Longest L for an algorithm that works in time; beyond it the FFT.
#
# Measured by `python -m firebolt_vl.bench.crossover` on an AMD EPYC with AVX-512: float32, one thread, shortest time of
# direct / chunked / FFT in ms, forward. Forward + backward crosses at the same place.
#
#       L    D 64, B 1             D 256, B 8            D 1024, B 1           D 1024, B 8
#      16    0.08 / 0.08 / 0.05    0.11 / 0.36 / 0.15    0.10 / 0.29 / 0.12    0.67 / 2.6 / 0.91
#      64    0.07 / 0.11 / 0.05    0.68 / 1.5  / 0.81    0.32 / 1.4  / 0.34    2.4  / 6.5 / 3.1
#     128    0.13 / 0.25 / 0.09    4.2  / 3.2  / 1.6     0.85 / 4.1  / 1.0     6.2  / 9.6 / 6.0
#     256    0.35 / 0.86 / 0.23    10   / 9.4  / 4.3     2.5  / 11   / 2.1     41   / 29  / 12
#    1024    2.8  / 4.9  / 0.95    87   / 62   / 14      32   / 68   / 9.3     380  / 220 / 79
#
# Direct wins, or loses less than 0.03 ms, up to 64 whatever D and B are. float64 has no fast grouped convolution: the
# chunked algorithm stands in (0.2 ms at D 64, B 1, L 64, where the FFT takes 0.06), so that up to the same length a
# later input does not change one bit of an earlier output. On other devices nothing has been measured yet.
IN_TIME_UP_TO = 64


def choose_algorithm(L: int, D: int, B: int, dtype: torch.dtype, device: torch.device | str) -> str:
    """`"direct"`, `"chunked"` or `"fft"` for u [B,D,L], computed in `dtype`.

    D and B do not move the crossover on the machine measured; they are arguments because they may on another.
    """
    if L > IN_TIME_UP_TO:
        return "fft"
    return "direct" if dtype == torch.float32 and torch.device(device).type == "cpu" else "chunked"
