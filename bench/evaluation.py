"""Evaluation beside the same loop without it: what rows, batches, marks and files cost over processor and `generate`.

A full-size model with random weights answers questions in POPE's format about photos of noise. Evaluation runs as it
always does; after every few batches it waits while the bare loop answers the same batches, so that whatever else the
machine does slows both.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..evaluate.benchmarks import SHORTLY
from ..files.tables import markdown_table
from ..model import FireboltForConditionalGeneration, FireboltProcessor
from ..model.generation import own_settings, settings_for
from ..model.places import find
from .answer import FULL_SIZE, PHOTO, Sizes, image_processor, random_model
from .kernels import device_name

TURN = 2
"""Batches of a turn."""
VOCABULARY = 600
THINGS = ("dog", "chair", "bicycle", "traffic light", "dining table", "person", "umbrella", "cup")
CATEGORIES = ("adversarial", "popular", "random")
STATM = Path("/proc/self/statm")


class Asked(NamedTuple):
    """A question of a batch: its id, and its image."""

    id: str | int
    image: Path
    question: str


class Clock(NamedTuple):
    """Seconds that passed, and seconds of the processor."""

    passed: float
    worked: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Clock") -> "Clock":
        return Clock(self.passed - start.passed, self.worked - start.worked)


class Turn(NamedTuple):
    """The same rows by evaluation and by the bare loop; the memory of the process after both."""

    rows: int
    ours: Clock
    bare: Clock
    resident_mb: float | None


def build(
    dtype: str, device: str, sizes: Sizes = FULL_SIZE
) -> tuple[FireboltForConditionalGeneration, FireboltProcessor]:
    """A model with random weights, and a processor whose tokenizer cuts the questions as a large one would: it is that
    of the model in the package, trained on them."""
    model = random_model(dtype, device, sizes)
    known = FireboltProcessor.from_pretrained(find("tiny"))
    tokenizer = known.tokenizer.train_new_from_iterator(
        [f"{question(thing)}\n{SHORTLY}" for thing in THINGS], VOCABULARY
    )
    own_settings(model, tokenizer, sampled=False)
    return model, FireboltProcessor(image_processor(sizes), tokenizer, known.chat_template)


def question(thing: str) -> str:
    return f"Is there a {thing} in the image?"


def write_rows(folder: Path, rows: int, images: int, seed: int = 0) -> Path:
    """Draw photos and write questions about them, in turns, in POPE's columns. Returns the file of the questions."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        levels = rng.integers(0, 256, (PHOTO[1] // 8, PHOTO[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize(PHOTO, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    lines = [
        json.dumps(
            {
                "id": number,
                "image": f"{number % images}.jpg",
                "question": question(rng.choice(THINGS)),
                "answer": ("yes", "no")[number % 2],
                "category": CATEGORIES[number % len(CATEGORIES)],
            }
        )
        for number in range(rows)
    ]
    file = folder / "pope.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@torch.no_grad()
def answer(
    model: FireboltForConditionalGeneration, processor: FireboltProcessor, batch: Sequence[Asked], new_tokens: int
) -> list[str]:
    """The bare loop: images opened, the processor, `generate`, and the texts of its tokens."""
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}] for one in batch
    ]
    text = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    images = [[Image.open(one.image).convert("RGB")] for one in batch]
    inputs = processor(
        images=images, text=text, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    tokens = model.generate(**inputs, generation_config=settings_for(model, new_tokens))
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [one.strip() for one in answers]


class Turns:
    """Times of evaluation, which tells of each batch, and of the bare loop, which answers a turn's batches again."""

    def __init__(self, bare: Callable[[Sequence[Asked]], list[str]], size: int = TURN):
        self.bare, self.size = bare, size
        self.found: list[Turn] = []
        self.answers: dict[str | int, str] = {}
        """What the bare loop said, by the questions' ids."""
        self.waiting: list[Sequence[Asked]] = []
        self.start = Clock.now()

    def begin(self) -> None:
        self.start = Clock.now()

    def asked(self, batch: Sequence[Asked]) -> None:
        """Note a batch that evaluation answers now."""
        self.waiting.append(batch)

    def answered(self) -> None:
        """Let the bare loop answer, where evaluation has had its turn."""
        if len(self.waiting) >= self.size:
            self.end()

    def end(self) -> None:
        """End the turn of evaluation, whatever it was: the bare loop answers what there is."""
        ours, begun = Clock.now().since(self.start), Clock.now()
        for batch in self.waiting:
            self.answers |= zip((one.id for one in batch), self.bare(batch))
        bare = Clock.now().since(begun)
        self.found.append(Turn(sum(map(len, self.waiting)), ours, bare, resident_mb()))
        self.waiting = []
        self.start = Clock.now()


def resident_mb() -> float | None:
    """The memory that this process holds; None where /proc does not say it."""
    if not STATM.exists():
        return None
    import resource

    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 1e6


@dataclass(frozen=True)
class Report:
    """Seconds are means of a question, overheads shares of the bare loop's time, quartiles those of the turns."""

    rows: int
    images: int
    batch_size: int
    new_tokens: int
    dtype: str
    device: str
    threads: int
    torch: str
    ours_s: float
    bare_s: float
    overhead: float
    """Of time as it passes, over all turns."""
    quartiles: tuple[float, ...]
    processor_overhead: float
    """Of the processor's time, which other work hardly touches, with one thread."""
    processor_quartiles: tuple[float, ...]
    answers_that_differ: int
    resident_mb: float | None
    """After the first quarter of the turns."""
    mb_per_100_rows: float | None
    """Slope of the line through the memory of the turns after it, by least squares."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def report(turns: Sequence[Turn], **known: Any) -> Report:
    """Sum up the turns; `known` are the fields that do not come of them."""
    ours, bare = sum(turn.ours.passed for turn in turns), sum(turn.bare.passed for turn in turns)
    worked = sum(turn.ours.worked for turn in turns) / sum(turn.bare.worked for turn in turns)
    whole = [turn for turn in turns if turn.rows]
    rows = sum(turn.rows for turn in turns)
    resident, slope = _memory(whole)
    return Report(
        rows=rows,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        ours_s=ours / rows,
        bare_s=bare / rows,
        overhead=ours / bare - 1,
        quartiles=_quartiles([turn.ours.passed / turn.bare.passed - 1 for turn in whole]),
        processor_overhead=worked - 1,
        processor_quartiles=_quartiles([turn.ours.worked / turn.bare.worked - 1 for turn in whole]),
        resident_mb=resident,
        mb_per_100_rows=slope,
        **known,
    )


def _quartiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(statistics.quantiles(values, n=4)) if len(values) > 1 else (*values,) * 3


def _memory(turns: Sequence[Turn]) -> tuple[float | None, float | None]:
    """Find what the process held after a quarter of the turns, and how much more with each hundred rows after it."""
    rows = np.cumsum([turn.rows for turn in turns])
    seen = [(count, turn.resident_mb) for count, turn in zip(rows, turns) if turn.resident_mb is not None]
    seen = seen[len(seen) // 4 :]
    if len(seen) < 2:
        return (seen[0][1] if seen else None), None
    counts, held = zip(*seen)
    return held[0], float(100 * np.polyfit(counts, held, 1)[0])


def page(found: Report, command: str) -> str:
    """The report as Markdown."""
    return f"# Evaluation beside its bare loop\n\n{markdown(found)}\n\n`{command}`\n"


COLUMNS = (
    "rows",
    "images",
    "s a question",
    "bare loop",
    "overhead (quartiles)",
    "of processor time",
    "answers that differ",
    "resident memory",
    "growth in 100 rows",
)


def cells(found: Report) -> list[str]:
    """A row of the table."""
    memory = ("-", "-")
    if found.resident_mb is not None and found.mb_per_100_rows is not None:
        memory = f"{found.resident_mb:,.0f} MB", f"{found.mb_per_100_rows:.1f} MB"
    return [
        str(found.rows),
        str(found.images),
        f"{found.ours_s:.3f}",
        f"{found.bare_s:.3f}",
        _percents(found.overhead, found.quartiles),
        _percents(found.processor_overhead, found.processor_quartiles),
        str(found.answers_that_differ),
        *memory,
    ]


def _percents(share: float, quartiles: Sequence[float]) -> str:
    return f"{100 * share:.1f} % ({', '.join(f'{100 * one:.1f}' for one in quartiles)})"


def markdown(found: Report) -> str:
    """The table, and what it was measured on."""
    how = (
        f"Full-size model, random weights, {found.dtype}; batches of {found.batch_size}, {found.new_tokens} tokens an "
        f"answer; {device_name(found.device)}, {found.threads} thread{'s' if found.threads > 1 else ''}, torch "
        f"{found.torch}."
    )
    return f"{markdown_table(COLUMNS, [cells(found)])}\n\n{how}"
