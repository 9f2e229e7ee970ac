"""Small PTX programs that run in the emulator on NumPy arrays."""

from collections.abc import Sequence

import numpy as np

from firebolt_vl.bench.emulate.findings import Findings
from firebolt_vl.bench.emulate.launches import Work, run
from firebolt_vl.bench.emulate.memory import GAP, Global
from firebolt_vl.bench.emulate.ptx import parse

# %rd0, %rd1, ... are the addresses of the arrays, and %rd10, %rd11, ... those of the thread's own element of each.
MODULE = """
.version 8.8
.extern .shared .align 16 .b8 global_smem[];
.visible .entry toy_kernel(
{parameters}
)
.reqntid {threads}
{{
\t.reg .pred %p<20>;
\t.reg .b16 %rs<40>;
\t.reg .b32 %r<60>;
\t.reg .b64 %rd<60>;
\tmov.u32 %r50, %tid.x;
{addresses}
{body}
\tret;
}}
"""
WIDTHS = {"8": "rs", "16": "rs", "32": "r", "64": "rd"}


def module(body: str, arrays: Sequence[np.ndarray], threads: int = 32) -> str:
    parameters = ",\n".join(f"\t.param .u64 .ptr .global .align 1 toy_kernel_param_{i}" for i in range(len(arrays)))
    addresses = "\n".join(
        f"\tld.param.b64 %rd{i}, [toy_kernel_param_{i}];\n\tmad.wide.u32 %rd{10 + i}, %r50, {array.itemsize}, %rd{i};"
        for i, array in enumerate(arrays)
    )
    return MODULE.format(parameters=parameters, addresses=addresses, body=body, threads=threads)


def execute(
    body: str,
    *arrays: np.ndarray,
    threads: int = 32,
    grid: Sequence[int] = (1,),
    shared: int = 0,
    unwritten: Sequence[np.ndarray] = (),
    seed: int = 0,
) -> tuple[list[np.ndarray], set[str]]:
    """The arrays after the program, and the problems that were found. Nothing has written those of `unwritten`."""
    findings = Findings()
    places, size = [], GAP
    for array in arrays:
        places.append(size)
        size += -(-array.nbytes // GAP) * GAP + GAP

    def fill(memory: Global) -> None:
        for place, array in zip(places, arrays):
            part = slice(place, place + array.nbytes)
            memory.bytes[part] = array.reshape(-1).view(np.uint8)
            memory.valid[part] = True
            memory.written[part] = not any(array is one for one in unwritten)

    addresses = [Global.base + place for place in places]
    work = Work(parse(module(body, arrays, threads)), grid, addresses, size, fill, shared)
    done = run(work, findings, np.random.default_rng(seed))
    after = [
        done.bytes[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        for place, array in zip(places, arrays)
    ]
    return after, {finding.problem for finding in findings}


def compute(opcode: str, *operands: np.ndarray | str, result: np.dtype, more: str = "") -> np.ndarray:
    """What an instruction gives for operands with one element a thread, or for constants as they are written.

    `more` are further operands, as text.
    """
    arrays = [operand for operand in operands if isinstance(operand, np.ndarray)]
    target, lines, names = np.zeros(len(arrays[0]), result), [], []
    for number, operand in enumerate(operands):
        if isinstance(operand, str):
            names.append(operand)
            continue
        place = next(i for i, array in enumerate(arrays) if array is operand)
        bits, name = 8 * operand.itemsize, f"%{WIDTHS[str(8 * operand.itemsize)]}{20 + number}"
        if operand.dtype == bool:
            lines.append(f"ld.global.b8 %rs1, [%rd{10 + place}];\nsetp.ne.b16 %p{number}, %rs1, 0;")
            name = f"%p{number}"
        else:
            lines.append(f"ld.global.b{bits} {name}, [%rd{10 + place}];")
        names.append(name)
    bits = 8 * target.itemsize
    given = ", ".join([*names, *filter(None, [more])])
    if target.dtype == bool:
        lines.append(f"{opcode} %p10, {given};\nselp.b16 %rs19, 1, 0, %p10;")
        lines.append(f"st.global.b8 [%rd{10 + len(arrays)}], %rs19;")
    else:
        out = f"%{WIDTHS[str(bits)]}19"
        lines.append(f"{opcode} {out}, {given};\nst.global.b{bits} [%rd{10 + len(arrays)}], {out};")
    threads = len(target)
    after, problems = execute("\n".join(lines), *arrays, target, threads=threads)
    assert problems == set()
    return after[-1]
