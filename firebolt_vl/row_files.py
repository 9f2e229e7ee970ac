"""A file of JSON lines that grows row by row: each is there whole and once, or not at all, and says what gave it."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import Failure, Misuse, disk_failure
from .files.reading import parse_json
from .files.writing import OutputError, check_output, followed, lock, same_file, words
from .outputs import check_place

FIRST_KEY = b'{"id": '
ANOTHER = "name another file"


class Rows:
    """The rows of a file, as they are there: a line each, by the JSON of its id."""

    def __init__(self, option: str, out: str, columns: Sequence[str], what: str, advice: str = ANOTHER):
        """`option` names the file, `what` a row, which has the keys `columns`, `id` first; `advice` is what to do where
        the file is another one."""
        self.option, self.out, self.path = option, out, followed(out)
        self.columns, self.what, self.advice = columns, what, advice
        self.rows: dict[str, dict] = {}
        self.lines: dict[str, bytes] = {}

    def read(self) -> "Rows":
        """Read what is whole, of a file that another process may be writing; nothing of one that is not there.

        Raises Misuse where the file holds something else.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise Misuse(f"{self.option} is {self.out}, which cannot be read ({words(error)}); {self.advice}") from None
        self._take(content)
        return self

    def _take(self, content: bytes) -> bytes:
        """Keep the whole rows of a file's content. Returns what is after the last one, which is torn. Raises Misuse.

        After whole rows anything may be torn; alone it has to look like the beginning of one, or be the zeros that a
        crash of the machine leaves.
        """
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            if not self._keep(line, number):
                raise self._other(number)
        rest = content[whole:]
        if rest and self._keep(rest, len(self.rows) + 1):
            return b""
        if rest and not (self.rows or FIRST_KEY.startswith(rest[: len(FIRST_KEY)]) or not rest.strip(b"\0")):
            raise self._other(1)
        return rest

    def _keep(self, line: bytes, number: int) -> bool:
        """Keep the row in a line of the file; False where it is something else."""
        try:
            row = parse_json(line)
        except ValueError:
            return False
        if not isinstance(row, dict) or not all(name in row for name in self.columns):
            return False
        key = json.dumps(row["id"])
        self.rows[key], self.lines[key] = {**row, "line": number}, line
        return True

    def _other(self, number: int) -> Misuse:
        where = f"{self.option} is {self.out}, whose line {number}"
        return Misuse(f"{where} is no {self.what} of this command; {self.advice}")

    def check_by(self, found: dict, by: dict, advice: str | None = None) -> None:
        """Check that a row says that `by` gave it, the name of the checkpoint aside. Raises Misuse."""
        advice = advice or self.advice
        was, where = found.get("by"), f"{self.option} is {self.out}, whose line {found['line']}"
        if not isinstance(was, dict):
            raise Misuse(f"{where} does not say what answered it; {advice}")
        for name, value in by.items():
            if name != "checkpoint" and was.get(name) != value:
                raise Misuse(
                    f"{where} was answered with {name} {json.dumps(was.get(name))} "
                    f"(checkpoint {was.get('checkpoint')}); expected {json.dumps(value)}, as in this run; {advice}"
                )

    def check_all_by(self, by: dict) -> None:
        """`check_by` for every row that is there."""
        for row in self.rows.values():
            self.check_by(row, by)


class RowFile(Rows):
    """The rows of a file, open for this process alone. What an interrupted run left unfinished is cut off.

    Nothing is written before all is checked: the file is not one of `inputs`, and holds nothing but rows of its kind.
    """

    def __init__(
        self,
        option: str,
        out: str,
        inputs: Sequence[tuple[str, str | Path]],
        say: Callable[[str], None],
        columns: Sequence[str],
        what: str,
        advice: str = ANOTHER,
    ):
        """Open the file: `inputs` are what is read, `say` is told a warning, and the others are as for `Rows`."""
        super().__init__(option, out, columns, what, advice)
        check_place(option, out)
        try:
            check_output(option, out, inputs, lambda file: True)  # its rows are looked at below
        except OutputError as error:
            raise Misuse(str(error)) from None
        try:
            self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise Misuse(f"{option} is {out}, which cannot be written ({words(error)}); name another place") from None
        try:
            if not lock(self.file):
                say(f"{option} is {out}, whose file system has no locks; make sure that no other run writes there")
            self._mend()
        except BlockingIOError:
            self.file.close()
            raise Misuse(f"{option} is {out}, where another run is writing; wait for it or name another file") from None
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()

    def _mend(self) -> None:
        """Read the rows, and mend what is after the last whole line: a row without its end of line, or a torn one."""
        self.file.seek(0)
        content = self.file.read()
        if rest := self._take(content):
            self._cut(self._size() - len(rest))
        elif content and not content.endswith(b"\n"):
            self._write(b"\n")
        self.lines.clear()  # they stand in the file

    def append(self, rows: Sequence[str]) -> None:
        """Append rows of JSON, each a whole line, and wait until the disk has them."""
        if not rows:
            return
        if not same_file(self.path, self.file.fileno()):
            raise Failure(f"{self.option} is {self.out}, which was removed or replaced during this run; start it again")
        before = self._size()
        try:
            self._write("".join(row + "\n" for row in rows).encode())
        except OSError as error:
            self._cut(before)
            raise disk_failure(OSError(error.errno, error.strerror, f"{self.option} {self.out}")) or Failure(
                f"{self.option} is {self.out}, which could not be written ({words(error)}); start the command again"
            ) from None

    def _size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self.file.write(data) :]
        os.fsync(self.file.fileno())

    def _cut(self, size: int) -> None:
        """Cut the file off if possible: what cannot be cut off here is cut off by the next run."""
        try:
            self.file.truncate(size)
            os.fsync(self.file.fileno())
        except OSError:
            pass
