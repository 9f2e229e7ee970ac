"""Kernels compiled for a prediction: their code, their registers and memory, and the loops of their IR."""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import NamedTuple

import triton

from ..compile import Job, compiled_kernel, pool_of_compilers, read_ptxas_log
from . import ptx, sass, ttir


class Compiled(NamedTuple):
    """A kernel for one target."""

    code: sass.Code
    loops: tuple[ptx.Counted, ...]
    """Of its PTX."""
    module: ttir.Module
    registers: int
    """Of a thread."""
    shared: int
    """Bytes of a program."""
    warps: int
    """Of a program."""
    spilled: int = 0
    """Bytes of a thread."""


def disassembler() -> str | None:
    """The path of nvdisasm, which comes with Triton; None where it does not."""
    try:
        return triton.knobs.nvidia.nvdisasm.path
    except (AttributeError, RuntimeError):
        return None


def disassemble(cubin: bytes) -> str:
    """The code of a cubin with the lines of its source. Raises RuntimeError where there is no nvdisasm."""
    program = disassembler()
    if program is None:
        raise RuntimeError("nvdisasm is neither beside Triton nor in the path; nothing can be predicted without it")
    with tempfile.TemporaryDirectory(prefix="firebolt-predict-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([program, "-c", "-g", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm fails: {done.stderr.strip()}")
    return done.stdout


def compile_for_prediction(job: Job) -> Compiled | str:
    """Compile in this process and read the code; what went wrong, if it did."""
    try:
        kernel, log = compiled_kernel(job)
        registers, spilled = read_ptxas_log(log)
        code, loops = sass.parse(disassemble(kernel.asm["cubin"])), ptx.loops(kernel.asm["ptx"])
        module = ttir.parse(kernel.asm["ttir"])
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[-1]}"
    return Compiled(code, loops, module, registers, kernel.metadata.shared, kernel.metadata.num_warps, spilled)


def compile_each(
    jobs: Sequence[Job], processes: int, progress: Callable[[int, int], None]
) -> dict[str, Compiled | str]:
    """The kernels of jobs by `Job.key`, or why there is none."""
    distinct = {job.key(): job for job in jobs}
    found: dict[str, Compiled | str] = {}
    progress(0, len(distinct))
    with (
        tempfile.TemporaryDirectory(prefix="firebolt-predict-") as folder,
        pool_of_compilers(processes, folder) as pool,
    ):
        futures = {pool.submit(compile_for_prediction, job): key for key, job in distinct.items()}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress(len(found), len(distinct))
    return found
