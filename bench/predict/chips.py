"""GPUs as predictions know them: published numbers, each with its source.

Numbers of arithmetic are results a clock of one processor ("CUDA C++ Programming Guide", Arithmetic Instructions,
Throughput of Native Arithmetic Instructions, by compute capability), those of tensor cores floating-point operations a
clock of one processor, a multiplication and an addition being two: the published peak over processors and clock.
"""

from typing import NamedTuple

# A launch in a stream after others: what one adds to the time of those before, and a grid's own start and end
# (A. Gray, "Getting Started with CUDA Graphs", NVIDIA Technical Blog: 0.9 us and some 2 us on a V100).
LAUNCH_US = 2.0
# What copies reach of the published bandwidth of memory (DeviceToDevice of CUDA's bandwidthTest on A100 and H100).
REACHED_OF_BANDWIDTH = 0.92
# Clocks from the issue of an instruction until its result can be read, of a warp alone: W. Luo et al., "Benchmarking
# and Dissecting the Nvidia Hopper GPU Architecture" (arXiv 2402.13499), tables of memory latency and of mma; Z. Jia et
# al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking" (arXiv 1804.06826), dependent issue.
ARITHMETIC_LATENCY, SHARED_LATENCY, TENSOR_LATENCY, FUNCTION_LATENCY, BARRIER_LATENCY = 4, 29, 33, 23, 20


class Chip(NamedTuple):
    """A GPU. Sizes in bytes, rates as the module says."""

    name: str
    target: str
    """For which its code is compiled (`compile.CHIPS`)."""
    processors: int
    clock_ghz: float
    memory_tb_per_s: float
    l2_bytes_per_clock: float
    """Of the whole chip."""
    memory_latency: int
    """Clocks from a load that no cache has until its value can be read."""
    warps: int
    """The most that a processor holds."""
    programs: int
    """The most that a processor holds."""
    shared: int
    """Of a processor."""
    tensor: float
    """Of 16-bit operands, by `mma`; TF32 has half of it."""
    warpgroup_tensor: float
    """By `wgmma`."""
    double: float
    """float64."""

    registers: int = 65536
    """Of 32 bits, of a processor; the same for all of them (Programming Guide, Technical Specifications)."""
    schedulers: int = 4
    """Each issues one instruction of one warp a clock."""
    single: float = 128
    """float32 additions, multiplications, both at once; two-wide 16-bit ones."""
    integer: float = 64
    """Integers, logic, comparisons, selections; integer multiplications, which the float32 units do."""
    function: float = 16
    """Reciprocals, roots, exp2, sin; conversions between widths that are no packing."""
    lanes: float = 32
    """Of loads and stores of 32 bits to shared memory and L1, and shuffles: 128 bytes a clock."""


# NVIDIA H100 Tensor Core GPU Architecture (whitepaper), H100 SXM5: 132 processors, 989.4 TFLOP/s of bfloat16, which is
# 4096 a clock at 1.83 GHz, 3.35 TB/s, 228 KB of shared memory, 66.9 TFLOP/s of float64 with tensor cores, half without.
# `mma` reaches 62.9 % of what `wgmma` does (arXiv 2402.13499). Its L2 bandwidth is not published: that of the A100.
H100 = Chip(
    name="H100 SXM",
    target="sm_90",
    processors=132,
    clock_ghz=1.83,
    memory_tb_per_s=3.35,
    l2_bytes_per_clock=5120,
    memory_latency=479,
    warps=64,
    programs=32,
    shared=228 * 1024,
    tensor=0.629 * 4096,
    warpgroup_tensor=4096,
    double=64,
)
CHIPS = {
    "h100": H100,
    # NVIDIA H200 Tensor Core GPU (datasheet): the H100 with 4.8 TB/s.
    "h200": H100._replace(name="H200 SXM", memory_tb_per_s=4.8),
    # NVIDIA A100 Tensor Core GPU Architecture (whitepaper): 108 processors, 1.41 GHz, 312 TFLOP/s, 19.5 of float32 (its
    # processors have half as many units as later ones), 5120 bytes a clock of L2, 164 KB of shared memory; the 80 GB
    # datasheet: 2.039 TB/s.
    "a100": H100._replace(
        name="A100 SXM 80GB",
        target="sm_80",
        processors=108,
        clock_ghz=1.41,
        memory_tb_per_s=2.039,
        memory_latency=466,
        shared=164 * 1024,
        tensor=2048,
        warpgroup_tensor=2048,
        double=32,
        single=64,
    ),
    # NVIDIA Ada GPU Architecture (whitepaper), RTX 4090: 128 processors, 2.52 GHz, 165.2 TFLOP/s of 16-bit operands
    # summed in float32, 1.008 TB/s; Programming Guide, 8.9: 48 warps, 24 programs, 100 KB, two float64 a clock. L2 as
    # measured by chipsandcheese.com, some 5 TB/s. Triton makes the same code for it as for sm_80, which is compiled.
    "rtx4090": H100._replace(
        name="RTX 4090",
        target="sm_80",
        processors=128,
        clock_ghz=2.52,
        memory_tb_per_s=1.008,
        l2_bytes_per_clock=2048,
        memory_latency=542,
        warps=48,
        programs=24,
        shared=100 * 1024,
        tensor=512,
        warpgroup_tensor=512,
        double=2,
    ),
}


class BytesOnly(NamedTuple):
    """A GPU of which no instruction rates are known here: only its memory is reckoned with."""

    name: str
    target: str
    processors: int
    memory_tb_per_s: float


# AMD Instinct MI300X (data sheet): 304 compute units, 5.3 TB/s. There is no SASS; AMD publishes no rates for the scalar
# and vector pipes of a wave that could stand beside those above.
MI300X = BytesOnly("MI300X", "gfx942", 304, 5.3)
NAMES = (*CHIPS, "mi300x")


def chip_of(name: str) -> Chip | BytesOnly:
    """A chip by one of NAMES."""
    return CHIPS.get(name, MI300X)


def chip_of_device(device: str) -> Chip | BytesOnly | None:
    """The chip that a driver gives this name, such as "NVIDIA H100 80GB HBM3"."""
    parts = {"h100": "H100", "h200": "H200", "a100": "A100", "rtx4090": "RTX 4090", "mi300x": "MI300X"}
    return next((chip_of(name) for name, part in parts.items() if part in device), None)
