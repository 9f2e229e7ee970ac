"""Exam of a model on digits that it was not trained on: its answers, and where they come from.

firebolt eval tiny                                           measures the model in the package
python -m firebolt_vl.evaluate.tiny [RESULTS.json]           prints the tables of docs/embedded-model.md from
                                                             what was kept of its training
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from ..files.tables import markdown_table
from ..model import FireboltForConditionalGeneration, FireboltProcessor
from ..model.generation import own_settings
from .answering import chat_prompt
from .benchmarks import by_group, mean_score
from .digits import LAYOUTS
from .exam import BATCH, Exam, answer, make_exam
from .items import Item, Marked
from .own import OWN, commonest, with_other_images
from .questions import GROUNDED_KINDS, KINDS, NOTHING, Question

HARDER = LAYOUTS[1:]
BASELINES = ("majority", "another image", "positions off")


Progress = Callable[[int, int], None]


def evaluate_tiny(
    checkpoint: str | Path,
    scenes: int = 800,
    seed: int = 0,
    *,
    split: str = "held-out",
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> dict:
    """Accuracy per layout and kind, the three baselines, and grounding in both ways, for a checkpoint folder or id.

    `scenes` is divided among the four layouts; each scene gets a question of every kind in a wording that was trained
    on and one in a wording that was not. The digits are those of a split (`digits.SPLITS`), by default the one that no
    choice was made by; the same seed asks the same questions. `progress(done, total)` is called with the number
    of answered questions, the baselines' too.

    Raises ValueError for fewer than one scene of each layout and for an unknown split; what `from_pretrained` raises
    for the checkpoint.
    """
    if scenes < len(LAYOUTS):
        raise ValueError(f"evaluate_tiny: scenes is {scenes}; expected at least {len(LAYOUTS)}, one of each layout")
    model = FireboltForConditionalGeneration.from_pretrained(checkpoint).to(device)
    processor = FireboltProcessor.from_pretrained(checkpoint)
    own_settings(model, processor.tokenizer, sampled=False)
    return evaluate_model(model, processor, scenes, seed, split, progress)


@torch.no_grad()
def evaluate_model(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    scenes: int,
    seed: int,
    split: str,
    progress: Progress = lambda done, total: None,
) -> dict:
    """`evaluate_tiny` for a model and its processor."""
    training = model.training
    model.eval()
    exam = make_exam(model, processor, scenes, seed, split)
    results = {"scenes": scenes, "seed": seed, "split": split, **mark_exam(model, processor, exam, progress)}
    model.train(training)
    return results


@torch.no_grad()
def mark_exam(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    exam: Exam,
    progress: Progress = lambda done, total: None,
) -> dict:
    """Accuracies, baselines and grounding of a model, in eval mode, in an exam."""
    prompts = [chat_prompt(processor, asked.question.text) for asked in exam.asked]
    known = [i for i, asked in enumerate(exam.asked) if not asked.question.held_out]

    total, done = len(prompts) + 2 * len(known), 0

    def answered(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    answers = answer(model, processor, exam, prompts, range(len(prompts)), answered=answered)
    marked = mark(exam, range(len(prompts)), answers)
    in_known_words = [marked[i] for i in known]
    in_others = [one for one, asked in zip(marked, exam.asked) if asked.question.held_out]
    blind = answer(model, processor, exam, prompts, known, scene_of=other_scene(exam), answered=answered)
    with positions_off(model):
        unplaced = answer(model, processor, exam, prompts, known, answered=answered)

    return {
        "questions": len(known),
        "accuracy": accuracy(in_known_words),
        "held_out_wordings": accuracy(in_others),
        "baselines": {
            "majority": accuracy(mark(exam, known, majority_answers(in_known_words))),
            "another image": accuracy(mark(exam, known, blind)),
            "positions off": accuracy(mark(exam, known, unplaced)),
        },
        "grounding": grounding(model, processor, exam, prompts, answers, known),
    }


@contextmanager
def positions_off(model: FireboltForConditionalGeneration) -> Iterator[None]:
    """The same weights without the term that says where each grid lies."""
    connector = model.model.connector
    positions, connector.positions = connector.positions, None
    try:
        yield
    finally:
        connector.positions = positions


def mark(exam: Exam, which: Sequence[int], answers: Sequence[str]) -> list[Marked]:
    """Mark answers to some of the exam's questions, as those to own questions are."""
    marked = []
    for i, given in zip(which, answers):
        asked = exam.asked[i]
        wanted, about = [asked.question.answer], {"kind": asked.question.kind, "layout": asked.layout}
        marked.append(Marked(i, wanted, about, given, OWN.mark(given, wanted, about)))
    return marked


def by_layout(rows: Sequence[Any], of: Callable[[Any], str]) -> dict[str, list[Any]]:
    """Rows of each layout, and as "harder" those of all layouts of HARDER."""
    groups = by_group(rows, of)
    harder = [row for row in rows if of(row) in HARDER]
    return groups | ({"harder": harder} if harder else {})


def accuracy(marked: Sequence[Marked]) -> dict[str, dict[str, float]]:
    """layout -> kind -> share of right answers; kind "all" is all questions."""
    found = {}
    for layout, inside in by_layout(marked, lambda one: one.about["layout"]).items():
        kinds = by_group(inside, lambda one: one.about["kind"])
        found[layout] = {kind: mean_score(rows) for kind, rows in kinds.items()} | {"all": mean_score(inside)}
    return found


def majority_answers(marked: Sequence[Marked]) -> list[str]:
    """Give each question the commonest answer to those of its layout and kind: the best that one answer can do."""
    said = commonest(marked, _group)
    return [said[_group(one)] for one in marked]


def _group(one: Marked) -> str:
    return f"{one.about['layout']}/{one.about['kind']}"


class Shown(NamedTuple):
    """A scene as the image of a question."""

    key: int


def other_scene(exam: Exam) -> list[int]:
    """Return for each scene the next one of its layout (layouts take turns); after the last comes the first."""
    scenes = range(len(exam.features))
    others = list(scenes)
    for first in range(len(LAYOUTS)):
        items = [(scene, Item(scene, "", (Shown(scene),), None, {})) for scene in scenes[first :: len(LAYOUTS)]]
        for scene, item in with_other_images(items):
            others[scene] = item.images[0].key
    return others


def grounding(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    exam: Exam,
    prompts: Sequence[str],
    answers: Sequence[str],
    which: Sequence[int],
) -> dict[str, dict[str, float]]:
    """Share of questions naming a quarter, with a digit there, that are grounded in that quarter's tile, per layout.

    weights    the grid with the largest mean weight over the tokens of the phrase, the global view counting as a miss
    occlusion  the grid whose masking lowers the log-probability of the model's own answer most
    """
    chosen = [
        i for i in which if exam.asked[i].question.kind in GROUNDED_KINDS and exam.asked[i].question.answer != NOTHING
    ]
    looked: list[tuple[str, dict[str, bool]]] = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        text = processor.tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True)
        scenes = torch.tensor([exam.asked[i].scene for i in part])
        inputs = {
            "input_ids": text.input_ids,
            "attention_mask": text.attention_mask,
            "grids": exam.features[scenes],
            "grid_mask": exam.mask[scenes],
            "grid_boxes": exam.boxes[scenes],
        }
        ended = [answers[i] + processor.tokenizer.eos_token for i in part]
        replies = processor.tokenizer(ended, return_tensors="pt", padding=True, padding_side="right").input_ids
        # Of the connectors the modulator alone has weights.
        seen = model.ground(**inputs, method="weights") if model.config.connector == "cmm" else None
        effects = model.ground(**inputs, method="occlusion", answer_ids=replies).effects
        for row, i in enumerate(part):
            asked = exam.asked[i]
            named = exam.grids_of(asked.scene, asked.question.tiles[0])
            found = {"occlusion": int(effects[row].argmax()) in named}
            if seen is not None:
                phrase = seen.phrase(row, *phrase_columns(text, row, prompts[i], asked.question))
                found["weights"] = int(phrase.argmax()) in named
            looked.append((asked.layout, found))
    return {
        layout: {
            "questions": len(inside),
            **{method: fmean(one[method] for _, one in inside) for method in inside[0][1]},
        }
        for layout, inside in by_layout(looked, lambda one: one[0]).items()
    }


def phrase_columns(encoding, row: int, prompt: str, question: Question) -> tuple[int, int]:
    """First and one past the last column of the tokens of the question's phrase."""
    start, end = (prompt.index(question.text) + offset for offset in question.phrase)
    return encoding.char_to_token(row, start), encoding.char_to_token(row, end - 1) + 1


def print_report(results: dict, console: Console | None = None) -> None:
    """The report of `evaluate_tiny` as tables."""
    console = console or Console()
    console.print(
        f"{results['questions']} questions on {results['scenes']} scenes of {results['split']} digits "
        f"(seed {results['seed']}); share of right answers in %"
    )
    for title, layout in (("digits inside the tiles", "inside"), ("empty tiles, clutter, across borders", "harder")):
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("kind", "model", *BASELINES, "held-out wordings"):
            table.add_column(column, justify="left" if column == "kind" else "right")
        for kind in (*KINDS, "all"):
            rows = [results["accuracy"], *(results["baselines"][name] for name in BASELINES)]
            rows.append(results["held_out_wordings"])
            table.add_row(kind, *(_percent(row[layout].get(kind)) for row in rows), end_section=kind == KINDS[-1])
        console.print(table)
    table = Table(title="all kinds, by layout", title_justify="left", title_style="bold")
    for column in ("layout", "model", "held-out wordings", "grounding by weights", "grounding by occlusion"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for layout in LAYOUTS:
        found = results["grounding"].get(layout, {})
        table.add_row(
            layout,
            *(_percent(results[name][layout]["all"]) for name in ("accuracy", "held_out_wordings")),
            *(_percent(found.get(method)) for method in ("weights", "occlusion")),
        )
    console.print(table)
    console.print(
        "grounding: of the questions that name a quarter with a digit in it, how many are grounded in that tile;\n"
        "by weights: where the words of the position look; by occlusion: the tile that the answer rests on"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def markdown(trained: dict) -> str:
    """The tables of docs/embedded-model.md, from the results.json that training keeps beside the checkpoint."""
    runs = trained["seeds"]
    shipped = next(run for run in runs if run["training_seed"] == trained["shipped_seed"])
    columns = ["", "inside tiles", "held-out wordings", "harder layouts", "majority", "another image", "positions off"]
    rows = [
        [
            f"**{kind}**" if kind == "all" else kind,
            _percent(shipped["accuracy"]["inside"][kind]),
            _percent(shipped["held_out_wordings"]["inside"][kind]),
            _percent(shipped["accuracy"]["harder"][kind]),
            *(_percent(shipped["baselines"][name]["inside"][kind]) for name in BASELINES),
        ]
        for kind in (*KINDS, "all")
    ]
    lines = [
        markdown_table(columns, rows),
        "",
        f"Right answers in %: {shipped['questions']} questions on {shipped['scenes']} scenes of {shipped['split']} "
        "digits. The harder layouts have empty tiles, clutter and digits across borders; all other columns, the "
        f"baselines too, are for digits inside the tiles. Seed {trained['shipped_seed']}, the median of {len(runs)}.",
        "",
    ]
    groups = {weight: [] for weight in sorted({run["grounding_loss_weight"] for run in (*runs, *trained["compared"])})}
    for run in (*runs, *trained["compared"]):
        groups[run["grounding_loss_weight"]].append(run)
    columns = ["grounding loss", "inside tiles", "harder layouts"]
    columns += [f"by {method}, {name}" for name in ("inside", "harder") for method in ("weights", "occlusion")]
    rows = [
        [
            (f"{weight:g}" if weight else "none")
            + (" (ships)" if weight == shipped["grounding_loss_weight"] else "")
            + f", {len(group)} seed{'s' if len(group) > 1 else ''}",
            *(_spread(run["accuracy"][layout]["all"] for run in group) for layout in ("inside", "harder")),
            *(
                _spread(run["grounding"][layout][method] for run in group)
                for layout in ("inside", "harder")
                for method in ("weights", "occlusion")
            ),
        ]
        for weight, group in groups.items()
    ]
    lines += [
        markdown_table(columns, rows),
        "",
        "Lowest to highest of the seeds, in %: right answers, and grounding in the tile that a question names (by "
        "weights: where the words of the position look; by occlusion: what the answer rests on).",
    ]
    return "\n".join(lines)


def _spread(shares: Iterable[float]) -> str:
    shares = sorted(shares)
    low, high = _percent(shares[0]), _percent(shares[-1])
    return low if low == high else f"{low} to {high}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m firebolt_vl.evaluate.tiny",
        description="Print the tables of docs/embedded-model.md about the embedded model.",
    )
    kept = Path(__file__).resolve().parents[1] / "firebolt_vl" / "tiny" / "results.json"
    parser.add_argument("results", type=Path, nargs="?", default=kept, metavar="RESULTS.json")
    parser.add_argument(
        "compared",
        type=Path,
        nargs="*",
        metavar="SEED.json",
        help="results of single seeds with another grounding loss",
    )
    files = parser.parse_args(arguments)
    trained, *others = (json.loads(file.read_text(encoding="utf-8")) for file in (files.results, *files.compared))
    print(markdown({**trained, "compared": trained["compared"] + others}))


if __name__ == "__main__":
    main()
