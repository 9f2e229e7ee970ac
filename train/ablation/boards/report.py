"""Tables of the runs on boards: means with their intervals, and differences to the base, seed by seed."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from ....evaluate.digits import COLOURS
from ....files.tables import markdown_table
from ....files.writing import write_text
from ..statistics import Estimate, estimate, paired
from .exam import GROUNDED_KINDS
from .questions import KINDS
from .runs import POOL
from .scenes import CELLS_A_SIDE, DIGITS
from .task import Settings
from .variants import TABLES, VARIANTS

PERCENT = 100.0
Measure = Callable[[dict], float | None]


def _percent(share: float | None) -> float | None:
    return None if share is None else PERCENT * share


def _accuracy(kind: str) -> Measure:
    return lambda row: PERCENT * row["accuracy"][kind]


def _grounding(method: str) -> Measure:
    def mean(row: dict) -> float | None:
        found = row["grounding"].get(method)
        return PERCENT * sum(found[kind] for kind in GROUNDED_KINDS) / len(GROUNDED_KINDS) if found else None

    return mean


ACCURACY: dict[str, Measure] = {kind: _accuracy(kind) for kind in ("all", *KINDS)}
OTHER: dict[str, Measure] = {
    "grounding by weights": _grounding("weights"),
    "grounding by occlusion": _grounding("occlusion"),
    "texts recalled before": lambda row: _percent(row.get("recall_before")),
    "texts recalled after": lambda row: _percent(row.get("recall_after")),
    "loss of the first 100 steps": lambda row: row["first_steps_loss"],
    "positions in the decoder": lambda row: row["decoder_positions"],
    "time of an answer over the base's": lambda row: row["answer"]["over_base"],
    "parameters that learn": lambda row: row["learning_parameters"],
    "seconds of a core": lambda row: row["cpu_seconds"],
}
DECIMALS = {
    "loss of the first 100 steps": 3,
    "positions in the decoder": 0,
    "time of an answer over the base's": 2,
    "parameters that learn": 0,
    "seconds of a core": 0,
}
MEASURES = {**ACCURACY, **OTHER}


class Results:
    """The finished runs of a pool: measures by variant and seed."""

    def __init__(self, out: Path, seeds: int, settings: Settings):
        self.seeds = seeds
        self.rows = {
            name: {seed: row for seed in range(seeds) if (row := POOL.read_row(out, name, seed, settings)) is not None}
            for name in VARIANTS
        }

    def values(self, variant: str, measure: str) -> dict[int, float]:
        """One value for each seed, by the seed."""
        found = {seed: MEASURES[measure](row) for seed, row in self.rows[variant].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, variant: str, measure: str) -> Estimate | None:
        values = list(self.values(variant, measure).values())
        return estimate(values) if values else None

    def difference(self, variant: str, base: str, measure: str) -> Estimate | None:
        return paired(self.values(variant, measure), self.values(base, measure))

    def spread(self, variant: str, measure: str) -> float | None:
        """The highest less the lowest of the seeds; None where there are not two."""
        values = self.values(variant, measure).values()
        return max(values) - min(values) if len(values) > 1 else None

    def absent(self, variant: str) -> list[int]:
        """The seeds whose run is still to be done."""
        return [seed for seed in range(self.seeds) if seed not in self.rows[variant]]


def cell(found: Estimate | None, digits: int = 1, sign: str = "") -> str:
    """A mean and the half width of its interval, where there are several seeds."""
    if found is None:
        return "-"
    shown = f"{found.mean:{sign},.{digits}f}"
    half = "" if found.half is None else f"{found.half:,.{digits}f}"
    return f"{shown} ± {half}" if half.strip("0.") else shown


def markdown(results: Results, table: str, command: str) -> str:
    """Three tables of one ablation: accuracies by kind, differences to the first line's, and everything else.

    Of variants without a run, and of those that share no seed with the first line's, it is said that they are missing.
    """
    names = {name: label for name, label in TABLES[table].items() if results.rows[name]}
    base = next(iter(TABLES[table]))

    def rows(measures: Sequence[str]) -> list[list[str]]:
        return [[cell(results.estimate(name, one), DECIMALS.get(one, 1)) for one in measures] for name in names]

    def counted(cells: list[list[str]]) -> list[list[str]]:
        return [[label, str(len(results.rows[name])), *row] for (name, label), row in zip(names.items(), cells)]

    spreads = [[spread_of(results.spread(name, "all"))] for name in names]
    lines = [f"# {table}", "", f"`{command}`", "", "Right answers in %, held-out handwriting:", ""]
    accuracies = [accuracy + spread for accuracy, spread in zip(rows(list(ACCURACY)), spreads)]
    lines += [markdown_table(["", "seeds", *ACCURACY, "spread"], counted(accuracies)), ""]
    lines += [*differences(results, table, base), ""]
    lines += [markdown_table(["", "seeds", *OTHER], counted(rows(list(OTHER)))), ""]
    lines += [
        "Means over seeds ± the half width of their 95 % interval (Student's t). Spread: the highest less the lowest "
        "seed, of all kinds. Told apart: the interval of the difference in all right answers leaves out 0. Grounding "
        "in %, of the kinds whose answer rests on one cell. Texts recalled: right answers about a text alone while an "
        "image is there, of decoders that came with that, before the first step and after the last. "
        f"A guess is right in 1 of {DIGITS} (digits), {len(COLOURS)} (colours), {CELLS_A_SIDE} (rows)."
    ]
    absent = {label: results.absent(name) for name, label in TABLES[table].items()}
    if told_absent := [f"{label} {seeds_of(seeds)}" for label, seeds in absent.items() if seeds]:
        lines += ["", f"Runs that are still to be done, of {results.seeds} seeds: {'; '.join(told_absent)}."]
    return "\n".join(lines) + "\n"


def differences(results: Results, table: str, base: str) -> list[str]:
    """The table of differences to `base`, of the variants with a seed that `base` has; else why there is none."""
    label = TABLES[table][base]
    if not results.rows[base]:
        return [f"No differences: {label}, which the others are compared with, has no run yet."]
    found = []
    for name, its in TABLES[table].items():
        all_kinds = results.difference(name, base, "all")
        if name != base and all_kinds is not None:
            cells = [cell(results.difference(name, base, one), sign="+") for one in ACCURACY]
            found.append([its, str(all_kinds.count), *cells, told(all_kinds)])
    if not found:
        return [f"No differences: no other variant has a run of a seed that {label} has one of."]
    heading = f"Differences to {label}, seed by seed, in points, over the seeds that both have:"
    return [heading, "", markdown_table(["", "seeds", *ACCURACY, "told apart"], found)]


def spread_of(spread: float | None) -> str:
    return "-" if spread is None else f"{spread:.1f}"


def seeds_of(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def told(difference: Estimate) -> str:
    """Say what an interval of a difference permits."""
    if difference.half is None:
        return "one seed"
    if not difference.clear:
        return "no"
    return "better" if difference.mean > 0 else "worse"


def to_csv(results: Results, table: str) -> str:
    """A line for each variant of a table: of each measure its mean and half width, and those of the difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_each = ("mean", "half width", "difference", "half width of the difference")
    writer.writerow(["variant", "label", "seeds", *(f"{one} {of}" for one in MEASURES for of in of_each)])
    base = next(iter(TABLES[table]))
    for name, label in TABLES[table].items():
        if not results.rows[name]:
            continue
        numbers: list[float | None] = []
        for one in MEASURES:
            for found in (results.estimate(name, one), results.difference(name, base, one)):
                numbers += [None, None] if found is None else [found.mean, found.half]
        told = ["" if number is None else f"{number:.6g}" for number in numbers]
        writer.writerow([name, label, len(results.rows[name]), *told])
    return text.getvalue()


def write_report(out: Path, tables: Sequence[str], seeds: int, settings: Settings, command: str) -> str:
    """TABLE.md and TABLE.csv in `out` for every table with a run; returns the Markdown of all of them."""
    results = Results(out, seeds, settings)
    pages = []
    for table in tables:
        if not any(results.rows[name] for name in TABLES[table]):
            continue
        page = markdown(results, table, command)
        write_text(out / f"{table}.md", page)
        write_text(out / f"{table}.csv", to_csv(results, table))
        pages.append(page)
    return "\n".join(pages)
