"""The compile report: every kernel that the ops would start, compiled for GPUs that need not be there.

Each op is called on tensors of a CPU while `recording()` notes what a GPU would be given (kernel, arguments, options);
each launch is specialised by the rules of `kernels/compiled.py` and compiled. So a kernel that is added to an op is
covered by itself.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend

from .. import kernels
from ..files.tables import markdown_table
from ..kernels import use_implementation
from ..kernels.compiled import compilation
from ..kernels.launch import FP_FUSION, Launch, interpreting, recording
from .cases import OPS, Case, Inputs, inputs


class Chip(NamedTuple):
    """A target of the compiler."""

    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int
    """Bytes of shared memory that one program can have."""


# Shared memory: CUDA Programming Guide, Technical Specifications per Compute Capability (8.6, 8.9 and 12.x: 99 KB), and
# AMD's "GPU specifications" (rocm.docs.amd.com), LDS.
CHIPS = {
    "sm_80": Chip("cuda", 80, 32, 163 * 1024),
    "sm_90": Chip("cuda", 90, 32, 227 * 1024),
    "sm_100": Chip("cuda", 100, 32, 227 * 1024),
    "sm_120": Chip("cuda", 120, 32, 99 * 1024),
    "gfx942": Chip("hip", "gfx942", 64, 64 * 1024),
    "gfx950": Chip("hip", "gfx950", 64, 160 * 1024),
}
# PTX of NVIDIA; AMD's CDNA has v_mfma and, of sparse matrices, v_smfmac, its RDNA v_wmma and v_swmmac.
TENSOR_CORE_INSTRUCTION = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_(?:s?mfmac?|s?wmmac?)_)")
QUICK_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Job:
    """One compilation: a kernel specialised for a target, and the op, size and dtype where it was first needed."""

    op: str
    case: str
    dtype: str
    target: str
    module: str
    kernel: str
    signature: dict[str, Any]
    constexprs: dict[tuple[int, ...], Any]
    attrs: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def key(self) -> str:
        """Key that is equal for equal compilations."""
        return repr((self.target, self.module, self.kernel, self.signature, self.constexprs, self.attrs, self.options))


@dataclass(frozen=True)
class Row:
    """Result of a compilation. The numbers are None where it failed."""

    op: str
    kernel: str
    case: str
    dtype: str
    target: str
    registers: int | None = None
    """Per thread."""
    spilled: int | None = None
    """Bytes per thread stored to memory for want of registers."""
    shared: int | None = None
    """Bytes per program."""
    tensor_core_instructions: int | None = None
    wants_tensor_cores: bool | None = None
    """Whether the kernel has a dot that is not of float32 operands in full IEEE arithmetic."""
    seconds: float | None = None
    problem: str | None = None

    def described(self) -> str:
        return f"{self.op}: {self.kernel}, {self.case}, {self.dtype}, {self.target}"


def record(op: str, case: Case, dtype: str) -> list[Launch]:
    """The launches of an op at a size: without gradients, and with them, forward and backward."""
    call = inputs(op, case, dtype, fill=False)
    with recording() as launches, use_implementation("triton"):
        with torch.no_grad():
            run_forward(op, call)
        call = OPS[op].leaves(call)
        run_backward(call, run_forward(op, call))
    return launches


def run_forward(op: str, call: Inputs) -> list[Tensor]:
    """The outputs of an op; what it changes among them."""
    outputs = getattr(kernels, op)(*call.args, **call.kwargs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [*outputs, call.args[0]] if OPS[op].in_place else outputs


def run_backward(call: Inputs, outputs: Sequence[Tensor]) -> None:
    """Take the gradients of all leaves of a call, if it has them, for gradients of its outputs that are memory as it
    comes."""
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs:
        return
    gradients = [_gradient_of(output, call) for output in outputs]
    torch.autograd.grad(outputs, call.leaves(), gradients, allow_unused=True)


def _gradient_of(output: Tensor, call: Inputs) -> Tensor:
    """Memory in the layout of the first argument of the same shape: a model that gives channels last takes them so."""
    alike = next((tensor for tensor in call.tensors() if tensor.shape == output.shape), output)
    return torch.empty_like(alike, dtype=output.dtype, requires_grad=False)


def specialise(launch: Launch, op: str, case: str, dtype: str, target: str) -> Job:
    """The compilation that a launch would start on a GPU of the target."""
    kernel, chip = launch.kernel, CHIPS[target]
    backend = make_backend(GPUTarget(*chip[:3]))
    known = backend.parse_options({"enable_fp_fusion": FP_FUSION}).__dict__  # `launch` gives maxnreg to NVIDIA alone
    options = {name: value for name, value in launch.options.items() if name in known}
    _, signature, constexprs, attrs = compilation(kernel, backend, tuple(launch.arguments.values()), options)
    function = kernel.fn
    names = function.__module__, function.__qualname__
    return Job(op, case, dtype, target, *names, signature, constexprs, attrs, options)


def plan(
    ops: Sequence[str], dtypes: Sequence[str], targets: Sequence[str], quick: bool = False, in_turn: bool = False
) -> tuple[list[Job], list[Row]]:
    """The distinct compilations, and a row for each case in which an op failed before it started a kernel.

    in_turn   each for one target of NVIDIA and one of AMD, the next with each distinct compilation of a kernel
    """
    jobs: dict[str, Job] = {}
    turns = _Turns()
    failed = []
    for op in ops:
        started = False
        cases = [case for case in OPS[op].cases if case.quick or not quick]
        for case in cases:
            for dtype in (dtype for dtype in OPS[op].dtypes if dtype in dtypes):
                try:
                    launches = record(op, case, dtype)
                except Exception as error:
                    failed.append(Row(op, op, str(case), dtype, "every target", problem=f"raises {one_line(error)}"))
                    continue
                started |= bool(launches)
                for launch in launches:
                    specialised = [specialise(launch, op, str(case), dtype, target) for target in targets]
                    for job in turns.choose(specialised) if in_turn else specialised:
                        jobs.setdefault(job.key(), job)
        if not started and any(dtype in dtypes for dtype in OPS[op].dtypes):
            failed.append(Row(op, op, "every size", "every dtype", "every target", problem="started no kernel"))
    return list(jobs.values()), failed


class _Turns:
    """The order in which targets are taken: kernel -> what was specialised. Kernels begin with different ones."""

    def __init__(self):
        self.kernels: dict[str, dict[str, int]] = {}

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """Take one job of each vendor, of jobs that are one launch on several targets; of an equal launch the same."""
        first = jobs[0]
        turns = self.kernels.setdefault(first.kernel, {})
        turn = turns.setdefault(first.key(), len(turns) + list(self.kernels).index(first.kernel))
        vendors: dict[str, list[Job]] = {}
        for job in jobs:
            vendors.setdefault(CHIPS[job.target].backend, []).append(job)
        return [of_vendor[turn % len(of_vendor)] for of_vendor in vendors.values()]


def compile_job(job: Job) -> Row:
    """Compile in this process; whatever goes wrong is the row's problem."""
    names = job.op, job.kernel, job.case, job.dtype, job.target
    start = time.perf_counter()
    try:
        compiled, log = compiled_kernel(job)
    except Exception as error:
        return Row(*names, problem=f"does not compile: {one_line(error)}")
    seconds = time.perf_counter() - start
    if CHIPS[job.target].backend == "cuda":
        assembly, registers, spilled = compiled.asm["ptx"], *read_ptxas_log(log)
    else:
        assembly = compiled.asm["amdgcn"]
        registers, spilled = read_amdgcn(assembly)
    row = Row(
        *names,
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        tensor_core_instructions=len(TENSOR_CORE_INSTRUCTION.findall(assembly)),
        wants_tensor_cores=wants_tensor_cores(compiled.asm["ttir"]),
        seconds=round(seconds, 2),
    )
    return Row(**asdict(row) | {"problem": find_problem(row)})


def compiled_kernel(job: Job) -> tuple[CompiledKernel, str]:
    """Compile a job in this process: the kernel, and the log of ptxas. Raises what Triton raises."""
    kernel = importlib.import_module(job.module)
    for name in job.kernel.split("."):
        kernel = getattr(kernel, name)
    log = io.StringIO()
    source = ASTSource(kernel, job.signature, job.constexprs, job.attrs)
    # ptxas' own log has the spills, and Triton prints it; without it Triton prints pages about what failed.
    with contextlib.redirect_stdout(log):
        return triton.compile(source, target=GPUTarget(*CHIPS[job.target][:3]), options=job.options), log.getvalue()


def find_problem(row: Row) -> str | None:
    limit = CHIPS[row.target].shared_limit
    if row.spilled:
        return f"spills {row.spilled} bytes a thread"
    if row.shared > limit:
        return f"needs {row.shared} bytes of shared memory of {limit}"
    if row.wants_tensor_cores and not row.tensor_core_instructions:
        return "has a dot without tensor-core instructions"
    return None


def read_ptxas_log(log: str) -> tuple[int, int]:
    """Registers, and bytes of spill stores; the most of all functions in the log of `ptxas -v`."""
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    spilled = [int(number) for number in re.findall(r"(\d+) bytes spill stores", log)]
    if not registers or not spilled:
        raise RuntimeError("ptxas wrote a log of another kind; expected registers and spill stores. Is Triton newer?")
    return max(registers), max(spilled)


def read_amdgcn(assembly: str) -> tuple[int, int]:
    """Vector registers, and bytes of scratch memory: spilled registers and what else lies in the private segment."""

    def most(name: str) -> int:
        found = [int(number) for number in re.findall(rf"^\s*\.{name}:\s*(\d+)", assembly, flags=re.MULTILINE)]
        if not found:
            raise RuntimeError(f"the assembly is of another kind; expected .{name}. Is Triton newer?")
        return max(found)

    return most("vgpr_count"), max(4 * most("vgpr_spill_count"), most("private_segment_fixed_size"))


def wants_tensor_cores(ttir: str) -> bool:
    """Tell whether a dot is other than one of float32 operands in IEEE arithmetic, which is Triton's plain `tt.dot`."""
    dots = [line for line in ttir.splitlines() if re.search(r"\btt\.dot(_scaled)?\b", line)]
    return any("inputPrecision" in dot or "xf32> *" not in dot for dot in dots)


def compile_all(jobs: Sequence[Job], processes: int) -> Iterator[Row]:
    """The rows as they are done. A compiler that dies takes its process along, and only its own row fails."""
    with tempfile.TemporaryDirectory(prefix="firebolt-compile-") as folder:
        waiting = list(jobs)
        while waiting:
            done, crashed = [], False
            with pool_of_compilers(processes, folder) as pool:
                futures = {pool.submit(compile_job, job): job for job in waiting}
                for future in as_completed(futures):
                    try:
                        row = future.result()
                    except BrokenProcessPool:
                        crashed = True
                    else:
                        done.append(futures[future])
                        yield row
            if not crashed:
                return
            waiting = [job for job in waiting if job not in done]
            for job in waiting[: 2 * processes]:  # those that were under way, each alone
                yield _compile_alone(job, folder)
            waiting = waiting[2 * processes :]


def _compile_alone(job: Job, folder: str) -> Row:
    with pool_of_compilers(1, folder) as pool:
        try:
            return pool.submit(compile_job, job).result()
        except BrokenProcessPool:
            problem = "does not compile: the compiler crashed"
            return Row(job.op, job.kernel, job.case, job.dtype, job.target, problem=problem)


def pool_of_compilers(processes: int, cache: str) -> ProcessPoolExecutor:
    """Processes that compile for nobody else, with Triton's cache in a folder."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=prepare_process, initargs=(cache,))


def prepare_process(cache: str) -> None:
    """Triton's disk cache in a folder of our own, so that times are those of compiling; ptxas' log on stdout."""
    os.environ["TRITON_CACHE_DIR"] = cache
    torch.set_num_threads(1)  # there are as many processes as cores
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()):  # the first compilation in a process takes seconds longer
        target = GPUTarget(*CHIPS["sm_90"][:3])
        triton.compile(ASTSource(_probe, {}), target=target, options={"enable_fp_fusion": FP_FUSION})


def is_interpreting() -> bool:
    """Tell whether kernels are made for Triton's interpreter here: then there is nothing to compile."""
    return interpreting(_probe)


@triton.jit
def _probe():
    pass


def one_line(error: BaseException) -> str:
    """Say what an error is in its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Triton's compilation errors quote the source first and end with the reason.
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


COLUMNS = ("op", "kernel", "dtype", "target", "registers", "spilled", "shared", "limit", "tensor cores", "seconds")


def worst(rows: Sequence[Row]) -> list[Row]:
    """Choose for each op, kernel, dtype and target the row that is nearest to a limit."""

    def badness(row: Row) -> tuple:
        return row.problem is not None, row.spilled or 0, row.registers or 0, row.shared or 0

    found: dict[tuple, Row] = {}
    for row in rows:
        name = row.op, row.kernel, row.dtype, row.target
        if name not in found or badness(row) > badness(found[name]):
            found[name] = row
    order = list(OPS), list(CHIPS)
    return sorted(
        found.values(),
        key=lambda row: (
            order[0].index(row.op) if row.op in OPS else 0,
            row.kernel,
            row.dtype,
            order[1].index(row.target) if row.target in CHIPS else 0,
        ),
    )


def cells(row: Row) -> list[str]:
    """A row as the tables show it."""
    if row.registers is None:
        return [row.op, row.kernel, row.dtype, row.target, *["-"] * 6]
    if row.tensor_core_instructions:
        used = f"yes ({row.tensor_core_instructions})"
    else:
        used = "NO" if row.wants_tensor_cores else "-"
    numbers = row.registers, row.spilled, row.shared, CHIPS[row.target].shared_limit, used, f"{row.seconds:.1f}"
    return [row.op, row.kernel, row.dtype, row.target, *(str(number) for number in numbers)]


def markdown(rows: Sequence[Row], command: str) -> str:
    """The report as a file of docs/."""
    bad = [row for row in rows if row.problem]
    shown = worst(rows)
    verdict = f"{len(bad)} of them with a problem" if bad else "all of them without a spill and within the limits"
    if not rows:
        verdict = "for no op has a kernel yet"
    lines = [
        "# Compile report",
        "",
        f"Written by `{command}` with Triton {triton.__version__}: {len(rows)} distinct compilations, {verdict}.",
        "",
        "Every launch of every op at the sizes of `bench/cases.py`, forward and backward, compiled without a GPU. Of",
        "each kernel, dtype and target the size with the most spilled bytes, then registers, is shown. Registers and",
        "spilled bytes are per thread (`ptxas -v`, spill stores; AMD: vector registers and scratch memory), shared",
        "memory and its limit are bytes per program. Tensor cores: how many such instructions the kernel has (`-`: it",
        "has no dot). Seconds are those of one compilation, on a shared machine.",
        "",
        markdown_table((*COLUMNS, "size"), [[*cells(row), row.case] for row in shown], left=4),
    ]
    if bad:
        lines += ["", "## Problems", "", *(f"- {row.described()}: {row.problem}" for row in bad)]
    return "\n".join(lines) + "\n"


def report(
    ops: Sequence[str],
    dtypes: Sequence[str],
    targets: Sequence[str],
    quick: bool,
    processes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    in_turn: bool = False,
) -> list[Row]:
    """Plan and compile; `progress(done, total)` is called after each compilation."""
    jobs, rows = plan(ops, dtypes, targets, quick, in_turn)
    progress(0, len(jobs))
    for row in compile_all(jobs, processes):
        rows.append(row)
        progress(len(rows), len(jobs))
    return rows
