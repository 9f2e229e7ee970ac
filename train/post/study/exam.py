"""The study's exam: answers and where they come from, on digits and in wordings that nothing was trained on."""

from pathlib import Path

import numpy as np
import torch

from ....evaluate.answering import chat_prompt
from ....evaluate.digits import draw
from ....evaluate.exam import IMAGE_SIDE, answer, make_exam, pose
from ....evaluate.tiny import HARDER, grounding
from ....model import FireboltForConditionalGeneration, FireboltProcessor
from ....model.generation import own_settings
from .rows import AT_A_TIME, samples

SEED = 31
SPLIT = "held-out"


def load(folder: Path) -> tuple[FireboltForConditionalGeneration, FireboltProcessor]:
    """The model in a folder, in eval mode, and its processor."""
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    processor = FireboltProcessor.from_pretrained(folder)
    own_settings(model, processor.tokenizer, sampled=False)
    return model, processor


@torch.no_grad()
def examine(folder: Path, scenes: int) -> dict[str, float]:
    """Shares, from 0 to 1, of the model in a folder: right answers and grounded ones.

    accuracy, harder, wordings    right answers inside the tiles, on the harder layouts, and in held-out wordings
    weights, occlusion            questions that name a quarter and whose answer comes from it, by either measure
    length                        mean length of an answer, in characters
    """
    model, processor = load(folder)
    exam = make_exam(model, processor, scenes, SEED, SPLIT)
    prompts = [chat_prompt(processor, asked.question.text) for asked in exam.asked]
    said = answer(model, processor, exam, prompts, range(len(prompts)))
    marks = np.array([given == asked.question.answer for given, asked in zip(said, exam.asked)])
    held_out = np.array([asked.question.held_out for asked in exam.asked])
    harder = np.array([asked.layout in HARDER for asked in exam.asked])
    known = [number for number in range(len(prompts)) if not held_out[number]]
    found = grounding(model, processor, exam, prompts, said, known)
    asked = sum(found[layout]["questions"] for layout in ("inside", "harder"))
    return {
        "accuracy": float(marks[~held_out & ~harder].mean()),
        "harder": float(marks[~held_out & harder].mean()),
        "wordings": float(marks[held_out].mean()),
        **{
            method: sum(found[layout][method] * found[layout]["questions"] for layout in ("inside", "harder")) / asked
            for method in ("weights", "occlusion")
        },
        "length": float(np.mean([len(one) for one in said])),
    }


@torch.no_grad()
def pass_at(folder: Path, scenes: int, place: Path) -> dict[str, float]:
    """Share of the exam's questions that one of eight samples gets right, and the mean share of right samples."""
    model, processor = load(folder)
    drawn, asked = pose(scenes, SEED, SPLIT)
    asked = [one for one in asked if not one.question.held_out]
    place.mkdir(parents=True, exist_ok=True)
    files = [str(place / f"{number:04d}.png") for number in range(len(drawn))]
    for file, scene in zip(files, drawn):
        draw(scene, IMAGE_SIDE).save(file)
    torch.manual_seed(SEED)
    right = []
    for start in range(0, len(asked), AT_A_TIME):
        part = asked[start : start + AT_A_TIME]
        said = samples(model, processor, [files[one.scene] for one in part], [one.question for one in part])
        right += [[given == one.question.answer for given in answers] for one, answers in zip(part, said)]
    return {"pass@8": float(np.mean([any(row) for row in right])), "sampled": float(np.mean(right))}
