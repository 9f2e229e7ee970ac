"""Examination on own questions: answers, the baseline of a swapped image, and grounding where rows have a box."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import quiet
from .evaluate.items import Item, numbered
from .evaluate.metrics.grounding import Fit, fit
from .evaluate.own import OWN, grounding_scores, with_other_images
from .evaluate.rows import Cell, open_data
from .evaluation import Examinee, Run, evaluate, results
from .exam_rows import WHOLE, Shard
from .files.problems import BadRow
from .files.reading import lines_of, parse_json
from .prompts import prompt, specials
from .row_files import RowFile

if TYPE_CHECKING:
    from .checkpoint import Loaded
    from .worst_picture import Worst

OF_ANOTHER_IMAGE = ("rows", "score", "word_f1", "anls", "kinds")
OF_OTHER_IMAGES = ".swapped"
METHODS = ("weights", "occlusion")
ANOTHER = "name another folder"
GROUNDED = ("id", "boxes", "box", *METHODS)
"""Keys of a line of own.grounding.jsonl; without weights, where the connector has none, they are null."""
Progress = Callable[[int, int], None]


def evaluate_own(
    source: str,
    examinee: Examinee,
    out: Path,
    *,
    shard: Shard = WHOLE,
    progress: Progress = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
    **options,
) -> tuple[Run, dict[str, Any]]:
    """Examine a model on a file of own questions; `options` as `evaluation.evaluate` has them.

    Returns the run and its results: the scores, those with the image of another row (`another_image`), and for rows
    with a box the fit of the grounding, by weights and by occlusion. What is answered and grounded is kept in `out`,
    and not done again.

    Raises Misuse, Failure: what cannot be done, in one line.
    """
    run = evaluate(OWN, source, examinee, out, shard=shard, progress=progress, report=report, **options)
    found = results(OWN, run.rows, run.bad)
    swapped = evaluate(
        OWN,
        source,
        examinee,
        out,
        name=OWN.name + OF_OTHER_IMAGES,
        shard=shard,
        arrange=with_other_images,
        progress=progress,
        **options,
    )
    if swapped.rows:
        scores = results(OWN, swapped.rows)
        found["another_image"] = {name: scores[name] for name in OF_ANOTHER_IMAGE if name in scores}
    boxed = {json.dumps(row["id"]): row for row in run.rows if row["about"].get("box")}
    if boxed:
        found["grounding"] = _ground_rows(source, boxed, examinee, out, shard, progress, report)
    return run, found


def _ground_rows(
    source: str,
    boxed: dict[str, dict],
    examinee: Examinee,
    out: Path,
    shard: Shard,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Ground the answers to rows with a box, those that are not in the file yet. Returns the scores by method."""
    path = out / f"{shard.named('own')}.grounding.jsonl"
    with RowFile("--out", str(path), [("the data", source)], report, (*GROUNDED, "by"), "grounding", ANOTHER) as file:
        file.check_all_by(examinee.by)
        missing = boxed.keys() - file.rows.keys()
        progress(len(boxed) - len(missing), len(boxed))
        if missing:
            loaded = examinee.loaded(report)
            for key, item in _questions(source):
                if key in missing:
                    with quiet():
                        found = {"id": item.id, **_ground(loaded, item.question, item.images[0], boxed[key]["got"])}
                    found |= {"box": boxed[key]["about"]["box"], "by": dict(examinee.by)}
                    file.append([json.dumps(found)])
                    file.rows[key] = found
                    missing.remove(key)
                    progress(len(boxed) - len(missing), len(boxed))
        return _fits([row for key, row in file.rows.items() if key in boxed])


def _questions(source: str) -> Iterator[tuple[str, Item]]:
    """The questions of a file, each with its id as a key; rows that are none are left out."""
    for place, row in open_data(source, OWN.split):
        if not isinstance(row, BadRow):
            try:
                item = numbered(OWN.read(row), place)
            except BadRow:
                continue
            yield json.dumps(item.id), item


def _ground(loaded: "Loaded", question: str, cell: Cell, got: str) -> dict[str, Any]:
    """The boxes of an image's views in pixels, the mean weights of the question's tokens, the effects of masking."""
    import torch

    picture, text = cell.open(), prompt(loaded, question)
    inputs = loaded.processor(images=picture, text=text, return_tensors="pt", **specials(loaded, text))
    inputs = inputs.to(loaded.model.device)
    sizes = torch.tensor([[picture.height, picture.width]])
    tokenizer = loaded.processor.tokenizer
    answer = tokenizer(got + (tokenizer.eos_token or ""), add_special_tokens=False, return_tensors="pt").input_ids
    rests = loaded.model.ground(**inputs, method="occlusion", answer_ids=answer, image_sizes=sizes)
    kept = rests.grid_mask[0]
    found = {"boxes": rests.boxes[0][kept].tolist(), "occlusion": rests.effects[0][kept].tolist(), "weights": None}
    if loaded.model.config.connector == "cmm":
        seen = loaded.model.ground(**inputs, method="weights")
        read = inputs["attention_mask"][0].bool()
        found["weights"] = seen.weights[0][read].mean(0)[kept].tolist()
    return found


def worst(source: str, run: Run, out: Path, count: int, shard: Shard = WHOLE) -> list["Worst"]:
    """The answers with the lowest scores, those that are least like the truth first, with their images."""
    from .evaluate.metrics.text import anls
    from .worst_picture import Worst

    ordered = sorted(run.rows, key=lambda row: (row["score"], anls(row["got"], row["wanted"], least=0)))[:count]
    wanted = {json.dumps(row["id"]): row for row in ordered}
    views = {}
    grounded = out / f"{shard.named('own')}.grounding.jsonl"
    if grounded.is_file():
        for line in lines_of(grounded):
            row = parse_json(line)
            strongest = max(range(len(row["boxes"])), key=row["occlusion"].__getitem__)
            views[json.dumps(row["id"])] = row["boxes"][strongest]
    images = {key: item.images[0].open() for key, item in _questions(source) if item.images and key in wanted}
    return [
        Worst(images.get(key), row["question"], row["wanted"][0], row["got"], row["about"].get("box"), views.get(key))
        for key, row in wanted.items()
    ]


def _fits(rows: Sequence[dict]) -> dict[str, Any]:
    by_method: dict[str, list[Fit]] = {}
    for row in rows:
        for method in METHODS:
            if row[method] is not None:
                by_method.setdefault(method, []).append(fit(row["boxes"], row[method], row["box"]))
    return {method: grounding_scores(fits) for method, fits in by_method.items()}
