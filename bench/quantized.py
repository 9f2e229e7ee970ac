"""Costs of 8 and 4 bits: drift of the logits, perplexity and accuracy, and what a saved checkpoint takes to load.

`python -m firebolt_vl.bench.quantized FOLDER` measures a model that reads digits (firebolt_vl/tiny); without a folder
one of full size with random weights, which knows nothing: no accuracy, and the perplexity is that of random tokens.

Seconds and memory are those of `from_pretrained` in a process of its own, the least of several in turns: of what was
saved in so many bits ("saved"), and of the checkpoint before, quantised when it is loaded ("anew"). Memory is
what the process needed at its peak beyond what it had before, pages of the file included.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluate.answering import chat_prompt
from ..evaluate.exam import Exam, answer, make_exam
from ..evaluate.tiny import mark
from ..files.tables import markdown_table
from ..model import FireboltForConditionalGeneration, FireboltProcessor
from ..model.cpu.quantized_models import QUANTIZE, logits_drift
from .answer import FULL_SIZE, Sizes, random_model

SCENES, SEED = 200, 0
COMPARED = 256  # questions of the exam whose logits are compared
RANDOM_TOKENS = 256
ROUNDS = 3
COLUMNS = ["weights", "file", "load", "memory", "drift", "same token", "perplexity", "accuracy"]
LOAD = """
import json, sys, time, torch
from pathlib import Path
from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.model.cpu.quantized_models import QUANTIZE
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before, start = peak(), time.perf_counter()
model = FireboltForConditionalGeneration.from_pretrained(sys.argv[1], dtype="auto")
if len(sys.argv) > 2:
    QUANTIZE[sys.argv[2]](model)
print(json.dumps([time.perf_counter() - start, peak() - before]))
"""

Inputs = dict[str, Tensor]


def load_cost(folder: Path, quantize: str | None = None) -> tuple[float, int]:
    """Return the seconds and the peak of memory of loading a checkpoint in a new process, and quantising it."""
    command = [sys.executable, "-c", LOAD, str(folder), *([quantize] if quantize else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def load_costs(folder: Path, plain: Path, kind: str | None) -> dict[str, tuple[float, int]]:
    """Return the least seconds and memory of loading what is saved in `folder`, and `plain` if it is quantised anew."""
    ways: dict[str, Callable] = {"saved": lambda: load_cost(folder)}
    if kind is not None:
        ways["anew"] = lambda: load_cost(plain, kind)
    rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
    return {name: (min(each[name][0] for each in rounds), min(each[name][1] for each in rounds)) for name in ways}


@torch.no_grad()
def compared(
    plain: FireboltForConditionalGeneration, inputs: Inputs, labels: Tensor, score: Callable | None
) -> Iterator[list[str]]:
    """Yield a row of the table for the model as it is, in 8 and in 4 bits, loaded from saved checkpoints.

    `score(model)` is an accuracy in percent, None where the model knows nothing.
    """
    with tempfile.TemporaryDirectory() as kept:
        for kind in (None, *QUANTIZE):
            folder = Path(kept) / str(kind)
            (plain if kind is None else QUANTIZE[kind](copy.deepcopy(plain))).save_pretrained(folder)
            saved: Any = plain if kind is None else FireboltForConditionalGeneration.from_pretrained(folder)
            drift = logits_drift(plain, saved, **inputs)
            perplexity = saved(**inputs, labels=labels, use_cache=False).loss.exp().item()
            costs = load_costs(folder, Path(kept) / "None", kind)
            yield [
                kind or str(plain.dtype).removeprefix("torch."),
                f"{(folder / 'model.safetensors').stat().st_size / 1e6:,.1f} MB",
                ", ".join(f"{how} {seconds:.2f} s" for how, (seconds, _) in costs.items()),
                ", ".join(f"{how} {peak / 1e6:,.0f} MB" for how, (_, peak) in costs.items()),
                f"{100 * drift['relative']:.1f} %",
                f"{100 * drift['same_token']:.1f} %",
                f"{perplexity:.4g}",
                "" if score is None else f"{score(saved):.1f} %",
            ]


def answered_exam(processor: FireboltProcessor, exam: Exam) -> tuple[Inputs, Tensor]:
    """Make inputs of an exam's first questions with their right answers, and labels on the answers [B,T]."""
    chosen = exam.asked[:COMPARED]
    prompts = [chat_prompt(processor, asked.question.text) for asked in chosen]
    end = processor.tokenizer.eos_token
    tails = [asked.question.answer + end for asked in chosen]
    encode = lambda texts: processor.tokenizer(texts, add_special_tokens=False).input_ids  # noqa: E731
    rows = [(begin, tail) for begin, tail in zip(processor.tokenizer(prompts).input_ids, encode(tails))]
    width = max(len(begin) + len(tail) for begin, tail in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (begin, tail) in enumerate(rows):
        ids[number, -len(begin) - len(tail) :] = torch.tensor([*begin, *tail])
        mask[number, -len(begin) - len(tail) :] = 1
        labels[number, -len(tail) :] = torch.tensor(tail)
    scenes = torch.tensor([asked.scene for asked in chosen])
    grids = {"grids": exam.features[scenes], "grid_mask": exam.mask[scenes], "grid_boxes": exam.boxes[scenes]}
    return {"input_ids": ids, "attention_mask": mask, **grids}, labels


def exam_rows(folder: str) -> Iterator[list[str]]:
    """Yield the rows of a model of a folder, in the exam of the embedded one."""
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    processor = FireboltProcessor.from_pretrained(folder)
    with torch.no_grad():
        exam = make_exam(model, processor, SCENES, SEED, "held-out")
    prompts = [chat_prompt(processor, asked.question.text) for asked in exam.asked]

    def score(which: FireboltForConditionalGeneration) -> float:
        which.generation_config = model.generation_config
        marked = mark(exam, range(len(prompts)), answer(which, processor, exam, prompts, range(len(prompts))))
        return 100 * sum(one.mark.score for one in marked) / len(marked)

    inputs, labels = answered_exam(processor, exam)
    return compared(model, inputs, labels, score)


def random_rows(sizes: Sizes = FULL_SIZE) -> Iterator[list[str]]:
    """Yield the rows of a model of these sizes with random weights, in bfloat16."""
    model = random_model("bfloat16", "cpu", sizes)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(3, model.config.text_config.vocab_size, (1, RANDOM_TOKENS), generator=generator)
    grids = torch.randn(1, 5, model.config.vision_config.hidden_size, generator=generator).to(model.dtype)
    return compared(model, {"input_ids": ids, "grids": grids}, ids, None)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="a checkpoint; else full size, random weights")
    folder = parser.parse_args().folder
    print(markdown_table(COLUMNS, list(exam_rows(folder) if folder else random_rows())))


if __name__ == "__main__":
    main()
