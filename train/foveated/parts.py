"""Parts of the three stages in the foveated model's training: groups of parameters, their rates, and preferences."""

import math

import torch
from torch import Tensor, nn

from ...model import FoveatedVLM
from ...model.foveated import preference_loss, sequence_log_probabilities


def parameter_groups(model: FoveatedVLM) -> dict[str, list[nn.Parameter]]:
    """The parameters of the vision tower ("dino"), of the decoder ("llm"), and of what connects them ("connector").

    The encoder's output projection connects too: the original, by a slip, trains it at the tower's rate.
    """
    groups: dict[str, list[nn.Parameter]] = {"connector": [], "dino": [], "llm": []}
    for name, parameter in model.named_parameters():
        tower = name.startswith("encoder.dino.")
        groups["dino" if tower else "llm" if name.startswith("llm.") else "connector"].append(parameter)
    return groups


def rate(step: int, warmup: int, total: int, base: float, end: float) -> float:
    """The learning rate in force at a step, from 0: a linear rise from 0 over `warmup` steps to `base`, half a cosine
    from there to `end`, which it keeps from step `total` on.

    end + (base - end) (1 + cos(pi (step - warmup) / (total - warmup))) / 2

    Stage 1 gives each group an end of its own, where they meet (`end` above `base` rises); with `end` = `base` the rate
    is constant after the warm-up.
    """
    if step < warmup:
        return base * step / warmup
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    return end + (base - end) * (1 + math.cos(math.pi * share)) / 2


def preference_losses(
    model: FoveatedVLM,
    reference: FoveatedVLM,
    chosen: dict[str, Tensor],
    rejected: dict[str, Tensor],
    frames: Tensor | None = None,
    frame_mask: Tensor | None = None,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stage 3, in mode `coarse_fine`: the preference loss [B] of each pair, and the rewards [B] of both answers.

    chosen, rejected: input_ids, attention_mask and loss_mask [B,S] of prompt and answer, 1 in loss_mask on the answer's
    tokens. Both are read with the visual tokens of one look. `reference` is a copy of the model before this stage.
    """

    def of(judge: FoveatedVLM) -> list[Tensor]:
        shown = {"mode": "coarse_fine", "use_cache": False}
        if frames is not None:
            visual = judge.get_visual_tokens(frames, frame_mask, "coarse_fine")
            shown |= {"visual_tokens": visual.tokens, "visual_mask": visual.mask}
        found = []
        for text in (chosen, rejected):
            logits = judge(text["input_ids"], text["attention_mask"], **shown).logits
            found.append(sequence_log_probabilities(logits.float(), text["input_ids"], text["loss_mask"]))
        return found

    with torch.no_grad():
        as_before = of(reference)
    return preference_loss(*of(model), *as_before, beta=beta, reduce=False)


def preference_step(
    model: FoveatedVLM,
    reference: FoveatedVLM,
    frames: Tensor,
    chosen: dict[str, Tensor],
    rejected: dict[str, Tensor],
    frame_mask: Tensor | None = None,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of `preference_losses`, and the rewards [B] of both answers."""
    losses, *rewards = preference_losses(model, reference, chosen, rejected, frames, frame_mask, beta)
    return losses.mean(), *rewards
