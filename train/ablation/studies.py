"""The studies that `firebolt ablate` knows: a task each, with the variants that are compared on it and their tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ...model.places import EMBEDDED, find
from . import report, runs, variants
from .boards import report as boards_report
from .boards import runs as boards_runs
from .boards import variants as boards_variants
from .boards.task import Settings as BoardsSettings
from .task import Settings

Report = Callable[[str, int, dict], None]


class Study(Protocol):
    """A study with its settings; `rows` is the folder of its finished runs, of which `others` are of other settings,
    and `suffixes` are those of a table's files."""

    tables: dict[str, dict[str, str]]
    rows: str
    suffixes: tuple[str, ...]

    def variants_of(self, tables: list[str]) -> list[str]: ...
    def missing(self, out: Path, names: Sequence[str], seeds: int) -> list[tuple[str, int]]: ...
    def others(self, out: Path) -> list[str]: ...
    def fill_pool(self, out: Path, names: Sequence[str], seeds: int, processes: int, report: Report) -> None: ...
    def write_report(self, out: Path, tables: Sequence[str], seeds: int, command: str) -> str: ...
    def summary(self, row: dict) -> str: ...


class Handwriting:
    """The paper's comparisons, on scenes of a few digits seen by the embedded model's tower."""

    tables, rows, suffixes = variants.TABLES, runs.POOL.rows, ("md", "csv", "png")

    def __init__(self, quick: bool):
        self.settings = Settings.quick() if quick else Settings()

    def variants_of(self, tables: list[str]) -> list[str]:
        return variants.variants_of(tables)

    def missing(self, out: Path, names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
        return runs.POOL.missing(out, names, seeds, self.settings)

    def others(self, out: Path) -> list[str]:
        return runs.POOL.others(out, self.settings)

    def fill_pool(self, out: Path, names: Sequence[str], seeds: int, processes: int, report: Report) -> None:
        runs.fill_pool(out, names, seeds, self.settings, find(EMBEDDED), processes, report)

    def write_report(self, out: Path, tables: Sequence[str], seeds: int, command: str) -> str:
        return report.write_report(out, tables, seeds, self.settings, command)

    def summary(self, row: dict) -> str:
        right = row["accuracy"].get("inside", {}).get("all", 0)
        return f"{100 * right:.1f} % inside the tiles, perplexity {row['perplexity']:.3f}"


class OnBoards:
    """Comparisons of what the connectors see and how they ask, on boards of 16 cells."""

    tables, rows, suffixes = boards_variants.TABLES, boards_runs.POOL.rows, ("md", "csv")

    def __init__(self, quick: bool):
        self.settings = BoardsSettings.quick() if quick else BoardsSettings()

    def variants_of(self, tables: list[str]) -> list[str]:
        return boards_variants.variants_of(tables)

    def missing(self, out: Path, names: Sequence[str], seeds: int) -> list[tuple[str, int]]:
        return boards_runs.POOL.missing(out, names, seeds, self.settings)

    def others(self, out: Path) -> list[str]:
        return boards_runs.POOL.others(out, self.settings)

    def fill_pool(self, out: Path, names: Sequence[str], seeds: int, processes: int, report: Report) -> None:
        boards_runs.fill_pool(out, names, seeds, self.settings, processes, report)

    def write_report(self, out: Path, tables: Sequence[str], seeds: int, command: str) -> str:
        return boards_report.write_report(out, tables, seeds, self.settings, command)

    def summary(self, row: dict) -> str:
        return f"{100 * row['accuracy']['all']:.1f} % right"


STUDIES = (Handwriting, OnBoards)
# A word for the tables of a study.
GROUPS = {"handwriting": tuple(variants.TABLES), "boards": tuple(boards_variants.TABLES)}


def tables_of(words: Sequence[str]) -> list[str] | None:
    """Tables by their names or their group's; None for "all" or none. Unknown names stay as they are."""
    if list(words) in ([], ["all"]):
        return None
    return [table for word in words for table in GROUPS.get(word, (word,))]
