"""The code of a compiled kernel as `nvdisasm` prints it: instructions by pipe, and the loops that they form."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PIPES = ("issue", "fma", "alu", "function", "fp64", "tensor", "lsu")
_OF_PIPE = {
    "fma": "FFMA FMUL FADD IMAD HFMA2 HADD2 HMUL2",
    "alu": """IADD3 IABS LOP3 SHF ISETP SEL PRMT FSETP FMNMX FSEL LEA VIADD VIMNMX VIADDMNMX VIMNMX3 SGXT PLOP3 P2R R2P
        MOV F2FP I2FP HSETP2 HMNMX2 FCHK BMSK VABSDIFF ISCADD IMNMX SHL SHR LOP FSET""",
    "function": "MUFU F2F I2F F2I FRND POPC FLO BREV",
    "fp64": "DFMA DMUL DADD DSETP DMNMX",
    "tensor": "HMMA HGMMA",
    "lsu": "LDG STG LDS STS LDSM STSM LDGSTS LDL STL LD ST SHFL ATOM ATOMG ATOMS RED REDUX",
}
PIPE = {opcode: pipe for pipe, opcodes in _OF_PIPE.items() for opcode in opcodes.split()}
_SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")
_WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_REGISTERS = {1: 1, 2: 1, 4: 1, 8: 2, 16: 4}

_FILE_AND_LINE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_BRANCH = re.compile(r"`\((\.L_x_\d+)\)")
_REGISTER = re.compile(r"\b(R\d+)(\.64)?")


class Place(NamedTuple):
    """A line of a source file."""

    file: str
    line: int


class Instruction(NamedTuple):
    """One instruction of a warp."""

    opcode: str
    """Without what follows the first dot."""
    modifiers: tuple[str, ...]
    operands: str
    place: Place | None

    @property
    def bytes_of_a_lane(self) -> int:
        """The bytes that a thread loads or stores: for `ldmatrix` and `stmatrix` its share of the matrices."""
        if self.opcode in ("LDSM", "STSM"):
            return 4 * int(self.modifiers[-1] if self.modifiers[-1].isdigit() else 1)
        return next((_WIDTH[name] for name in self.modifiers if name in _WIDTH), 4)

    def is_shared(self) -> bool:
        return self.opcode in _SHARED

    def written(self) -> list[str]:
        """The registers that hold the result."""
        if self.opcode in ("STG", "STS", "STSM", "STL", "LDGSTS", "RED", "BAR") or not self.operands:
            return []
        first = _REGISTER.match(self.operands)
        if first is None:
            return []
        number = int(first[1][1:])
        return [f"R{number + i}" for i in range(self._registers())]

    def read(self) -> list[str]:
        """The registers that have to be there; of operands of several registers the first two."""
        operands = self.operands if not self.written() else self.operands.partition(",")[2]
        found = []
        for name, pair in _REGISTER.findall(operands):
            found.append(name)
            if pair or self.opcode in ("HMMA", "STG", "STS", *_OF_PIPE["fp64"].split()):
                found.append(f"R{int(name[1:]) + 1}")
        return found

    def _registers(self) -> int:
        if self.opcode in ("HMMA", "HGMMA"):
            return 4
        if PIPE.get(self.opcode) == "fp64" or "WIDE" in self.modifiers or self.modifiers[:1] == ("F64",):
            return 2
        if PIPE.get(self.opcode) == "lsu" and self.opcode != "SHFL":
            return _REGISTERS[min(16, self.bytes_of_a_lane)]
        return 1

    def tensor_operations(self) -> float:
        """Floating-point operations of one warp, those of TF32 counted twice; four warps share one of HGMMA."""
        shape = self.modifiers[0]
        if self.opcode == "HGMMA":
            m, n, k = (int(size) for size in shape.split("x"))
            operations = 2 * m * n * k / 4
        else:  # such as 16816, which is 16 x 8 x 16
            operations = 2 * 16 * 8 * int(shape[3:])
        return operations * (2 if "TF32" in self.modifiers else 1)


class Loop(NamedTuple):
    """A loop: what lies between the target of a branch backwards and the branch."""

    place: Place | None
    """Of the branch: the source's line of the loop itself."""
    body: tuple["Instruction | Loop", ...]


Code = Sequence[Instruction | Loop]


def parse(text: str) -> Code:
    """The instructions of the first function in `nvdisasm -c -g`, loops as they lie within one another."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    place = None
    for line in text.splitlines():
        if found := _FILE_AND_LINE.match(line):
            place = Place(Path(found[1]).name, int(found[2]))
        elif found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            opcode, *modifiers = found[1].split(".")
            instructions.append(Instruction(opcode, tuple(modifiers), found[2], place))
    ends: dict[int, int] = {}  # of each loop its first instruction, and its last
    for i, instruction in enumerate(instructions):
        target = _BRANCH.search(instruction.operands) if instruction.opcode == "BRA" else None
        if target and labels.get(target[1], i) < i:  # a branch to itself only fills the code's end
            ends[labels[target[1]]] = i
    return _nested(instructions, ends, 0, len(instructions))


def _nested(instructions: list[Instruction], ends: dict[int, int], start: int, end: int) -> Code:
    found: list[Instruction | Loop] = []
    at = start
    while at < end:
        last = ends.get(at)
        if last is not None and last < end:
            rest = {first: other for first, other in ends.items() if first != at}
            found.append(Loop(instructions[last].place, tuple(_nested(instructions, rest, at, last + 1))))
            at = last + 1
        else:
            found.append(instructions[at])
            at += 1
    return tuple(found)
