"""Measures of a trained model: right answers, grounding, positions in the decoder, time of an answer."""

import statistics
import time

import torch
from torch import Tensor

from ....model import FireboltForConditionalGeneration
from .job import answer_logits, cut
from .questions import KINDS
from .task import Asked, Task, shown
from .tower import boxes, encode
from .variants import BASE, VARIANTS, make_model

AT_ONCE = 200
# The kinds whose answer rests on one cell.
GROUNDED_KINDS = ("at", "find", "both", "beside")
OCCLUDED = 40
"""Questions of each kind for which one grid after the other is masked."""
TIMED = 30


@torch.no_grad()
def examine(model: FireboltForConditionalGeneration, grids: str, task: Task) -> dict:
    exam = task.exam(grids)
    kinds = exam.questions.kinds
    right = torch.cat([answers_of(model, grids, exam[rows]) for rows in parts_of(exam)]) == exam.questions.answers
    accuracy = {kind: share(right[kinds == number]) for number, kind in enumerate(KINDS)}
    accuracy["all"] = sum(accuracy.values()) / len(KINDS)
    return {
        "questions": len(exam),
        "accuracy": accuracy,
        "grounding": grounding(model, grids, exam),
        "decoder_positions": decoder_positions(model, grids, exam),
    }


def share(right: Tensor) -> float:
    return right.double().mean().item()


def parts_of(asked: Asked) -> list[slice]:
    """Slices of AT_ONCE questions; an exam has them kind by kind."""
    return [slice(start, start + AT_ONCE) for start in range(0, len(asked), AT_ONCE)]


def answers_of(model: FireboltForConditionalGeneration, grids: str, asked: Asked) -> Tensor:
    return answer_logits(model, grids, asked)[0].argmax(-1)


def grounding(model: FireboltForConditionalGeneration, grids: str, exam: Asked) -> dict[str, dict[str, float]]:
    """Measure how often the grid that weighs most, or whose masking costs the answer most, shows the cell asked for.

    By weights: their mean over the question's tokens; only of a connector that weighs grids for its text.
    """
    found: dict[str, dict[str, float]] = {"occlusion": {}}
    for kind in GROUNDED_KINDS:
        asked = exam[exam.questions.kinds == KINDS.index(kind)]
        if model.model.connector.weighs_grids:
            weighed = weights(model, grids, asked)
            found.setdefault("weights", {})[kind] = share(hits(weighed, asked, grids))
        some = asked[:OCCLUDED]
        found["occlusion"][kind] = share(hits(occlusion(model, grids, some), some, grids))
    return found


def hits(values: Tensor, asked: Asked, grids: str) -> Tensor:
    """Tell whether the grid of the largest value [N,G] shows a cell that the answer rests on, [N]."""
    return (shown(grids)[values.argmax(-1)] & asked.questions.shows).any(-1)


def weights(model: FireboltForConditionalGeneration, grids: str, asked: Asked) -> Tensor:
    ids, there = cut(asked)
    text = model.get_input_embeddings()(ids)
    _, w = model.model.connector(
        text, asked.grids, there, grid_boxes=boxes(grids).expand(len(ids), -1, -1), return_weights=True
    )
    return w.sum(1)  # zero where there is no token


def occlusion(model: FireboltForConditionalGeneration, grids: str, asked: Asked) -> Tensor:
    """Measure by how much masking each grid lowers the answer's log-probability, [N,G], to a constant of each row."""
    G = asked.grids.shape[1]
    keep = ~torch.eye(G, dtype=torch.bool)
    costs = []
    for number in range(len(asked)):
        one = asked[torch.full((G,), number)]
        scores = answer_logits(model, grids, one, keep)[0].log_softmax(-1)
        costs.append(-scores[:, asked.questions.answers[number]])
    return torch.stack(costs)


def decoder_positions(model: FireboltForConditionalGeneration, grids: str, exam: Asked) -> int:
    """Positions that the decoder reads for a question of kind "find", of four words."""
    read: list[int] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    first = int((exam.questions.kinds == KINDS.index("find")).int().argmax())
    answers_of(model, grids, exam[first : first + 1])
    hook.remove()
    return read[0]


@torch.no_grad()
def time_ratio(model: FireboltForConditionalGeneration, grids: str, task: Task) -> dict[str, float]:
    """Milliseconds from an image and a question of four words to the answer, and over those of the base.

    The two take turns, image encoder included; the ratio is the median of those of neighbours.
    """
    images, questions = task.exam_boards
    one = questions[questions.kinds == KINDS.index("find")][:1]
    base = make_model(VARIANTS[BASE], 0).eval()

    def timed(of: FireboltForConditionalGeneration, seen: str) -> float:
        begun = time.perf_counter()
        answers_of(of, seen, Asked(encode(task.tower, images[:1], seen), one))
        return 1000 * (time.perf_counter() - begun)

    pairs = [(timed(model, grids), timed(base, VARIANTS[BASE].grids)) for _ in range(TIMED)]
    return {
        "milliseconds": statistics.median(mine for mine, _ in pairs),
        "over_base": statistics.median(mine / its for mine, its in pairs),
    }
