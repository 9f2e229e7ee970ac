"""Optimisers of a run, AdamW or Muon and AdamW, their groups of parameters, and how learning rates go."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from ..cmm.precision import WideParameters
from .muon import Muon


def parameter_groups(module: nn.Module, lr: float, ssm_lr: float | None, weight_decay: float) -> list[dict]:
    """The parameters that learn: matrices and convolutions with weight decay; norms, biases and other vectors without;
    those of state-space models (A, B, C, dt, ...) without, at a rate of their own. Empty groups are left out."""
    ssm = {id(p) for m in module.modules() if isinstance(m, WideParameters) for p in m.parameters()}
    learning = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) not in ssm and p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in learning if id(p) not in ssm and p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
        {"params": [p for p in learning if id(p) in ssm], "lr": lr if ssm_lr is None else ssm_lr, "weight_decay": 0.0},
    ]
    return [{**group, "peak_lr": group["lr"]} for group in groups if group["params"]]


def dense_matrices(model: PreTrainedModel) -> set[int]:
    """The ids of the weights of dense layers, without the vocabulary's: what Muon is for."""
    head = model.get_output_embeddings()
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head and m.weight.ndim == 2}


def make_optimizers(
    kind: str, groups: Sequence[dict], matrices: set[int], lr: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """Make AdamW for all groups, or, of `kind` "muon", Muon for the parameters in `matrices` and AdamW for the rest.

    Muon (arXiv 2502.16982) takes the momentum's nearest orthogonal matrix for the step: momentum 0.95, Nesterov, 5
    steps of Newton-Schulz, scaled to the RMS of AdamW's steps, so that both have one learning rate. An optimiser that
    would have no parameters is left out.
    """

    def part(of_muon: bool) -> list[dict]:
        chosen = [
            {**group, "params": [p for p in group["params"] if (kind == "muon" and id(p) in matrices) == of_muon]}
            for group in groups
        ]
        return [group for group in chosen if group["params"]]

    made: list[torch.optim.Optimizer] = []
    if others := part(of_muon=False):
        made.append(torch.optim.AdamW(others, lr=lr, betas=betas))
    if dense := part(of_muon=True):
        made.append(Muon(dense, lr=lr))
    return made


def cosine(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    """The learning rate of a step, from 0: a linear rise over `warmup` steps, then a half cosine from `peak` to `end`.

    end + (peak - end) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return end + (peak - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def set_learning_rates(groups: Iterable[dict], step: int, steps: int, warmup: int, end: float) -> float:
    """Put each group's rate of this step; returns that of the first group."""
    rates = []
    for group in groups:
        group["lr"] = cosine(step, steps, warmup, group["peak_lr"], min(end, group["peak_lr"]))
        rates.append(group["lr"])
    return rates[0]
