"""PTX as Triton emits it, read into a program: registers with types, instructions with operands, labels resolved."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# What stands in a kernel's body without changing what it computes: to the end of the line, and to a semicolon.
LINE_DIRECTIVES = (".loc", ".file", ".section")
IGNORED_DIRECTIVE = ".pragma"
LABEL = re.compile(r"\$?[A-Za-z_][\w$]*:")
# What most lines are; the others are read by character.
WHOLE_STATEMENT = re.compile(r"\s*[^\s{}][^;]*;\s*")
DECLARATION = re.compile(r"\.reg\s+\.(\w+)\s+(.+)", re.DOTALL)
FAMILY = re.compile(r"(%?[\w$]+)<(\d+)>")
STATEMENT = re.compile(r"(?:@(!?)(%?[\w$#]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\n\{\n", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,\n]*?([\w$]+_param_\d+)")
SOURCE = re.compile(r"([\w.]+\.py:\d+)")


class UnknownPTX(Exception):
    """Something in the text that the emulator has no meaning for."""


class Address(NamedTuple):
    """An operand in brackets: [base + offset]."""

    base: str
    """A register, a parameter, or the name of the shared memory."""
    offset: int


class Vector(NamedTuple):
    """An operand in braces: {a, b, ...}."""

    elements: tuple[str, ...]


Operand = str | Address | Vector


@dataclass(frozen=True)
class Instruction:
    opcode: str
    """With all modifiers, such as `add.s32`."""
    operands: tuple[Operand, ...]
    predicate: str | None
    negated: bool
    """Whether it is executed where the predicate is false."""
    line: int
    """Of the PTX text, from 1 on."""
    source: str
    """File and line of the Python that it comes from, such as `triton_film.py:64`; empty where PTX does not tell."""
    text: str

    def __str__(self) -> str:
        where = f"PTX line {self.line}" + (f", {self.source}" if self.source else "")
        return f"{where}: {' '.join(self.text.split())}"


@dataclass(frozen=True)
class Program:
    name: str
    threads: int
    parameters: dict[str, str]
    """Their types by name, in order."""
    registers: dict[str, str]
    """Their types by name."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    """The number of the instruction that stands after each."""


def parse(text: str) -> Program:
    """The kernel of a PTX module. Raises UnknownPTX where it is not as Triton writes it."""
    entry = ENTRY.search(text)
    threads = re.search(r"\.reqntid\s+(\d+)", text)
    if entry is None or threads is None:
        raise UnknownPTX("the text has no .entry with .reqntid and a body")
    body = _Body(list(tokens(text[entry.end() :], first_line=text.count("\n", 0, entry.end()) + 1)))
    parameters = {name: kind for kind, name in PARAMETER.findall(entry[2])}
    return Program(entry[1], int(threads[1]), parameters, body.registers, tuple(body.instructions), body.labels)


class Token(NamedTuple):
    """A statement without its semicolon, a label with its colon, or a brace around a block."""

    text: str
    line: int
    source: str


def tokens(text: str, first_line: int) -> Iterator[Token]:
    """Split a kernel's body into tokens, to the brace that ends it. Operands' braces belong to their statement."""
    so_far, inner, blocks, source = "", 0, 1, ""
    for line, whole in enumerate(text.split("\n"), first_line):
        code, _, comment = whole.partition("//")
        if code.lstrip().startswith(LINE_DIRECTIVES):
            if found := SOURCE.findall(comment):
                source = found[-1]
            continue
        if not so_far.strip() and WHOLE_STATEMENT.fullmatch(code) and not LABEL.match(code.lstrip()):
            so_far = ""
            yield Token(code.strip()[:-1].rstrip(), line, source)
            continue
        for character in code + "\n":
            if not so_far.strip():
                so_far, start = "", line
                if character in "{}":
                    blocks += 1 if character == "{" else -1
                    if not blocks:
                        return
                    yield Token(character, line, source)
                    continue
            if character == ";" and not inner:
                yield Token(so_far.strip(), start, source)
                so_far = ""
                continue
            so_far += character
            inner += (character == "{") - (character == "}")
            if character == ":" and LABEL.fullmatch(so_far.strip()):
                yield Token(so_far.strip(), start, source)
                so_far = ""
    raise UnknownPTX("the kernel's body does not end")


class _Body:
    """Registers, instructions and labels of a kernel. Inner blocks have registers and labels of their own: these get
    the number of the block behind their name."""

    def __init__(self, found: list[Token]):
        self.registers: dict[str, str] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.renamed: list[dict[str, str]] = [{}]
        inner = iter(_labels_of_blocks(found))
        for number, token in enumerate(found):
            if token.text == "{":
                self.renamed.append({label: f"{label}#{number}" for label in next(inner)})
                self.block = number
            elif token.text == "}":
                self.renamed.pop()
            elif LABEL.fullmatch(token.text):
                self.labels[self._name(token.text[:-1])] = len(self.instructions)
            elif declared := DECLARATION.fullmatch(token.text):
                self._declare(*declared.groups())
            elif not token.text.startswith(IGNORED_DIRECTIVE):
                self.instructions.append(self._instruction(token))

    def _name(self, name: str) -> str:
        return next((block[name] for block in reversed(self.renamed) if name in block), name)

    def _declare(self, kind: str, names: str) -> None:
        for name in (name.strip() for name in names.split(",")):
            family = FAMILY.fullmatch(name)
            for one in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                if len(self.renamed) > 1:
                    self.renamed[-1][one] = f"{one}#{self.block}"
                self.registers[self._name(one)] = kind

    def _instruction(self, token: Token) -> Instruction:
        found = STATEMENT.fullmatch(token.text)
        if found is None:
            raise UnknownPTX(f"PTX line {token.line}: {token.text!r} is no instruction")
        negated, predicate, opcode, rest = found.groups()
        operands = tuple(self._operand(operand, token) for operand in split_operands(rest))
        predicate = self._name(predicate) if predicate else None
        return Instruction(opcode, operands, predicate, negated == "!", *token[1:], token.text)

    def _operand(self, text: str, token: Token) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self._name(element.strip()) for element in text.strip("{} \n\t").split(",")))
        if text.startswith("["):
            found = ADDRESS.fullmatch(text)
            if found is None:
                raise UnknownPTX(f"PTX line {token.line}: {text!r} is no address")
            return Address(self._name(found[1]), int(found[2] or "0", 0))
        return self._name(text)


def _labels_of_blocks(found: list[Token]) -> list[set[str]]:
    """The labels of each inner block, in the order in which they open: a branch may come before its label."""
    blocks: list[set[str]] = []
    around = []
    for token in found:
        if token.text == "{":
            around.append(set())
            blocks.append(around[-1])
        elif token.text == "}":
            around.pop()
        elif around and LABEL.fullmatch(token.text):
            around[-1].add(token.text[:-1])
    return blocks


def split_operands(text: str) -> list[str]:
    """Operands that commas part, but for those inside braces and brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return [part.strip() for part in parts if part.strip()]
