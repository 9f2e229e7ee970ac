"""A decoder that has learned something from texts before it sees: of three named digits, which one a name has.

It stands for the language model that a modulator is put into. Where a model starts from it, `start` decides how much of
it is left in the first steps.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....files.writing import write_whole
from ....model import FireboltForConditionalGeneration
from ...tensors import read_about, read_tensors, write_tensors
from .exam import answers_of, share
from .questions import DIGIT, NAME, NAMES, Questions, text_of
from .scenes import CELLS, DIGITS
from .task import Asked, Task
from .variants import VARIANTS, make_model

VARIANT = "trained-norm"
STEPS, BATCH, RATE, WARMUP, SEED, EXAM_SEED = 400, 128, 3e-3, 50, 17, 18
KEPT_STEPS = "steps"


def recall(count: int, generator: torch.Generator) -> Questions:
    """Ask about texts alone: "ann 7 cleo 4 bob 3 digit of bob ?" has the answer 3."""
    digits = torch.rand(count, DIGITS, generator=generator).argsort(1)[:, : len(NAMES)]
    names = torch.rand(count, len(NAMES), generator=generator).argsort(1)
    words: list[str | Tensor] = []
    for name, digit in zip(names.unbind(1), digits.unbind(1)):
        words += [NAME + name, DIGIT + digit]
    asked = torch.randint(len(NAMES), (count, 1), generator=generator)
    words += ["digit", "of", NAME + names.gather(1, asked)[:, 0], "?"]
    ids, lengths = text_of(*words, length=len(words)), torch.full((count,), len(words))
    answers, no_kind = DIGIT + digits.gather(1, asked)[:, 0], torch.full((count,), -1)
    return Questions(ids, lengths, answers, no_kind, torch.zeros(count, CELLS, dtype=torch.bool))


def pretrain() -> dict[str, Tensor]:
    """Train a decoder with its embeddings on `recall`, without images; the same on every call."""
    model = make_model(VARIANTS[VARIANT], SEED).train()
    generator = torch.Generator().manual_seed(SEED)
    decoder = model.model.language_model
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / STEPS)
        questions = recall(BATCH, generator)
        logits = model(input_ids=questions.ids, use_cache=False).logits[:, -1]
        optimizer.zero_grad()
        F.cross_entropy(logits, questions.answers).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    return decoder.state_dict()


def keep_decoder(file: Path) -> None:
    """Pretrain the decoder and write it to a file, unless the file has it."""
    try:
        if read_about(file).get(KEPT_STEPS) == str(STEPS):
            return
    except ValueError:  # none, or damaged
        pass
    kept = pretrain()
    write_whole(file, lambda temporary: write_tensors(temporary, kept, {KEPT_STEPS: str(STEPS)}))


def load_decoder(model: FireboltForConditionalGeneration, file: Path) -> None:
    """Give a model the decoder that `keep_decoder` kept. Raises ValueError where the file is something else."""
    try:
        model.model.language_model.load_state_dict(read_tensors(file))
    except RuntimeError:
        raise ValueError(f"{file} has other tensors than the decoder of the boards") from None


@torch.no_grad()
def recalled(model: FireboltForConditionalGeneration, grids: str, task: Task) -> float:
    """The share of right answers about texts alone while an image is before the model."""
    was = model.training
    seen = task.exam(grids).grids[: task.settings.exam_boards]
    questions = recall(len(seen), torch.Generator().manual_seed(EXAM_SEED))
    right = answers_of(model.eval(), grids, Asked(seen, questions)) == questions.answers
    model.train(was)
    return share(right)
