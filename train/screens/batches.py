"""Screens and questions about them, drawn anew for each step: the same ones for the same seed and step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...evaluate.screens.drawing import draw
from ...evaluate.screens.fonts import font_files
from ...evaluate.screens.questions import KINDS, Question, sample_question
from ...evaluate.screens.sampling import SPLITS, sample_scene
from ...evaluate.screens.scenes import Scene
from .pages import sample_page
from .reading import Labels, labels_of

# Of the generators of a seed, which one draws; those of the exam have smaller numbers.
READING, ASKED, QUESTIONS = 101, 102, 103


@dataclass
class Rows:
    """N questions with their answers, padded on the right.

    ids     [N,T] long
    text    [N,T] bool, what is no padding
    answer  [N,T] bool, the answer and the token that ends it
    scene   [N] long, which of the screens it is about
    look    [N,T,P] bool, at the token before each letter of an answer the letter's patches
    named   [N,T,P] bool, at each letter of a text of the screen that a question names the letter's patches
    """

    ids: Tensor
    text: Tensor
    answer: Tensor
    scene: Tensor
    look: Tensor
    named: Tensor


class Drawing:
    """Source of screens of `side` pixels, and of `questions` about each, tokenised.

    What is drawn depends on the seed and a number alone, so that a resumed run draws what it would have drawn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        side: int,
        patch: int,
        questions: int,
        seed: int,
        extra_fonts: Sequence[str] = (),
    ):
        self.tokenizer, self.side, self.patch, self.questions = tokenizer, side, patch, questions
        self.seed, self.extra_fonts = seed, extra_fonts
        mark = "\x00"
        chat = [{"role": "user", "content": mark}]
        template = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert isinstance(template, str)
        self.before, self.after = template.split(mark)

    def reading(self, step: int, screens: int, pages: int, chances: Mapping[str, float]) -> tuple[Tensor, Labels]:
        """Draw what is read in a step, screens of kinds with their chances and pages full of letters: their pixels
        [S,3,side,side] in -1..1, and the labels of their patches."""
        rng = np.random.default_rng((self.seed, READING, step))
        scenes = self._scenes(rng, screens, chances)
        files = (*font_files(held_out=False), *self.extra_fonts)
        scenes += [sample_page(rng, self.side, files, SPLITS["seen"].sizes[0]) for _ in range(pages)]
        return pixels_of(scenes), labels_of(scenes, self.patch)[0]

    def scenes(self, number: int, screens: int, chances: Mapping[str, float]) -> list[Scene]:
        """Make up the screens of a number, of kinds with their chances."""
        return self._scenes(np.random.default_rng((self.seed, ASKED, number)), screens, chances)

    def questions_about(self, scenes: Sequence[Scene], step: int) -> Rows:
        """Draw the questions of a step about screens."""
        rng = np.random.default_rng((self.seed, QUESTIONS, step))
        asked = [(i, one) for i, scene in enumerate(scenes) for one in ask(rng, scene, self.questions)]
        return self.rows(asked, labels_of(scenes, self.patch)[1])

    def _scenes(self, rng: np.random.Generator, screens: int, chances: Mapping[str, float]) -> list[Scene]:
        kinds, weights = list(chances), np.array(list(chances.values()))
        chosen = rng.choice(len(kinds), size=screens, p=weights / weights.sum())
        options = {"side": self.side, "extra_fonts": self.extra_fonts}
        return [sample_scene(rng, kinds[kind], SPLITS["seen"], **options) for kind in chosen]

    def rows(
        self, asked: Sequence[tuple[int, Question]], patches: Sequence[Mapping[tuple[int, int], list[int]]]
    ) -> Rows:
        """Tokenise questions, each with its screen's number, as chats of one turn with the answer."""
        end = self.tokenizer.eos_token
        encoded = self.tokenizer([self.before + one.text + self.after for _, one in asked])
        prompts = encoded.input_ids
        answers = self.tokenizer([one.answer + end for _, one in asked]).input_ids
        length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers))
        ids = np.full((len(asked), length), self.tokenizer.pad_token_id)
        look, named = np.zeros((2, *ids.shape, (self.side // self.patch) ** 2), dtype=bool)
        starts = np.array([len(prompt) for prompt in prompts])[:, None]
        for row, ((scene, one), prompt, answer) in enumerate(zip(asked, prompts, answers)):
            ids[row, : len(prompt) + len(answer)] = prompt + answer
            if one.target is not None:
                for place in range(len(one.answer)):
                    look[row, len(prompt) + place - 1, patches[scene].get((one.target, place), [])] = True
            if one.named is not None:
                text, start = one.named
                for (_, place), seen in [item for item in patches[scene].items() if item[0][0] == text]:
                    named[row, encoded.char_to_token(row, len(self.before) + start + place), seen] = True
        columns, stops = np.arange(length)[None], starts + np.array([len(answer) for answer in answers])[:, None]
        text, answered = columns < stops, (columns >= starts) & (columns < stops)
        scenes = np.array([scene for scene, _ in asked])
        return Rows(*map(torch.from_numpy, (ids, text, answered, scenes, look, named)))


def ask(rng: np.random.Generator, scene: Scene, count: int) -> list[Question]:
    """Return `count` questions about a scene, of kinds in random order, each kind again only after all others."""
    known: list[Question] = []
    while len(known) < count:
        asked = (sample_question(rng, scene, KINDS[kind]) for kind in rng.permutation(len(KINDS)))
        found = [one for one in asked if one is not None]
        if not found:
            return known
        known += found
    return known[:count]


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures of scenes as the processor normalises them, [S,3,side,side] in -1..1."""
    levels = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
