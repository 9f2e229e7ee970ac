"""The reward of grounding: how much of what an answer rests on lies inside a box of the image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...evaluate.metrics.grounding import fit


def grounding_shares(
    model,
    inputs: dict[str, Tensor],
    answers: Tensor,
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Sequence[float]],
) -> list[float]:
    """Compute, for each row, the share of the answer's effect that lies inside the row's box, 0 to 1.

    A grid's effect is the drop of log p(answer) when it is masked (`ground`, method "occlusion"); only positive ones
    count, and each is spread evenly over the grid's box (docs/mathematics.md, 8.3). 0 where nothing has an
    effect; an even effect gives the box's share of the image.

    inputs: those of the model for N rows, padded on the left; answers [N,A]: the ids, padded on the right; sizes: each
    image's height and width; boxes: (y0, x0, y1, x1) in pixels.
    """
    training = model.training
    model.eval()
    try:
        found = model.ground(**inputs, method="occlusion", answer_ids=answers, image_sizes=torch.tensor(list(sizes)))
    finally:
        model.train(training)
    shares = []
    for row, box in enumerate(boxes):
        there = found.grid_mask[row]
        shares.append(fit(found.boxes[row][there].tolist(), found.effects[row][there].tolist(), box).inside)
    return shares
