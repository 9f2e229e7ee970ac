"""Work for several processes: every op at small sizes in the emulator."""

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory

from ..cases import OPS, Case
from ..compile import pool_of_compilers
from .cases import CASES, EACH_KERNEL
from .check import Row, check

TARGETS = ("sm_80", "sm_90", "sm_100")
Job = tuple[str, Case, str, str, int]


def plan(ops: Sequence[str], dtypes: Sequence[str], targets: Sequence[str], quick: bool, seed: int) -> list[Job]:
    """The arguments of `check` for each row. On targets other than the first, a case or two of each kernel."""
    return [
        (op, case, dtype, target, seed)
        for target in targets
        for op in ops
        for case in (CASES if target == TARGETS[0] else EACH_KERNEL)[op]
        if case.quick or not quick
        for dtype in dtypes
        if dtype in OPS[op].dtypes
    ]


def report(jobs: Sequence[Job], processes: int, progress: Callable[[int, int], None]) -> list[Row]:
    """The rows of the jobs; `progress(done, total)` is called after each."""
    return in_processes(check, jobs, processes, progress)


def in_processes(work: Callable, jobs: Sequence[tuple], processes: int, progress: Callable[[int, int], None]) -> list:
    """work(*job) of each job, in processes that compile into one cache, which is theirs."""
    progress(0, len(jobs))
    done = []
    with TemporaryDirectory(prefix="firebolt-emulate-") as folder, pool_of_compilers(processes, folder) as pool:
        for result in pool.map(work, *zip(*jobs)):
            done.append(result)
            progress(len(done), len(jobs))
    return done
