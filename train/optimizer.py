"""AdamW in three groups, and how its learning rates go."""

import math

import torch
from torch import nn

from ..cmm.precision import WideParameters


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


def cosine(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    """The learning rate of a step, from 0: a linear rise over `warmup` steps, then a half cosine from `peak` to `end`.

    end + (peak - end) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return end + (peak - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int, end: float) -> float:
    """Put each group's rate of this step; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = cosine(step, steps, warmup, group["peak_lr"], min(end, group["peak_lr"]))
    return optimizer.param_groups[0]["lr"]
