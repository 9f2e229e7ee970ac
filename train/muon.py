"""Muon, whose steps of Newton-Schulz a CPU takes in float32, for all matrices of a shape at once."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """Muon with steps of AdamW's size (K. Jordan, 2024; J. Liu et al., arXiv 2502.16982), as `torch.optim.Muon` has it:

        B <- m B + (1 - m) G,    X = (1 - m) G + m B,    W <- (1 - lr * weight_decay) W - 0.2 sqrt(max(R, C)) lr NS(X)

    for weights W [R,C] with gradient G and momentum B, m = 0.95, where NS(X) brings the singular values of
    X / |X| (Frobenius) near to one by five steps

        X <- a X + (b A + c A A) X,    A = X X^T,    (a, b, c) = (3.4445, -4.7750, 2.0315).

    `torch.optim.Muon` takes these five in bfloat16 and one matrix after the other. CPUs without instructions for
    bfloat16 take many times as long for it, and small matrices cost calls more than products. So on a CPU they are
    taken in float32, for all matrices of a shape in one product. On other devices, and of weights in shards, the step
    is that of `torch.optim.Muon`.

    Args:
        params: matrices, or groups of them with `lr` and `weight_decay` of their own.
        lr: the learning rate.
        weight_decay: the decoupled weight decay, times the learning rate.

    Raises:
        ValueError: a parameter is no matrix, or a rate is negative.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.1):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step down the gradients; returns what `closure` does, if it is given, which makes them."""
        learning = [p for group in self.param_groups for p in group["params"]]
        if any(p.device.type != "cpu" or type(p) not in (Tensor, torch.nn.Parameter) for p in learning):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p.grad)
            buffer = state["momentum_buffer"]
            buffer.lerp_(p.grad, 1 - momentum)
            update = p.grad.lerp(buffer, momentum).float()
            wide = update if p.shape[0] <= p.shape[1] else update.mT
            alike.setdefault((min(p.shape), max(p.shape)), []).append((p, wide))
        for (_, longest), members in alike.items():
            stacked = torch.stack([wide for _, wide in members])
            updates = orthogonalised(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for (p, wide), update in zip(members, updates):
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update if wide.shape == p.shape else update.mT, alpha=-0.2 * math.sqrt(longest) * lr)


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Take steps of Newton-Schulz towards the nearest matrices with orthonormal rows, for x [N,R,C] with R <= C."""
    a, b, c = coefficients
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
