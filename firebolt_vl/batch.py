"""Many questions out of one file of JSON lines, answered into another, whatever happens in between.

Paths of images are looked for beside the file of questions. An answer is appended in one piece and on the disk before
the next rows are worked on. A row that cannot be answered is no answer: it stands in a file of its own beside the
answers, and is tried again by the next run.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .answer_files import Answer, Problem, Question, problems_of, read_questions
from .ask import check_numbers, ignore_settings
from .checkpoint import Loaded, choose_device, load, locate, quiet
from .errors import Failure, first_line
from .identity import answered_by
from .kept_views import KeptViews, View, left_padded, may_mix, side_by_side
from .parts import Joined, Output
from .prompts import prompt, room_for_answer, specials, stops
from .ranks import this_rank
from .streaming import Certainty

if TYPE_CHECKING:
    from PIL import Image

    from .evaluate.familiar import Familiar
    from .model.video import Video


@dataclass
class Done:
    questions: int
    """Those that were this process's to answer."""
    before: int
    """How many were answered by earlier runs."""
    answered: int
    bad: int
    tokens: int
    seconds: float
    problems: str
    """The file with the rows that could not be answered; it is there only where there are some."""
    part: str | None = None
    """The file with the answers of this process, where there are several."""
    joined: Joined | None = None
    """What all of them did, where this one was the last."""

    def to_dict(self) -> dict:
        return asdict(self)


def answer_file(
    questions: str,
    out: str,
    *,
    checkpoint: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    device: str = "auto",
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda problem: None,
    mixed: bool = False,
    **how,
) -> Done:
    """Answer the rows of the file `questions` that the file `out` has no answer to yet.

    With a `seed` answers are sampled, one by one, so that each is the same in whichever run it comes. `progress(done,
    total)` is called after each batch, `report` with a line "file:line: what is wrong" for each row that cannot be
    answered. Each answer says what gave it (`identity.answered_by`); a file with answers of another model or of other
    settings is refused unless `mixed`. `how` goes to `checkpoint.load`: dtype, quantize, compile_step.

    One of several processes of a launcher (`ranks.this_rank`) answers its share, into its part of the file
    (`parts.Output`); the last one joins them.

    Raises:
        Misuse, Failure: what cannot be done at all, in one line.
    """
    from .evaluate.familiar import read_familiar
    from .model.video import open_image_or_video

    check_numbers(max_new_tokens, seed)
    rank = this_rank()
    place, folder = choose_device(device, rank.local), locate(checkpoint)
    asked, bad = read_questions(questions)
    by = answered_by(folder, checkpoint, how.get("dtype", "auto"), how.get("quantize"), seed, max_new_tokens)
    with Output(questions, out, asked, bad, rank, report) as output:
        there, mine = output.check(by, mixed), output.mine()
        todo = [row for row in mine if row.key not in there]

        def refuse(rows: Iterable[Problem]) -> None:
            for row in rows:
                output.problems.add(row)
                report(f"{questions}:{row.line}: {row.error}")

        told = bad if rank.number == 0 else []
        refuse(told)
        done = Done(len(mine) + len(told), len(mine) - len(todo), 0, 0, 0, 0.0, str(problems_of(output.file.out)))
        done.part = output.file.out if output.part is not None else None
        progress(done.before, len(mine))
        if todo:
            with quiet():
                loaded = load(folder, place, **how)
                ignore_settings(loaded, seed, report)
                by["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
                output.check(by, mixed)
                start = time.perf_counter()
                base = Path(questions).parent
                familiar = read_familiar(folder)
                answering = Answering(
                    loaded, lambda name: open_image_or_video(base / name), max_new_tokens, seed, familiar
                )
                for rows in batches(todo, 1 if seed is not None else batch_size):
                    found = answering.answer(rows)
                    made = [row for row in found if isinstance(row, Answer)]
                    output.file.add(made, by)
                    refuse(row for row in found if isinstance(row, Problem))
                    done.answered += len(made)
                    done.tokens += sum(row.answer_tokens for row in made)
                    done.seconds = time.perf_counter() - start
                    progress(done.before + done.answered + output.problems.count - len(told), len(mine))
        done.bad = output.problems.count
    done.joined = output.join()
    if done.joined is not None:
        done.problems = str(output.listed)
    return done


def batches(rows: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class Answering:
    """A model at work on the rows of a file. Images are encoded once, however often they are asked about."""

    KEPT = 2**28
    """Bytes of the images that are remembered, those used last."""

    def __init__(
        self,
        loaded: Loaded,
        opened: Callable[[str], "Image.Image | Video"],
        max_new_tokens: int,
        seed: int | None = None,
        familiar: "Familiar | None" = None,
        prompted: Callable[[Question], str] | None = None,
    ):
        """`opened` opens an image or video by its name in a row; ValueError or OSError where it cannot be opened.
        `prompted` makes a row's prompt, by default the question as the user's turn, below its images; Failure where it
        cannot.
        """
        self.prompted = prompted or self._prompt_of
        self.loaded, self.opened, self.max_new_tokens, self.seed = loaded, opened, max_new_tokens, seed
        self.familiar = familiar
        self.views = KeptViews(self.KEPT)
        self.encoded = 0
        """How many images were encoded."""

    def answer(self, rows: Sequence[Question]) -> list[Answer | Problem]:
        """One answer or problem for each row, in their order."""
        problems = self._look_at(rows)
        texts = {}
        for row in rows:
            if row.line in problems:
                continue
            try:
                text = self.prompted(row)
                tokens = self.loaded.processor.tokenizer(text, **specials(self.loaded, text)).input_ids
                room_for_answer(self.loaded.model, len(tokens))
            except Failure as error:
                problems[row.line] = str(error)
                continue
            texts[row.line] = tokens
        good = [row for row in rows if row.line in texts]
        groups = [good]
        if not may_mix(self.loaded.model):
            groups = [[row for row in good if bool(row.images) == shown] for shown in (True, False)]
        found = [answer for group in groups for answer in self._together_or_one_by_one(group, texts, problems)]
        answers = {answer.asked.line: answer for answer in found}
        self.views.trim()
        return [
            answers[row.line] if row.line in answers else Problem(row.line, row.id, problems[row.line]) for row in rows
        ]

    def _prompt_of(self, row: Question) -> str:
        return prompt(self.loaded, row.question, self._count(row))

    def _count(self, row: Question) -> int:
        return sum(self.views[name].count for name in row.images)

    def _look_at(self, rows: Sequence[Question]) -> dict[int, str]:
        """Encode what is not remembered, images together, each video by itself. Returns what is wrong, by line."""
        from .model.video import Video

        problems, opened = {}, {}
        for row in rows:
            for name in row.images:
                if name not in self.views and name not in opened:
                    try:
                        opened[name] = self.opened(name)
                    except (ValueError, OSError) as error:  # not there, or not an image
                        problems[row.line] = first_line(error)
        # A second row with the same bad image is as bad: it was tried again above, with the same result.
        images = {name: one for name, one in opened.items() if not isinstance(one, Video)}
        for together in ([images] if images else []) + [{n: one} for n, one in opened.items() if n not in images]:
            self._encode(together)
        return problems

    def _encode(self, opened: "dict[str, Image.Image | Video]") -> None:
        """Encode images, or a video, in one call, and remember them."""
        import torch

        from .model.video import Video

        inputs = self.loaded.processor.image_processor([[one] for one in opened.values()], return_tensors="pt")
        with torch.no_grad():
            seen = self.loaded.model.get_grids(**inputs.to(self.loaded.model.device))
        self.encoded += len(opened)
        for row, (name, one) in enumerate(opened.items()):
            doubts = []
            if self.familiar is not None:
                frames = one.frames if isinstance(one, Video) else [one]
                doubts = [doubt for frame in frames for doubt in self.familiar.doubts_of_image(frame)]
            self.views.keep(name, View.of(seen, row, list(dict.fromkeys(doubts))))

    def _together_or_one_by_one(
        self, rows: Sequence[Question], texts: dict[int, list[int]], problems: dict[int, str]
    ) -> list[Answer]:
        """Answer in one batch, or, where that is too much for the memory or for the positions, each row alone."""
        if not rows:
            return []
        longest = max(len(texts[row.line]) for row in rows)
        fits = room_for_answer(self.loaded.model, longest) >= self.max_new_tokens
        if fits or len(rows) == 1:
            try:
                return self._generate(rows, [texts[row.line] for row in rows])
            except (RuntimeError, MemoryError, ValueError) as error:
                if len(rows) == 1:
                    problems[rows[0].line] = f"the model could not answer: {first_line(error)}"
                    return []
        return [
            answer
            for row in rows
            for answer in self._together_or_one_by_one([row], {row.line: texts[row.line]}, problems)
        ]

    def _generate(self, rows: Sequence[Question], texts: Sequence[list[int]]) -> list[Answer]:
        import torch
        from transformers import LogitsProcessorList

        from .model.generation import settings_for

        model, certainty = self.loaded.model, Certainty()
        ids, mask = left_padded(texts, model.generation_config.pad_token_id)
        width = ids.shape[1]
        if self.seed is not None:
            torch.manual_seed((self.seed + rows[0].line) % 2**64)
        sequences = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            **side_by_side([[self.views[name] for name in row.images] for row in rows]),
            generation_config=settings_for(model, min(self.max_new_tokens, room_for_answer(model, width))),
            logits_processor=LogitsProcessorList([certainty]),
        )
        answers, ends = sequences[:, width:], stops(model)
        counts = [
            next((number for number, token in enumerate(tokens, 1) if token in ends), len(tokens))
            for tokens in answers.tolist()
        ]
        sure = certainty.of(answers, counts)
        found = zip(rows, map(len, texts), answers.tolist(), counts, sure)
        return [
            self._read(row, length, tokens[:count], probability) for row, length, tokens, count, probability in found
        ]

    def _read(self, row: Question, prompt_tokens: int, tokens: list[int], probability: float) -> Answer:
        text = self.loaded.processor.decode(tokens, skip_special_tokens=True).strip()
        complete = tokens[-1] in stops(self.loaded.model)
        return Answer(row, text, complete, prompt_tokens, len(tokens), probability, self._doubts(row))

    def _doubts(self, row: Question) -> list[str] | None:
        if self.familiar is None:
            return None
        of_images = [doubt for name in row.images for doubt in self.views[name].doubts]
        number = self.familiar.doubts_of_number(self._count(row))
        of_all = [*self.familiar.doubts_of_question(row.question), *number]
        return list(dict.fromkeys([*of_all, *of_images]))
