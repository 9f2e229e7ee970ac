"""The study's questions as data files: scenes of training digits, a wrong answer of the start model beside each."""

import json
from pathlib import Path

import numpy as np
import torch

from ....evaluate.answering import chat_prompt
from ....evaluate.digits import LAYOUTS, POSITIONS, draw, sample_scene
from ....evaluate.exam import IMAGE_SIDE
from ....evaluate.questions import GROUNDED_KINDS, KINDS, NOTHING, Question, sample_question
from ....files.writing import write_text
from ....model import FireboltForConditionalGeneration, FireboltProcessor

SEED = 21
ROWS = "rows.jsonl"
SAMPLES, LONGEST = 8, 8
AT_A_TIME = 64


def write_questions(folder: Path, model: FireboltForConditionalGeneration, processor: FireboltProcessor, count: int):
    """Write `count` questions about scenes of their own to `folder`, each with its answer and a rejected one.

    The rejected answer is the first wrong one of eight that the start model samples; where it has none, another answer
    to questions of that kind. A question that names a quarter with a digit in it has the quarter as `box`, and the
    reward of grounding beside that of the answer.
    """
    rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    asked: list[tuple[str, Question]] = []
    while len(asked) < count:
        scene = sample_scene(rng, LAYOUTS[len(asked) % len(LAYOUTS)], "train")
        kind = KINDS[int(rng.integers(len(KINDS)))]
        if (question := sample_question(rng, scene, kind)) is not None:
            name = f"{len(asked):04d}.png"
            draw(scene, IMAGE_SIDE).save(folder / name)
            asked.append((name, question))
    others = {kind: sorted({one.answer for _, one in asked if one.kind == kind}) for kind in KINDS}
    lines = []
    for start in range(0, count, AT_A_TIME):
        part = asked[start : start + AT_A_TIME]
        images = [folder / name for name, _ in part]
        said = samples(model, processor, [str(image) for image in images], [question for _, question in part])
        for (name, question), answers in zip(part, said):
            wrong = [answer for answer in answers if answer and answer != question.answer]
            wrong += [answer for answer in others[question.kind] if answer != question.answer] + [NOTHING]
            lines.append(json.dumps(_row(name, question, wrong[0])) + "\n")
    write_text(folder / ROWS, "".join(lines))


def _row(name: str, question: Question, rejected: str) -> dict:
    grounded = question.kind in GROUNDED_KINDS and question.answer != NOTHING
    turns = [{"from": "human", "value": question.text}, {"from": "assistant", "value": question.answer}]
    row = {"image": name, "conversations": turns, "rejected": rejected, "reward": ["exact"]}
    if grounded:
        row |= {"reward": ["exact", "grounding"], "box": quarter(question.tiles[0])}
    return row


def quarter(tile: int) -> list[int]:
    """The box [x0, y0, x1, y1] of a quarter, in pixels."""
    y, x = divmod(tile, len(POSITIONS) // 2)
    half = IMAGE_SIDE // 2
    return [x * half, y * half, (x + 1) * half, (y + 1) * half]


@torch.no_grad()
def samples(
    model: FireboltForConditionalGeneration, processor: FireboltProcessor, images, questions
) -> list[list[str]]:
    """Eight answers to each question, sampled at temperature 1 from the generator as it stands."""
    text = [chat_prompt(processor, question.text) for question in questions]
    inputs = processor(images=images, text=text, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(
        **inputs, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=SAMPLES, max_new_tokens=LONGEST
    )
    said = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    said = [answer.strip() for answer in said]
    return [said[row : row + SAMPLES] for row in range(0, len(said), SAMPLES)]
