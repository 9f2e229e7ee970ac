"""Tables of what was emulated, and the page docs/emulation.md."""

from collections import Counter
from collections.abc import Sequence

import triton

from ...files.tables import markdown_table
from .check import Row
from .instructions import OPCODES
from .mutate import BESIDE, LEFT_OUT, NO_EFFECT, UNREACHED, WATCHED, WITHIN, WRONG, Outcome

COLUMNS = (
    "op",
    "size",
    "dtype",
    "target",
    "kernels",
    "programs",
    "instructions",
    "values",
    "gradients",
    "findings",
)
LEFT = 4
MISTAKES = ("kernel", "mistake", "made", WATCHED, WRONG, UNREACHED, BESIDE, NO_EFFECT, WITHIN)
INTRODUCTION = """# Emulation

The kernels as Triton compiles them for a GPU (PTX), run without one: forward and backward, on small sizes with masks,
strides, packed sequences and odd lengths. `bench/emulate/` reads the PTX, executes each instruction with NumPy, an
element a thread, and watches every byte of shared and global memory. `make emulate` runs the quick selection.

Values and gradients are held to the error budget against float64 (docs/mathematics.md, section 9); `values` and
`gradients` are errors as shares of what it allows, 1 at most. Findings are

- two warps that touch a byte between the same two barriers, one of them writing, if what is read matters;
- two programs of a launch that touch a byte, one of them writing; programs run in random order;
- reads of shared or global memory that nothing wrote;
- addresses outside of the tensors that a kernel was given, outside of its shared memory, or not aligned;
- reads of asynchronous copies that were not waited for;
- barriers that not all threads reach.

An instruction or a modifier that the emulator does not know is an error that names it and its line.
"""
UNCOVERED = """## What is not covered

- SASS: what ptxas makes of the PTX. Its registers and spills are in docs/compile-report.md.
- tcgen05, TMA and thread block clusters: kernels for sm_100 whose products use tensor memory stop at the first such
  instruction.
- A warp as anything but threads in step: races within a warp are not looked for. Where threads of one warp write
  unlike values to a byte at once, which of them stays is random.
- Approximate instructions (ex2, lg2, sin, cos, tanh, rcp, rsqrt, sqrt, division) err by a fraction of the bound that
  NVIDIA documents, which depends on the bits of the result: not by what the hardware errs.
- Products on tensor cores are exact and their sums are rounded once; the hardware adds in an order of its own.
- Caches, and the order in which other programs see writes: no kernel here waits for another program.
- Time.
"""


def cells(row: Row) -> list[str]:
    """A case as the tables show it."""
    names = [row.op, row.case, row.dtype, row.target]
    if not row.kernels:
        return [*names, *["-"] * (len(COLUMNS) - len(names) - 1), str(len(row.problems))]
    numbers = [len(row.kernels), row.programs, row.instructions]
    shares = [f"{max(row.values):.2f}", " ".join(f"{share:.2f}" for share in row.gradients)]
    return [*names, *map(str, numbers), *shares, str(len(row.problems) or "-")]


def page(rows: Sequence[Row], outcomes: Sequence[Outcome], command: str) -> str:
    """The report as a file of docs/."""
    bad = [row for row in rows if row.problems]
    verdict = f"{len(bad)} with findings" if bad else "none with a finding"
    lines = [
        INTRODUCTION,
        f"Written by `{command}` with Triton {triton.__version__}. {len(OPCODES):,} opcodes are known, each with its",
        "modifiers.",
        "",
        "## Cases",
        "",
        f"{len(rows)} cases, {verdict}: {sum(row.programs for row in rows):,} programs,",
        f"{sum(row.instructions for row in rows):,} instructions.",
        "",
        markdown_table(COLUMNS, map(cells, rows), left=LEFT),
        "",
        *(f"- {row.described()}: {problem}" for row in bad for problem in row.problems),
    ]
    if outcomes:
        lines += ["", "## Mistakes put in", "", *_verdict(outcomes), "", mistakes(outcomes), ""]
    return "\n".join([*lines, UNCOVERED])


def _verdict(outcomes: Sequence[Outcome]) -> list[str]:
    found = sum(outcome.result in (WATCHED, WRONG) for outcome in outcomes)
    within = sum(outcome.result == WITHIN for outcome in outcomes)
    idle = len(outcomes) - found - within
    return [
        f"One at a time, {len(outcomes)} in all: {found} are found, {idle} change nothing that the kernel does at this",
        f"size, and {within} leave errors within the budget: float32 products are sums of six products of bfloat16",
        "terms, the smallest of which hardly count. Every barrier of a kernel is left out in turn, and the first",
        "program of the grid is run; of its products, masked accesses and addresses a few are changed. A barrier that",
        "is not found to be missing is one that no thread reaches at this size, one beside another barrier or the end",
        "with no access between the two, or one across which no byte passes from a warp to another. A mask or an",
        "operand of no effect is one that only matters at other sizes: a mask that is true everywhere, rows of a",
        "product that are zeros.",
        "",
        *_of_barriers([outcome for outcome in outcomes if outcome.kind == LEFT_OUT]),
    ]


def _of_barriers(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines on the barriers that were left out: how many are found, and why the others are not."""
    if not outcomes:
        return []
    by_result = Counter(outcome.result for outcome in outcomes)
    found = by_result[WATCHED] + by_result[WRONG]
    reached, apart = len(outcomes) - by_result[UNREACHED], by_result[NO_EFFECT]
    sharing = {outcome.kernel for outcome in outcomes if outcome.result != NO_EFFECT}
    alone = Counter(outcome.kernel for outcome in outcomes if outcome.kernel not in sharing)
    lines = [
        f"Of {len(outcomes)} barriers {found} are found to be missing, {found / max(1, reached):.0%} of the {reached}",
        f"that a thread reaches; {by_result[BESIDE]} stand beside another one, and across {apart} no byte passes from",
        "a warp to another.",
    ]
    if alone:
        names = ", ".join(f"{name} ({count})" for name, count in alone.items())
        lines += ["Warps share nothing at all, whatever Triton puts between them, in", f"{names}."]
    return lines


def mistakes(outcomes: Sequence[Outcome]) -> str:
    """A row for each kernel and kind of mistake."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for outcome in outcomes:
        of_row = counts.setdefault((outcome.kernel, outcome.kind), dict.fromkeys(MISTAKES[3:], 0))
        of_row[outcome.result] += 1
    rows = [
        [*names, sum(of_row.values()), *(number or "-" for number in of_row.values())]
        for names, of_row in counts.items()
    ]
    return markdown_table(MISTAKES, rows, left=2)
