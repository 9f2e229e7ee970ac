"""The checker checked: mistakes put into compiled kernels, one at a time, and whether each is found."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..cases import Case
from .cases import EACH_KERNEL, usual_dtype
from .check import run as run_op
from .findings import Findings
from .launches import Run, Work, run
from .ptx import Address, Instruction, UnknownPTX, parse
from .report import in_processes

WATCHED, WRONG, WITHIN = "by watching memory", "by the error budget", "within the budget"
UNREACHED, BESIDE, NO_EFFECT = "not executed", "beside a barrier", "of no effect"
LEFT_OUT = "barrier left out"
# Of a kernel's products, masks and addresses; of its barriers, all.
MOST = 4


class Mutation(NamedTuple):
    """A line of PTX that is replaced."""

    kind: str
    line: int
    text: str

    def edit(self, ptx: str) -> str:
        lines = ptx.split("\n")
        lines[self.line - 1] = self.text
        return "\n".join(lines)


class Outcome(NamedTuple):
    kernel: str
    kind: str
    line: int
    source: str
    result: str


def mutations(ptx: str) -> Iterator[tuple[Mutation, Instruction]]:
    """Every barrier left out; of some products two operands exchanged; some masks dropped; some addresses moved on by
    an element."""
    instructions = parse(ptx).instructions
    products = [one for one in instructions if one.opcode.startswith("mma.")]
    accesses = [one for one in instructions if one.opcode.startswith(("ld.global", "st.global"))]
    for one in instructions:
        if one.opcode == "bar.sync":
            yield Mutation(LEFT_OUT, one.line, ""), one
    for one in some(products):
        a, b = one.operands[1].elements[:2]
        text = re.sub(rf"{a}\b(.*?){b}\b", rf"{b}\1{a}", one.text, count=1, flags=re.DOTALL)
        yield Mutation("operands of a product exchanged", one.line, f"{text};"), one
    for one in some([access for access in accesses if access.predicate]):
        yield Mutation("mask dropped", one.line, one.text.split(None, 1)[1] + ";"), one
    for one in some(accesses):
        [address] = [operand for operand in one.operands if isinstance(operand, Address)]
        element = int(re.search(r"\d+$", one.opcode)[0]) // 8
        text = re.sub(r"\[.*?\]", f"[ {address.base} + {address.offset + element} ]", one.text, count=1)
        yield Mutation("address off by an element", one.line, f"{text};"), one


def some(found: Sequence[Instruction]) -> list[Instruction]:
    """Select at most so many, evenly over the text."""
    return [found[i] for i in sorted({round(x) for x in np.linspace(0, len(found) - 1, min(MOST, len(found)))})]


def outcomes(op: str, case: Case, dtype: str, target: str, seed: int = 0) -> list[Outcome]:
    """Judge each mutation of the kernels that an op starts at a size."""
    emulation, _ = run_op(op, case, dtype, target, seed, keep=True)
    first = {launch.kernel: launch for launch in reversed(emulation.launches)}
    found = []
    for kernel, launch in first.items():
        whole, alone = (run(launch.work, Findings(), np.random.default_rng(seed), which) for which in (None, [0]))
        for mutation, instruction in mutations(launch.ptx):
            usual = alone if mutation.kind == LEFT_OUT else whole
            result = judge(launch.work, launch.ptx, mutation, instruction, usual, seed)
            if result == WITHIN and over_budget(op, case, dtype, target, seed, launch.ptx, mutation):
                result = WRONG
            found.append(Outcome(kernel, mutation.kind, mutation.line, instruction.source, result))
    return found


def judge(work: Work, ptx: str, mutation: Mutation, instruction: Instruction, usual: Run, seed: int) -> str:
    """Tell how a mistake shows in a launch, where `usual` is it without. Warps of one program are enough to see that a
    barrier is missing."""
    number = work.program.instructions.index(instruction)
    if not usual.executed[number]:
        return UNREACHED
    findings = Findings()
    try:
        program, programs = parse(mutation.edit(ptx)), [0] if mutation.kind == LEFT_OUT else None
        mutated = run(work._replace(program=program), findings, np.random.default_rng(seed), programs)
    except UnknownPTX:
        return WATCHED
    if findings:
        return WATCHED
    if not np.array_equal(mutated.bytes, usual.bytes):
        return WITHIN
    if mutation.kind == LEFT_OUT and beside_another(work.program.instructions, number):
        return BESIDE
    return NO_EFFECT


def beside_another(instructions: Sequence[Instruction], number: int) -> bool:
    """Tell whether nothing touches memory between a barrier and the one before or after it, or the end."""
    for step in (-1, 1):
        at = number + step
        while 0 <= at < len(instructions) and not instructions[at].opcode.startswith(
            ("ld.shared", "st.shared", "ld.global", "st.global", "ldmatrix", "stmatrix", "cp.async", "wgmma", "bra")
        ):
            if instructions[at].opcode in ("bar.sync", "ret"):
                return True
            at += step
    return False


def over_budget(op: str, case: Case, dtype: str, target: str, seed: int, ptx: str, mutation: Mutation) -> bool:
    """Tell whether the op with the mistake has an error beyond its budget."""
    try:
        emulation, judged = run_op(
            op, case, dtype, target, seed, edit=lambda other: mutation.edit(other) if other == ptx else other
        )
    except UnknownPTX:
        return True
    return bool(emulation.findings) or not all(error.within for error in judged)


def plan(ops: Sequence[str], quick: bool, seed: int) -> list[tuple[str, Case, str, str, int]]:
    """The arguments of `outcomes` for every kernel of the ops."""
    return [
        (op, case, usual_dtype(op, case), "sm_80", seed)
        for op in ops
        for case in EACH_KERNEL[op]
        if case.quick or not quick
    ]


def report(jobs: Sequence[tuple], processes: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    """Judge the mutations of all jobs; `progress(done, total)` is called after each."""
    found = in_processes(outcomes, jobs, processes, progress)
    return [outcome for of_job in found for outcome in of_job]
