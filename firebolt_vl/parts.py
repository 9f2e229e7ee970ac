"""The file of answers as one process writes it, or several: a part for each, joined by whichever is done last.

Process 2 of 4 appends to answers.2-of-4.jsonl as one alone does to answers.jsonl. Nobody waits: whoever is done looks
whether each question has its answer or its problem in the parts together, and then writes answers.jsonl whole, in the
order of the questions. A process that was killed leaves the parts as they are; the same command goes on with them, and
so does one process alone, which then is a part too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .answer_files import (
    AnswerFile,
    Problem,
    ProblemFile,
    Question,
    check_answers,
    problems_of,
    read_answers,
    read_problems,
    write_problems,
)
from .errors import Misuse
from .files.writing import OutputError, check_output, followed, is_locked, turn_at, write_whole
from .outputs import check_place
from .ranks import Rank
from .row_files import Rows

# Neighbours, which often ask about one image, stay together: rows are dealt in blocks, several to each process.
BLOCK, BLOCKS_EACH = 64, 4
ENDING = ".jsonl"


def dealt(rows: Sequence[Question], rank: Rank) -> list[Question]:
    """The rows that are a process's to answer."""
    block = max(1, min(BLOCK, len(rows) // (BLOCKS_EACH * rank.count)))
    return [row for place, row in enumerate(rows) if place // block % rank.count == rank.number]


class Part(NamedTuple):
    """Part `number` (from 1) of `count` of a file."""

    number: int
    count: int

    def of(self, out: str) -> Path:
        path = Path(out)
        ending = ENDING if path.name.endswith(ENDING) else ""
        return path.with_name(f"{path.name.removesuffix(ENDING)}.{self.number}-of-{self.count}{ending}")


def parts_of(out: str) -> list[Part]:
    """The parts of a file of answers that have an answer or a list of problems."""
    path = Path(out)
    stem = re.escape(path.name.removesuffix(ENDING))
    ending = re.escape(ENDING) if path.name.endswith(ENDING) else ""
    named = re.compile(rf"{stem}\.(\d+)-of-(\d+)(?:{ending}|\.errors\.jsonl)")
    found = (named.fullmatch(file.name) for file in path.parent.iterdir())
    return sorted({Part(int(match[1]), int(match[2])) for match in found if match})


@dataclass
class Joined:
    """Counts of all parts together."""

    answers: int
    bad: int


class Output:
    """The answers to a file of questions, open for this process: the file itself, or its part of it."""

    def __init__(
        self,
        questions: str,
        out: str,
        asked: Sequence[Question],
        bad: Sequence[Problem],
        rank: Rank,
        report: Callable[[str], None],
    ):
        """`bad`: the rows that are no questions. `report` is told a warning. Raises Misuse where this cannot be."""
        self.questions, self.out, self.asked, self.bad, self.rank = questions, out, asked, bad, rank
        check_place("--out", out)
        self.listed = problems_of(out)
        self.inputs = [("the file of questions", questions)]
        # Checks alone; whether this run writes it depends on the parts.
        self.problems = ProblemFile(self.listed, out, self.inputs)
        self.inputs.append(("the list of its problems", str(self.listed)))
        self.others: list[Rows] = []
        self.part: Part | None = None
        if rank.count == 1 and not parts_of(out):
            self.file = AnswerFile(out, self.inputs, report)
            return
        self.part = Part(rank.number + 1, rank.count)
        self.problems = ProblemFile(problems_of(str(self.part.of(out))), str(self.part.of(out)), self.inputs)
        with turn_at(Path(out)):
            self._check_parts()
            self.file = self._open_part(report)

    def _check_parts(self) -> None:
        """Check that no other run writes to these files, and that the parts are those of as many processes."""
        try:
            check_output("--out", self.out, self.inputs, lambda file: True)  # its rows are looked at by `check`
        except OutputError as error:
            raise Misuse(str(error)) from None
        alone = self.rank.count == 1
        for part in parts_of(self.out):
            file = part.of(self.out)
            if alone and is_locked(file):
                raise Misuse(f"--out is {self.out}, where another run is writing; wait for it or name another file")
            if not alone and part.count != self.rank.count and (_size(file) or is_locked(file)):
                raise Misuse(
                    f"--out is {self.out}, which has a part of {part.count} processes ({file.name}) and "
                    f"this run has {self.rank.count}; start {part.count} again, or one alone, which goes on with any"
                )
        if is_locked(Path(self.out)):
            raise Misuse(f"--out is {self.out}, where another run is writing; wait for it or name another file")

    def _open_part(self, report: Callable[[str], None]) -> AnswerFile:
        assert self.part is not None
        self.others = [read_answers(path) for path in self._files() if path != self.part.of(self.out)]
        return AnswerFile(str(self.part.of(self.out)), self.inputs, report)

    def _files(self) -> list[Path]:
        """The file itself and its parts."""
        return [Path(self.out), *(part.of(self.out) for part in parts_of(self.out))]

    def __enter__(self) -> "Output":
        self.problems.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.problems.__exit__()
        if self.part is None:
            self.file.close()
            return
        with turn_at(Path(self.out)):
            self.file.close()
            if not _size(self.part.of(self.out)):  # nothing that others would have to mind
                self.part.of(self.out).unlink(missing_ok=True)

    def check(self, by: dict, mixed: bool) -> set[str]:
        """The keys of the questions that are answered, here or in another part.

        Raises Misuse where a file answers another question, has answers of other questions in a part, or, unless
        `mixed`, answers of another model or with other settings than `by`.
        """
        self.by, self.mixed = by, mixed
        return self._check([self.file, *self.others])

    def _check(self, files: Sequence[Rows]) -> set[str]:
        keys = {row.key for row in self.asked}
        for file in files:
            strange = next((key for key in file.rows if key not in keys), None)
            if strange is not None and file.path != followed(self.out):
                raise Misuse(
                    f"--out is {self.out}, whose part {file.out} answers id {strange}, and {self.questions} has no "
                    "such row; finish the run of those questions first, or name another file"
                )
        return set().union(*(check_answers(file, self.asked, self.by, self.mixed) for file in files))

    def mine(self) -> list[Question]:
        """The questions that are this process's to answer."""
        return dealt(self.asked, self.rank)

    def join(self) -> Joined | None:
        """Join the parts, once this one is closed, where no other process has still to do: else None.

        Raises Misuse where the parts are of several questions or models.
        """
        if self.part is None:
            return None
        with turn_at(Path(self.out)):
            parts = parts_of(self.out)
            if not parts or any(is_locked(part.of(self.out)) for part in parts):
                return None
            files = [read_answers(path) for path in self._files()]
            answered, problems = self._check(files), self._unanswered(parts)
            if any(row.key not in answered and row.line not in problems for row in self.asked):
                return None
            lines = {key: line for file in files for key, line in file.lines.items()}
            bad = [problems[row.line] for row in self.asked if row.key not in answered]
            self._write(lines, sorted([*bad, *self.bad], key=lambda problem: problem.line))
            for part in parts:
                part.of(self.out).unlink(missing_ok=True)
                problems_of(str(part.of(self.out))).unlink(missing_ok=True)
            return Joined(len(answered), len(bad) + len(self.bad))

    def _unanswered(self, parts: Sequence[Part]) -> dict[int, Problem]:
        """The problems of questions in the lists of all parts, by line; the file's own list has those of parts that
        were joined before."""
        lists = [self.listed, *(problems_of(str(part.of(self.out))) for part in parts)]
        names = {row.line: row.id for row in self.asked}
        told = (problem for file in lists for problem in read_problems(file))
        return {problem.line: problem for problem in told if names.get(problem.line) == problem.id}

    def _write(self, lines: dict[str, bytes], problems: Sequence[Problem]) -> None:
        """Write the answers, those of other questions first, and the list of problems."""
        asked = {row.key for row in self.asked}
        order = [*(key for key in lines if key not in asked), *(row.key for row in self.asked if row.key in lines)]
        write_whole(
            Path(self.out), lambda temporary: temporary.write_bytes(b"".join(lines[key] + b"\n" for key in order))
        )
        write_problems(self.listed, problems)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
