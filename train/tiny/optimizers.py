"""Muon for the matrices, AdamW for all else, under one schedule."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from ..loop import agreed
from ..muon import Muon


class Optimizers:
    """One optimiser of two: Muon on 2-D weights, AdamW on embeddings, convolutions, vectors and the SSM's parameters.

    From scratch in minutes this learns in about half the steps of AdamW alone (tried on both stages). Both learning
    rates rise over `warmup` steps, stay, and fall linearly to nearly nothing over the last `decay` of all steps.
    Weight decay is for matrices and convolutions: none on norms, biases and SSM parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        steps: int,
        *,
        matrix_lr: float,
        lr: float,
        weight_decay: float,
        decay: float,
        warmup: int = 100,
        is_matrix: Callable[[str], bool] = lambda name: True,
    ):
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and is_matrix(name)]
        taken = {id(p) for p in matrices}
        rest = [(name, p) for name, p in named if id(p) not in taken]
        decayed = [p for name, p in rest if p.ndim > 1 and is_matrix(name)]
        kept = [p for name, p in rest if not (p.ndim > 1 and is_matrix(name))]
        self.parameters = [p for _, p in named]
        self.parts = (
            Muon(matrices, lr=matrix_lr, weight_decay=weight_decay),
            torch.optim.AdamW(
                [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}],
                lr=lr,
                betas=(0.9, 0.98),
            ),
        )
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.steps, self.warmup, self.decay = steps, warmup, decay

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.parts = [accelerator.prepare(part) for part in self.parts]

    def share(self, number: int) -> float:
        """Compute the share of the learning rates at a step from 0."""
        return min(1.0, (number + 1) / self.warmup, (1 - number / self.steps) / self.decay + 0.01)

    def step(self, loss: torch.Tensor, number: int) -> bool:
        """Step `number`, from 0, down the gradient of the loss, which is clipped at norm 1.

        Whether it was done: nothing changes where loss or gradient are not finite.
        """
        for part in self.parts:
            part.zero_grad()
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not all(map(math.isfinite, agreed(self.accelerator, loss, norm))):
            return False
        for part, peaks in zip(self.parts, self.peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = peak * self.share(number)
            part.step()
        return True
