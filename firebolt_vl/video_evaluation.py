"""A foveated model that is examined: it watches each video of a benchmark and answers, in words and by loss."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from .errors import Failure, Misuse, first_line
from .evaluate.benchmarks import CHOSEN
from .evaluate.items import Item
from .evaluate.rows import is_hub_id
from .evaluation import Asking, Examinee
from .files.problems import BadRow
from .streaming import TokenClock
from .watch import generate, inputs_of, load_foveated, open_source

if TYPE_CHECKING:
    from transformers import BatchFeature

    from .checkpoint import Loaded
    from .model.foveated import VisualTokens

REMEMBERED = 16
"""Videos whose visual tokens are kept: questions about one are near each other in their files."""


def root_of(given: str | None, source: str) -> Path:
    """The folder of the videos: the one that is given, or that of the data. Raises Misuse."""
    path = Path(source)
    if given is None:
        if is_hub_id(source):
            raise Misuse(f"--video-root is missing; expected the folder of the videos, since --data is {source}, an id")
        return path if path.is_dir() else path.parent
    if not Path(given).is_dir():
        raise Misuse(f"--video-root is {given}, which is no folder; expected that of the videos")
    return Path(given)


class VideoExaminee(Examinee):
    """A foveated model to be examined."""

    def __init__(self, root: Path, frames: int | None, **model):
        """`root` is the folder of the videos, `frames` how many of each are shown; `model` as `Examinee` has it."""
        super().__init__(**model)
        self.root, self.frames = root, frames
        self.by["frames"] = frames

    def _load(self) -> "Loaded":
        return load_foveated(self.folder, self.place)

    def asking(self, report: Callable[[str], None]) -> "Watching":
        return Watching(self.loaded(report), self.max_new_tokens, self.root, self.frames)


class Watching(Asking):
    """A foveated model that is asked items, one video at a time."""

    def __init__(self, loaded: "Loaded", max_new_tokens: int, root: Path, frames: int | None):
        self.loaded, self.max_new_tokens, self.root, self.frames = loaded, max_new_tokens, root, frames
        self.watched = 0
        self.seen: OrderedDict[str, VisualTokens] = OrderedDict()
        """Those of the videos that were asked about last."""

    @property
    def encoded(self) -> int:
        """Number of videos that were looked at."""
        return self.watched

    def ask(self, items: Sequence[tuple[int, Item]]) -> list[tuple[int, Item, str | BadRow, float]]:
        """The answer to each item, whose `about` also gets the letter that is chosen by loss; or why there is none."""
        found = []
        for place, item in items:
            start = time.perf_counter()
            try:
                got, chosen = self._watch(item)
            except (Failure, RuntimeError, ValueError, MemoryError) as error:
                found.append((place, item, BadRow("not answered", first_line(error)), 0.0))
                continue
            about = {**item.about, CHOSEN: ascii_uppercase[chosen]}
            found.append((place, item._replace(about=about), got, time.perf_counter() - start))
        return found

    def _watch(self, item: Item) -> tuple[str, int]:
        """The answer in words, and the number of the option with the lowest mean cross-entropy, after one look."""
        from .evaluate.choices import choose

        model, processor = self.loaded.model, self.loaded.processor
        inputs, visual = self._look(str(item.video), item.question)
        tokens = generate(model, inputs, visual, self.max_new_tokens, None, TokenClock())
        chosen, _ = choose(model, processor, item.bare, item.options, visual=visual)
        return processor.decode(tokens, skip_special_tokens=True).strip(), chosen

    def _look(self, video: str, question: str) -> "tuple[BatchFeature, VisualTokens]":
        """The inputs of a question, and the visual tokens of its video, which is looked at unless it was lately."""
        import torch

        if video in self.seen:
            self.seen.move_to_end(video)
            visual = self.seen[video]
            return inputs_of(self.loaded, None, question, looked_at=visual.tokens.shape[1]), visual
        inputs = inputs_of(self.loaded, open_source(str(self.root / video), self.frames), question)
        with torch.no_grad():
            visual = self.loaded.model.get_visual_tokens(inputs["frames"], inputs["frame_mask"])
        self.watched += 1
        self.seen[video] = visual
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return inputs, visual
