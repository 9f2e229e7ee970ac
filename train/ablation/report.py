"""Tables and plots of the runs that are there: Markdown to read, CSV to compute with."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ...evaluate.questions import KINDS
from ...evaluate.tiny import BASELINES
from ...files.tables import markdown_table
from ...files.writing import write_text, write_whole
from .runs import POOL
from .task import Settings
from .training import FIRST_STEPS
from .variants import BASE, TABLES, VARIANTS

PERCENT = 100.0
# What a run is measured by -> how it is read from its row, and how many digits it is shown with.
Measure = Callable[[dict], float | None]


def layouts_mean(row: dict, part: Sequence[str], kind: str) -> float | None:
    """Compute in % the mean of the layout inside the tiles and the harder ones; None where nothing of it was asked."""
    found = row
    for key in part:
        found = found[key]
    shares = [found[layout][kind] for layout in ("inside", "harder") if kind in found.get(layout, {})]
    return PERCENT * sum(shares) / len(shares) if shares else None


def _share(*part: str, kind: str = "all") -> Measure:
    return lambda row: layouts_mean(row, part, kind)


ACCURACY: dict[str, Measure] = {
    **{kind: _share("accuracy", kind=kind) for kind in KINDS},
    "all": _share("accuracy"),
    "held-out wordings": _share("held_out_wordings"),
}
BASELINE: dict[str, Measure] = {name: _share("baselines", name) for name in BASELINES}
GROUNDING: dict[str, Measure] = {
    f"grounding by {method}": _share("grounding", kind=method) for method in ("weights", "occlusion")
}
FIRST_LOSS = f"loss of the first {FIRST_STEPS} steps"
OTHER: dict[str, Measure] = {
    "perplexity": lambda row: row["perplexity"],
    FIRST_LOSS: lambda row: row.get("first_steps_loss"),
    "parameters that learn": lambda row: row["learning_parameters"],
    "minutes of a core": lambda row: row["cpu_seconds"] / 60,
}
DIGITS = {"perplexity": 3, FIRST_LOSS: 3, "parameters that learn": 0}
MEASURES = {**ACCURACY, **BASELINE, **GROUNDING, **OTHER}


class Results:
    """The finished runs of a pool, by variant."""

    def __init__(self, out: Path, variants: Iterable[str], seeds: int, settings: Settings):
        self.settings, self.seeds = settings, seeds
        found = {name: [POOL.read_row(out, name, seed, settings) for seed in range(seeds)] for name in variants}
        self.rows = {name: [row for row in rows if row is not None] for name, rows in found.items()}

    def values(self, variant: str, measure: str) -> list[float]:
        """One value for each seed."""
        return self.values_of(variant, MEASURES[measure])

    def values_of(self, variant: str, measure: Measure) -> list[float]:
        return [value for row in self.rows[variant] if (value := measure(row)) is not None]


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and the lowest and highest of the seeds where there are several that differ."""
    if not values:
        return "-"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    shown = f"{mean:,.{digits}f}"
    return (
        shown if f"{low:.{digits}f}" == f"{high:.{digits}f}" else f"{shown} ({low:,.{digits}f} to {high:,.{digits}f})"
    )


def markdown(results: Results, table: str, command: str) -> str:
    """Two tables of one ablation: accuracies of each kind of question, and everything else."""
    names = {name: label for name, label in TABLES[table].items() if results.rows.get(name)}

    def rows(measures: Iterable[str]) -> list[list[str]]:
        return [
            [label, *(cell(results.values(name, one), DIGITS.get(one, 1)) for one in measures)]
            for name, label in names.items()
        ]

    counts = sorted({len(results.rows[name]) for name in names})
    lines = [f"## {table}", "", f"`{command}`", ""]
    lines += [markdown_table([table, *ACCURACY], rows(ACCURACY) + baselines(results, names)), ""]
    others = [*OTHER, *GROUNDING, *BASELINE]
    lines += [markdown_table([table, *others], rows(others)), ""]
    lines += [
        f"Means over {' or '.join(map(str, counts))} seed{'s' * (counts != [1])}, lowest to highest in brackets. "
        "Accuracies, baselines (a fixed answer; another scene's image; the base without positions) and "
        "grounding in %, the mean of digits inside the tiles and of the harder layouts (empty tiles, clutter, across "
        "borders)."
    ]
    if absent := [label for name, label in TABLES[table].items() if len(results.rows.get(name, [])) < results.seeds]:
        lines += ["", f"Not all {results.seeds} seeds are there yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def baselines(results: Results, names: Iterable[str]) -> list[list[str]]:
    """Table of the baselines of `firebolt eval tiny`, kind by kind, beside the base (or the first variant there)."""
    name = BASE if results.rows.get(BASE) else next(iter(names))
    return [
        [
            f"*{baseline}*",
            *(cell(results.values_of(name, _share("baselines", baseline, kind=kind))) for kind in (*KINDS, "all")),
            "-",
        ]
        for baseline in BASELINES
    ]


def to_csv(results: Results, table: str) -> str:
    """A line for each variant of a table: of each measure mean, lowest and highest."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["variant", "label", "seeds", *(f"{one} {of}" for one in MEASURES for of in ("mean", "low", "high"))]
    )
    for name, label in TABLES[table].items():
        if not results.rows.get(name):
            continue
        numbers = []
        for one in MEASURES:
            values = results.values(name, one)
            of_them = (sum(values) / len(values), min(values), max(values)) if values else ("", "", "")
            numbers += [f"{value:.6g}" if value != "" else "" for value in of_them]
        writer.writerow([name, label, len(results.rows[name]), *numbers])
    return text.getvalue()


def plot(results: Results, table: str, file: Path) -> None:
    """Accuracy and both groundings of each variant: a bar for the mean, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"all": "right answers", **dict(zip(GROUNDING, GROUNDING))}
    names = [name for name in TABLES[table] if results.rows.get(name)]
    figure, axes = pyplot.subplots(figsize=(2.5 + 1.4 * len(names), 4), layout="constrained")
    width = 0.8 / len(shown)
    for number, (measure, label) in enumerate(shown.items()):
        places = [place + (number - 1) * width for place in range(len(names))]
        values = [results.values(name, measure) for name in names]
        means = [sum(of_one) / len(of_one) if of_one else 0 for of_one in values]
        axes.bar(places, means, width, color=f"C{number}", alpha=0.6, label=label)
        for place, of_one in zip(places, values):
            axes.plot([place] * len(of_one), of_one, ".", color="black", markersize=4)
    figure.legend(loc="outside upper center", ncols=len(shown), fontsize=8)
    axes.set(xticks=range(len(names)), ylim=(0, 105), xlabel=table, ylabel="%")
    axes.set_xticklabels([TABLES[table][name] for name in names])
    write_whole(file, lambda temporary: figure.savefig(temporary, dpi=120))
    pyplot.close(figure)


def write_report(out: Path, tables: Sequence[str], seeds: int, settings: Settings, command: str) -> str:
    """TABLE.md, TABLE.csv and TABLE.png in `out` for every table with a run; returns the Markdown of all of them."""
    results = Results(out, VARIANTS, seeds, settings)
    pages = []
    for table in tables:
        if not any(results.rows[name] for name in TABLES[table]):
            continue
        page = markdown(results, table, command)
        write_text(out / f"{table}.md", page)
        write_text(out / f"{table}.csv", to_csv(results, table))
        write_whole(out / f"{table}.png", lambda temporary, table=table: plot(results, table, temporary))
        pages.append(page)
    return "\n".join(pages)
