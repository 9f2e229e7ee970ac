"""Hooks of `generate` that give each row of a batch its own choice of tokens, its own end, and its listener."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .row import Row


class Choosing:
    """A logits processor: keeps the log-probabilities of a step, and leaves a sampled row only the token it draws."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.last = torch.log_softmax(scores.float(), dim=-1)
        drawn = {
            number: row.asked.sampler.choose(input_ids[number : number + 1], scores[number : number + 1])
            for number, row in enumerate(self.rows)
            if row.asked.sampler is not None and not row.over
        }
        if drawn:
            scores = scores.clone()
            for number, token in drawn.items():
                scores[number] = -torch.inf
                scores[number, token] = 0
        return scores

    def log_probabilities(self, tokens: Tensor) -> list[float]:
        return self.last.gather(1, tokens[:, None].to(self.last.device))[:, 0].tolist()


class Following:
    """A stopping criterion: hands every row its token, and ends rows one by one, those without a client too."""

    def __init__(self, rows: Sequence[Row], choosing: Choosing, ends: Sequence[int]):
        self.rows, self.choosing, self.ends = rows, choosing, ends

    def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:
        tokens = input_ids[:, -1]
        for row, token, sure in zip(self.rows, tokens.tolist(), self.choosing.log_probabilities(tokens)):
            if not row.over:
                row.put(token, sure, self.ends)
        return torch.tensor([row.over for row in self.rows], device=input_ids.device)
