"""Bad rows of data files: each is named with its file and line, counted, and skipped up to a share."""

from collections import Counter
from dataclasses import dataclass, field


class BadRow(Exception):
    """A row that cannot be used: `kind` is one of a few names, `message` says what was found."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class TooManyBadRows(ValueError):
    """More rows are bad than may be skipped; the message is the summary."""


@dataclass(frozen=True)
class Problem:
    file: str
    place: str
    """The line, from 1; of a shard the sample's key."""
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.place}: {self.kind}: {self.message}"


@dataclass
class Problems:
    """The bad rows found so far, each counted once, among `rows` rows."""

    rows: int = 0
    found: dict[tuple[str, str], Problem] = field(default_factory=dict)

    def add(self, problem: Problem) -> bool:
        """Add a problem, and tell whether it is new: a row that is met in every epoch is one bad row."""
        known = (problem.file, problem.place) in self.found
        self.found.setdefault((problem.file, problem.place), problem)
        return not known

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self):
        return iter(self.found.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """kind -> how many rows, the commonest first."""
        return dict(Counter(problem.kind for problem in self).most_common())

    def summary(self) -> str:
        counted = ", ".join(f"{count} {kind}" for kind, count in self.by_kind.items())
        return f"{len(self)} of {self.rows} rows cannot be used" + (f": {counted}" if counted else "")

    def check(self, max_share: float, told: str = "max_bad_share=") -> None:
        """Check that at most `max_share`, which `told` names, of all rows are bad and one is good. Raises
        TooManyBadRows."""
        if self.rows and len(self) == self.rows:
            raise TooManyBadRows(f"{self.summary()}; no row is left. The first: {next(iter(self))}")
        if len(self) > max_share * self.rows:
            raise TooManyBadRows(
                f"{self.summary()}; {told}{max_share:g} allows {int(max_share * self.rows)}. "
                f"The first: {next(iter(self))}"
            )
