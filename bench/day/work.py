"""Work of the steps: each yields its rows as they are found. Runs in a process of its own, which may be killed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import triton
from transformers.utils import logging

from .. import answer
from .. import kernels as measuring
from ..cases import OPS
from ..compile import CHIPS, Job, compiled_kernel, one_line, pool_of_compilers, record, specialise
from ..predict.chips import chip_of_device
from ..predict.report import Subject, predictions
from ..sweep import asked, climb, replacing, winners
from .clocks import swept
from .others import others
from .steps import Scale

ROOT = Path(__file__).resolve().parents[2]
MODES = ("forward", "backward")
Row = dict[str, Any]
# A line of `pytest -v`: the result before the test where there are workers, behind it where there are none.
RESULT = re.compile(r"(?:(?P<first>PASSED|FAILED|SKIPPED|ERROR) )?(?P<test>tests/\S+?::\S+)(?: (?P<last>[A-Z]+))?")
TESTS = {
    "gpu": ("tests/kernels/test_gpu.py", "-k", "not sanitizer"),
    "kernels": ("tests/kernels", "-m", "triton or gpu"),
}
ANSWERS = ("ours", "ours-compiled", "ours-int8-compiled")
SWEPT_SIZES = 2


def compile_all(_: str, scale: Scale) -> Iterator[Row]:
    """Compile what will be started with all cores, into Triton's own cache, where later steps find it."""
    target = target_of(scale.device)
    if target is None:
        yield {"note": "nothing was compiled beforehand: this device is none of the targets of the compile report"}
        return
    jobs: dict[str, Job] = {}
    for op in OPS:
        for dtype in scale.dtypes(op):
            for case in scale.cases(op, dtype):
                for launch in record(op, case, dtype):
                    job = specialise(launch, op, str(case), dtype, target)
                    jobs.setdefault(job.key(), job)
    with pool_of_compilers(os.cpu_count() or 1, triton.knobs.cache.dir) as pool:
        for job, problem in zip(jobs.values(), pool.map(_compile, jobs.values())):
            yield {"kernel": job.kernel, "size": job.case, "dtype": job.dtype, "target": target, "problem": problem}


def target_of(device: str) -> str | None:
    """The target of the compile report that the GPU here is; None for another device."""
    if device != "cuda":
        return None
    card = torch.cuda.get_device_properties(0)
    amd = torch.version.hip is not None
    arch = card.gcnArchName.partition(":")[0] if amd else 10 * card.major + card.minor
    return next((name for name, chip in CHIPS.items() if chip.arch == arch), None)


def _compile(job: Job) -> str:
    """Compile into the cache and say what is wrong, or nothing."""
    try:
        compiled_kernel(job)
    except Exception as error:
        return one_line(error)
    return ""


def run_tests(argument: str, scale: Scale) -> Iterator[Row]:
    """Run tests of kernels, compiled, and yield each result as it comes."""
    if not (ROOT / "tests").is_dir():
        yield {"note": f"{ROOT} has no tests: they are in the repository alone"}
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        *TESTS[argument],
    ]
    if not scale.small and find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, stdout=subprocess.PIPE, text=True
    ) as tests:
        for line in tests.stdout or ():
            lines.append(line.strip())
            if row := read_result(line):
                yield row
    if tests.returncode not in (0, 1):  # all passed, some failed
        raise RuntimeError(f"pytest ends with {tests.returncode}: {' / '.join(lines[-3:])}")
    yield from ({"note": line} for line in lines if line.startswith("FAILED"))


def read_result(line: str) -> Row | None:
    """The test and its result in a line of `pytest -v`; None for a line of another kind."""
    found = RESULT.search(line)
    result = found and (found["first"] or found["last"])
    return {"test": found["test"], "result": result.lower()} if found and result else None


def time_op(argument: str, scale: Scale) -> Iterator[Row]:
    """Time an op in a dtype beside its definition, torch.compile of it, and other libraries."""
    op, dtype = argument.split()
    for number, case in enumerate(scale.cases(op, dtype)):
        notes: list[str] = []
        points: list[measuring.Point] = []
        try:
            subject = measuring.op_subject(op, case, dtype, scale.device, others)
            if number or scale.small:  # compiling the definition takes longer than all the rest
                subject.providers.pop("compiled", None)
            if "fast" in case.options:
                subject = subject._replace(check=lambda: "not checked: products of 16 bits are beyond the budget")
            points = measuring.measure(subject, MODES, scale.device, scale.seconds, notes.append)
        except Exception as error:  # such as too little memory
            notes.append(f"{op} {case} {dtype}: {one_line(error)}")
        yield from (asdict(point) for point in points)
        yield from ({"note": note} for note in notes)


def sweep_op(op: str, scale: Scale) -> Iterator[Row]:
    """Try the configurations around the defaults of an op's kernels; check the quickest of each."""
    dtype = scale.dtypes(op)[0]
    for case in scale.cases(op, dtype)[:SWEPT_SIZES]:
        with swept(op, case, dtype, scale) as subject:
            for mode in OPS[op].modes(MODES):
                for question in asked(partial(subject.run, mode)):
                    trials = list(climb(op, str(case), mode, question, subject.clock))
                    for trial in winners(trials):
                        answer_by = partial(replacing, trial.kernel, json.loads(trial.configuration))
                        trials[trials.index(trial)] = replace(trial, problem=subject.check(answer_by) or "")
                    yield from map(asdict, trials)


def time_answers(argument: str, scale: Scale) -> Iterator[Row]:
    """Time whole answers for a batch: eager, compiled into CUDA graphs, and so with weights of 8 bits."""
    logging.set_verbosity_error()
    dtype = "bfloat16" if scale.device == "cuda" else "float32"
    for name in ANSWERS[:1] if scale.small else ANSWERS:  # a rehearsal waits for no compiler
        subjects = answer.build(dtype, scale.device, scale.new_tokens, False, [name], scale.answers, int(argument))
        yield from (asdict(row) for row in answer.measure(list(subjects), scale.new_tokens, 2, scale.device))


def predict_all(_: str, scale: Scale) -> Iterator[Row]:
    """Predict what was timed, for the chip that is here."""
    chip = chip_of_device(measuring.device_name(scale.device))
    if chip is None:
        yield {"note": f"nothing is predicted: the numbers of {measuring.device_name(scale.device)} are not known"}
        return
    subjects = [
        Subject(op, case, dtype, mode)
        for op in OPS
        for dtype in scale.dtypes(op)
        for case in scale.cases(op, dtype)
        for mode in OPS[op].modes(MODES)
    ]
    for row in predictions(subjects, chip, os.cpu_count() or 1):
        longest = max(row.launches, key=lambda launch: launch.total_us, default=None)
        yield {
            "op": row.op,
            "sizes": row.case,
            "dtype": row.dtype,
            "mode": row.mode,
            "predicted_us": row.us,
            "bound": longest.bound if longest else "",
            "problem": row.problem or "",
        }


WORK: dict[str, Callable[[str, Scale], Iterator[Row]]] = {
    "compile": compile_all,
    "tests": run_tests,
    "times": time_op,
    "sweep": sweep_op,
    "answers": time_answers,
    "predict": predict_all,
}
