"""Measures of a model that reads on all splits: answers beside their baselines, and what they rest on; tables of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ...model.generation import own_settings
from ..answering import chat_prompt
from ..metrics.grounding import fit
from ..own import commonest, grounding_scores
from .engines import Engine, cut_out, open_engine
from .exam import Exam, answer, encode, mark, other_scene, points_at, pose, scores
from .layouts import SCREENS
from .questions import KINDS
from .sampling import LEAST_SIDE, SPLITS

MAJORITY, ANOTHER = "majority", "another image"
GROUNDED = 12
METHODS = ("weights", "occlusion")
Progress = Callable[[int, int], None]


def evaluate_screens(
    checkpoint: str | Path,
    scenes: int = 160,
    seed: int = 0,
    *,
    engine: str | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measure a checkpoint, a folder or an id, on every split: `evaluate_model`.

    `scenes` are those of each split; `engine` is the name of an engine to measure beside it (`engines.ENGINES`).

    Raises ValueError for too few scenes and for an engine that is not there; what `from_pretrained` raises.
    """
    reader = None if engine is None else open_engine(engine)
    model = FireboltForConditionalGeneration.from_pretrained(checkpoint).to(device)
    processor = FireboltProcessor.from_pretrained(checkpoint)
    own_settings(model, processor.tokenizer, sampled=False)
    engines = {} if reader is None else {str(engine): reader}
    return evaluate_model(model.eval(), processor, scenes, seed, engines=engines, progress=progress)


def evaluate_model(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    scenes: int,
    seed: int,
    *,
    kinds: Sequence[str] = SCREENS,
    engines: dict[str, Engine] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Return exact match and character error rate by kind of question for each split, baselines and grounding.

    Screens are as large as the model's view of a whole image, so that letters keep their size, or LEAST_SIDE.

    The baselines are the commonest answer of each kind, the same questions with another scene's image, and what an
    engine reads where the answer stands, which is told to it. Grounding is that of the first answers that are right, by
    the weights at the tokens that spell them, and by occlusion of each grid.
    """
    side = max(LEAST_SIDE, processor.image_processor.size["height"])
    found: dict[str, Any] = {"scenes": scenes, "seed": seed, "splits": {}}
    for number, split in enumerate(SPLITS):
        exam = pose(scenes, seed, split, side, kinds)
        encode(exam, model, processor)
        known = [i for i, asked in enumerate(exam.asked) if not asked.question.held_out]
        total, done = len(SPLITS) * (len(exam.asked) + len(known)), 0

        def answered(more: int) -> None:
            nonlocal done
            done += more
            progress(min(total, number * total // len(SPLITS) + done), total)  # noqa: B023  (called before the next)

        found["splits"][split] = _split_scores(exam, model, processor, known, engines or {}, answered)
    return found


def _split_scores(
    exam: Exam,
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    known: list[int],
    engines: dict[str, Engine],
    answered: Callable[[int], None],
) -> dict[str, Any]:
    prompts = [chat_prompt(processor, asked.question.text) for asked in exam.asked]
    every = range(len(exam.asked))
    marked = mark(exam, every, answer(exam, model, processor, prompts, every, answered=answered))
    in_known = [marked[i] for i in known]
    held_out = [one for one, asked in zip(marked, exam.asked) if asked.question.held_out]
    said = commonest(in_known, lambda one: one.about["kind"])
    blind = answer(exam, model, processor, prompts, known, scene_of=other_scene(exam), answered=answered)
    baselines = {
        MAJORITY: scores(mark(exam, known, [said[exam.asked[i].question.kind] for i in known])),
        ANOTHER: scores(mark(exam, known, blind)),
    }
    for name, engine in engines.items():
        there = [i for i in known if exam.asked[i].question.target is not None]
        baselines[name] = scores(mark(exam, there, [_read(exam, i, engine) for i in there]))
    right = [(i, marked[i].got) for i in known if marked[i].mark.score and exam.asked[i].question.target is not None]
    return {
        "questions": len(known),
        "answers": scores(in_known),
        "held_out_wordings": scores(held_out),
        "baselines": baselines,
        "grounding": grounding(exam, model, processor, prompts, right[:GROUNDED]),
    }


def _read(exam: Exam, number: int, engine: Engine) -> str:
    """Let an engine read where the answer to a question stands."""
    asked = exam.asked[number]
    box = asked.question.box(exam.scenes[asked.scene])
    assert box is not None
    return engine(cut_out(exam.pictures[asked.scene], box))


@torch.no_grad()
def grounding(
    exam: Exam,
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    prompts: Sequence[str],
    right: Sequence[tuple[int, str]],
) -> dict[str, dict[str, Any]]:
    """Fit what right answers, each with its question's number, rest on to the boxes where they stand, by method."""
    tokenizer, fits, hits = processor.tokenizer, {}, {}
    for number, got in right:
        asked = exam.asked[number]
        box = asked.question.box(exam.scenes[asked.scene])
        assert box is not None
        target = [end / exam.scenes[asked.scene].side for end in box]
        inputs = {**tokenizer(prompts[number], return_tensors="pt"), **exam.grids_of([asked.scene])}
        inputs.pop("token_type_ids", None)
        reply = tokenizer(got + tokenizer.eos_token, return_tensors="pt").input_ids
        values = {}
        seen = model.ground(**inputs, method="occlusion", answer_ids=reply)
        values["occlusion"] = seen.effects[0].clamp(min=0)
        if model.config.connector == "cmm":
            whole = torch.cat([inputs["input_ids"], reply], 1)
            given = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
            # The token before each letter looks for it.
            weights = model.ground(**given, method="weights").weights[0, -reply.shape[1] - 1 : -2]
            values["weights"] = weights.mean(0)
        boxes = seen.boxes[0].cpu().numpy()
        for method, heat in values.items():
            heat = heat.float().cpu().numpy()
            fits.setdefault(method, []).append(fit(boxes, heat, target))
            hits.setdefault(method, []).append(points_at(boxes, heat, target))
    return {method: _mean_fit(fits[method], np.array(hits[method])) for method in METHODS if method in fits}


def _mean_fit(fits: list, hits: np.ndarray) -> dict[str, Any]:
    """The means of fits, with pointing at any of the box's grids in the place of pointing at its centre."""
    pointing, chance = hits.mean(0)
    return {**grounding_scores(fits), "pointing": float(pointing), "chance": float(chance)}


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the results of `evaluate_screens` as tables."""
    console = console or Console()
    console.print(f"{results['scenes']} scenes of each split (seed {results['seed']}); in %")
    for split, found in results["splits"].items():
        columns = {"model": found["answers"], "held-out wordings": found["held_out_wordings"], **found["baselines"]}
        title = f"{split}: exact match (character error rate), {found['questions']} questions"
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("kind", *columns):
            table.add_column(name, justify="left" if name == "kind" else "right")
        kinds = [kind for kind in KINDS if kind in found["answers"]]
        for kind in (*kinds, "all"):
            table.add_row(
                kind, *(_shown(scored.get(kind)) for scored in columns.values()), end_section=kind == kinds[-1]
            )
        console.print(table)
        for method, fitted in found["grounding"].items():
            console.print(
                f"by {method}: the highest grid is on the answer in {_percent(fitted['pointing'])} (a random one in "
                f"{_percent(fitted['chance'])}), inside it {_percent(fitted['inside'])}, IoU at half the highest "
                f"{_percent(fitted['iou']['0.5'])}; {fitted['questions']} right answers"
            )


def _shown(scored: dict[str, float] | None) -> str:
    return "-" if scored is None else f"{_percent(scored['exact'])} ({_percent(scored['cer'])})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
