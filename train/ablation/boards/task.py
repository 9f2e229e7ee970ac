"""Common ground of all runs on boards: settings, the frozen tower, the exam, and the data of each step."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from ....files.writing import write_whole
from ...tensors import read_about, read_tensors, write_tensors
from .questions import FIRST_KINDS, KINDS, Questions, ask
from .scenes import CELLS, CELLS_A_SIDE, FILLED, REPEATED, SINGLE, Boards, draw_boards, sample_boards
from .tower import TILES_A_SIDE, VIEWS, VISION, encode, pretrain

EXAM_SEED = 12
# A step's data comes of the run's seed and the step alone, and of nothing that a variant does.
STEP_SEEDS = 1_000_003
TOWER_STEPS = "steps"


@dataclass(frozen=True)
class Settings:
    """Settings that a row of results belongs to: with another number runs are done anew.

    The learning rates are those of `Optimizers`: of matrices and of all else, which rise over `warmup` steps and fall
    over the last `decay` of all steps. In the first `first_steps` only FIRST_KINDS are asked.
    """

    steps: int = 1600
    first_steps: int = 500
    boards: int = 64
    questions_a_board: int = 2
    matrix_lr: float = 0.01
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.5
    exam_boards: int = 1600
    tower_steps: int = 1500

    @classmethod
    def quick(cls) -> "Settings":
        """Enough to see every part work, not to see anything in its numbers."""
        return cls(steps=10, first_steps=5, boards=8, exam_boards=8, tower_steps=5)

    def to_dict(self) -> dict:
        """Return the settings with what a board is and which kinds of question there are."""
        board = {"cells": CELLS, "once": SINGLE, "repeated": REPEATED, "filled": list(FILLED)}
        return {**asdict(self), "board": board, "kinds": list(KINDS)}


@dataclass(frozen=True)
class Asked:
    """Questions about boards: `grids` [N,G,D_v], of each question's board, and which cells each grid shows, `shown`
    [G,16] bool."""

    grids: Tensor
    questions: Questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, chosen: Tensor | slice) -> "Asked":
        return Asked(self.grids[chosen], self.questions[chosen])


def shown(grids: str) -> Tensor:
    """[G,16] bool: the cells that each grid shows for itself; the view of the whole board shows none."""
    cells = torch.eye(CELLS, dtype=torch.bool)
    row, column = torch.arange(CELLS) // CELLS_A_SIDE, torch.arange(CELLS) % CELLS_A_SIDE
    side = CELLS_A_SIDE // TILES_A_SIDE
    tile = TILES_A_SIDE * (row // side) + column // side
    views = torch.zeros(VIEWS, CELLS, dtype=torch.bool)
    views[1:] = tile == torch.arange(TILES_A_SIDE**2)[:, None]
    return {"patches": cells, "views": views, "both": torch.cat([views, cells])}[grids]


@dataclass
class Task:
    settings: Settings
    tower: SiglipVisionModel

    def batch(self, seed: int, step: int, grids: str) -> Asked:
        """The questions of a step, which are the same for every variant."""
        generator = torch.Generator().manual_seed(STEP_SEEDS * (seed + 1) + step)
        boards = sample_boards(self.settings.boards, "train", generator)
        seen = encode(self.tower, draw_boards(boards, generator), grids)
        times = self.settings.questions_a_board
        asked = FIRST_KINDS if step < self.settings.first_steps else KINDS
        kinds = torch.randint(len(asked), (times * len(boards),), generator=generator)
        return Asked(seen.repeat(times, 1, 1), ask(repeated(boards, times), kinds, generator))

    @cached_property
    def exam_boards(self) -> tuple[Tensor, Questions]:
        """Images of boards of held-out handwriting, and a question of each kind about each, kind by kind."""
        generator = torch.Generator().manual_seed(EXAM_SEED)
        boards = sample_boards(self.settings.exam_boards, "held-out", generator)
        images = draw_boards(boards, generator)
        kinds = torch.arange(len(KINDS)).repeat_interleave(len(boards))
        return images, ask(repeated(boards, len(KINDS)), kinds, generator)

    def exam(self, grids: str) -> Asked:
        images, questions = self.exam_boards
        seen = torch.cat([encode(self.tower, part, grids) for part in images.split(100)])
        return Asked(seen.repeat(len(KINDS), 1, 1), questions)


def repeated(boards: Boards, times: int) -> Boards:
    return Boards(*(x.repeat(times, 1) for x in (boards.digits, boards.colours, boards.written)))


def keep_tower(file: Path, steps: int) -> None:
    """Pretrain the tower and write it to a file, unless the file has that of so many steps."""
    try:
        if read_about(file).get(TOWER_STEPS) == str(steps):
            return
    except ValueError:  # none, or damaged
        pass
    kept = pretrain(steps).state_dict()
    write_whole(file, lambda temporary: write_tensors(temporary, kept, {TOWER_STEPS: str(steps)}))


def load_task(file: Path, settings: Settings) -> Task:
    """The task with the tower that `keep_tower` kept. Raises ValueError where the file is something else."""
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION))
    try:
        tower.load_state_dict(read_tensors(file))
    except RuntimeError:
        raise ValueError(f"{file} has other tensors than the vision tower of the boards") from None
    return Task(settings, tower.eval().requires_grad_(False))
