"""Exam of a model on digits that it was not trained on: its answers, and where they come from.

firebolt eval tiny                                           measures the model in the package
python -m firebolt_vl.evaluate.tiny [RESULTS.json]           prints the tables of docs/embedded-model.md from
                                                             what was kept of its training
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..files.tables import markdown_table
from ..model import FireboltForConditionalGeneration, FireboltProcessor
from ..model.generation import own_settings
from .digits import LAYOUTS, Scene, draw, sample_scene
from .questions import GROUNDED_KINDS, KINDS, NOTHING, Question, sample_question

IMAGE_SIDE = 128
BATCH = 128
MAX_ANSWER_TOKENS = 8
HARDER = LAYOUTS[1:]
BASELINES = ("majority", "another image", "positions off")


Progress = Callable[[int, int], None]


@dataclass
class Asked:
    """One question of the exam: which scene it is about, and the scene's layout."""

    scene: int
    layout: str
    question: Question


@dataclass
class Exam:
    """Scenes as the model's grids (features [S,G,D_v], mask [S,G], boxes [S,G,4]) and the questions about them.

    `shown` [S,4,G] bool says which grids show each quarter; None: of the global view and four tiles its tile.
    """

    features: Tensor
    mask: Tensor
    boxes: Tensor
    asked: list[Asked]
    shown: Tensor | None = None

    def grids_of(self, scene: int, quarter: int) -> list[int]:
        """The grids that show a quarter."""
        return [1 + quarter] if self.shown is None else self.shown[scene, quarter].nonzero()[:, 0].tolist()


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
    marks = [given == asked.question.answer for given, asked in zip(answers, exam.asked)]
    most_common = majority_answers([exam.asked[i] for i in known])
    majority = [most_common[exam.asked[i].layout, exam.asked[i].question.kind] for i in known]
    blind = answer(model, processor, exam, prompts, known, scene_of=other_scene(exam), answered=answered)
    with positions_off(model):
        unplaced = answer(model, processor, exam, prompts, known, answered=answered)

    return {
        "questions": len(known),
        "accuracy": accuracy(exam, known, [marks[i] for i in known]),
        "held_out_wordings": accuracy(
            exam, *zip(*((i, marks[i]) for i, asked in enumerate(exam.asked) if asked.question.held_out))
        ),
        "baselines": {
            "majority": accuracy(exam, known, _right(exam, known, majority)),
            "another image": accuracy(exam, known, _right(exam, known, blind)),
            "positions off": accuracy(exam, known, _right(exam, known, unplaced)),
        },
        "grounding": grounding(model, processor, exam, prompts, answers, known),
    }


def make_exam(
    model: FireboltForConditionalGeneration, processor: FireboltProcessor, scenes: int, seed: int, split: str
) -> Exam:
    """Draw the scenes, pose the questions and encode the images, through the processor like any other image."""
    drawn, asked = pose(scenes, seed, split)
    encoded = []
    for start in range(0, scenes, BATCH):
        images = [draw(scene, IMAGE_SIDE) for scene in drawn[start : start + BATCH]]
        encoded.append(model.get_grids(**processor.image_processor(images, return_tensors="pt").to(model.device)))
    features, mask, boxes = (torch.cat(parts) for parts in list(zip(*encoded))[:3])
    return Exam(features, mask, boxes, asked)


def pose(scenes: int, seed: int, split: str, scale: float = 1.0) -> tuple[list[Scene], list[Asked]]:
    """Scenes, whose layouts take turns, and the questions about them; `scale` multiplies the digits' sizes."""
    rng = np.random.default_rng(seed)
    drawn = [sample_scene(rng, LAYOUTS[i % len(LAYOUTS)], split, scale) for i in range(scenes)]
    asked = []
    for i, scene in enumerate(drawn):
        for held_out in (False, True):
            for kind in KINDS:
                question = sample_question(rng, scene, kind, held_out)
                if question is not None:
                    asked.append(Asked(i, scene.layout, question))
    return drawn, asked


def chat_prompt(processor: FireboltProcessor, question: str) -> str:
    """The question as the user's turn, up to where the model's turn begins."""
    messages = [{"role": "user", "content": question}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def answer(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    exam: Exam,
    prompts: Sequence[str],
    which: Sequence[int],
    scene_of: Sequence[int] | None = None,
    answered: Callable[[int], None] = lambda more: None,
) -> list[str]:
    """The model's greedy answers to some of the exam's questions; `scene_of` maps a scene to the one that is shown.

    `answered` is called with the number of answers of each batch.
    """
    answers = []
    for start in range(0, len(which), BATCH):
        chosen = which[start : start + BATCH]
        text = [prompts[i] for i in chosen]
        text = processor.tokenizer(text, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        scenes = [exam.asked[i].scene for i in chosen]
        scenes = torch.tensor([scene_of[scene] for scene in scenes] if scene_of is not None else scenes)
        ids = model.generate(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            grids=exam.features[scenes],
            grid_mask=exam.mask[scenes],
            grid_boxes=exam.boxes[scenes],
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
        )
        texts = processor.batch_decode(ids[:, text.input_ids.shape[1] :], skip_special_tokens=True)
        answers.extend(text.strip() for text in texts)
        answered(len(texts))
    return answers


def majority_answers(asked: Sequence[Asked]) -> dict[tuple[str, str], str]:
    """(layout, kind) -> its commonest answer among these very questions: the best that one fixed answer can do."""
    answers: dict[tuple[str, str], Counter] = {}
    for one in asked:
        answers.setdefault((one.layout, one.question.kind), Counter())[one.question.answer] += 1
    return {group: counted.most_common(1)[0][0] for group, counted in answers.items()}


def other_scene(exam: Exam) -> list[int]:
    """Return for each scene the next one of its layout (layouts take turns); after the last comes the first."""
    scenes = len(exam.features)
    step = len(LAYOUTS)
    return [i + step if i + step < scenes else i % step for i in range(scenes)]


@contextmanager
def positions_off(model: FireboltForConditionalGeneration) -> Iterator[None]:
    """The same weights without the term that says where each grid lies."""
    connector = model.model.connector
    positions, connector.positions = connector.positions, None
    try:
        yield
    finally:
        connector.positions = positions


def _right(exam: Exam, which: Sequence[int], answers: Sequence[str]) -> list[bool]:
    return [given == exam.asked[i].question.answer for i, given in zip(which, answers)]


def accuracy(exam: Exam, which: Sequence[int], marks: Sequence[bool]) -> dict[str, dict[str, float]]:
    """layout -> kind -> share of right answers; kind "all" is all questions, layout "harder" all layouts of HARDER."""
    counted: dict[str, dict[str, list[bool]]] = {}
    for i, mark in zip(which, marks):
        asked = exam.asked[i]
        layouts = (asked.layout, "harder") if asked.layout in HARDER else (asked.layout,)
        for layout in layouts:
            for kind in (asked.question.kind, "all"):
                counted.setdefault(layout, {}).setdefault(kind, []).append(mark)
    return {layout: {kind: float(np.mean(m)) for kind, m in kinds.items()} for layout, kinds in counted.items()}


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
    hits: dict[str, dict[str, list[bool]]] = {}
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
            for layout in (asked.layout, "harder") if asked.layout in HARDER else (asked.layout,):
                for method, hit in found.items():
                    hits.setdefault(layout, {}).setdefault(method, []).append(hit)
    return {
        layout: {"questions": len(found["occlusion"]), **{method: float(np.mean(h)) for method, h in found.items()}}
        for layout, found in hits.items()
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
