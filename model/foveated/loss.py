"""Next-token losses over rows whose columns are not all kept, and the preference loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def previous_kept(kept: Tensor) -> Tensor:
    """Find the nearest kept column before each column of kept [B,N] bool: [B,N]; -1 where there is none."""
    columns = torch.arange(kept.shape[1], device=kept.device)
    last = torch.where(kept, columns, -1).cummax(dim=1).values
    return F.pad(last[:, :-1], (1, 0), value=-1)


def next_token_loss(
    logits: Tensor, labels: Tensor, counted: Tensor | None = None, kept: Tensor | None = None
) -> tuple[Tensor, int | Tensor]:
    """Sum the cross-entropies of the counted labels, each predicted at the nearest kept column before it.

    logits [B,N,V]; labels [B,N]; counted [B,N], not 0 where a label counts (default: everywhere); kept [B,N] bool, the
    columns that are there (default: all): what is not kept neither predicts nor counts. The first column of a row has
    nothing to be predicted from. Returns the sum, and how many labels were counted: in a graph, which cannot count them
    before it runs, a tensor.
    """
    counted = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted != 0
    if kept is None:
        before = torch.arange(-1, labels.shape[1] - 1, device=labels.device).expand_as(labels)
    else:
        before, counted = previous_kept(kept), counted & kept
    if torch.compiler.is_compiling():
        counted = counted & (before >= 0)
        chosen = logits.gather(1, before.clamp(min=0)[..., None].expand_as(logits))
        chosen = chosen.float() if chosen.dtype.itemsize < 4 else chosen
        losses = F.cross_entropy(chosen.flatten(0, 1), labels.flatten(), reduction="none")
        return torch.where(counted.flatten(), losses, 0).sum(), counted.sum()
    rows, columns = (counted & (before >= 0)).nonzero(as_tuple=True)
    return _summed(logits[rows, before[rows, columns]], labels[rows, columns])


def cross_entropies(logits: Tensor, labels: Tensor, ignored: int = -100) -> tuple[Tensor, int]:
    """Sum the cross-entropies of logits [B,N,V] with labels [B,N] that are those of the next tokens already.

    Labels that are `ignored` do not count. Returns the sum, and how many labels were counted.
    """
    counted = labels != ignored
    return _summed(logits[counted], labels[counted])


def _summed(chosen: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Sum the cross-entropies of logits [n,V] with labels [n], in float32 or wider, and count them."""
    chosen = chosen.float() if chosen.dtype.itemsize < 4 else chosen
    return F.cross_entropy(chosen, labels, reduction="sum"), len(labels)


def sequence_log_probabilities(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute log p of a text, [B]: sum over columns i >= 1 of mask_i log softmax(logits_{i-1})[ids_i].

    logits [B,S,V]; ids [B,S]; mask [B,S], a weight on each label. The first token is never a label.
    """
    chosen = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (chosen * mask[:, 1:].to(chosen.dtype)).sum(-1)


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    reduce: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of direct preference optimisation (arXiv 2305.18290, equation 7).

    r = beta (policy - reference) for the chosen and the rejected answer, of log-probabilities [B] of whole answers;
    loss = mean of -log sigmoid(r_c - r_r).
    Returns the loss (without `reduce` that of each pair, [B]) and both rewards r [B].
    """
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    losses = -F.logsigmoid(chosen - rejected)
    return losses.mean() if reduce else losses, chosen.detach(), rejected.detach()
