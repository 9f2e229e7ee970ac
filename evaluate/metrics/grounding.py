"""Scores of a grounding: how well what an answer rests on, a value for each view of an image, fits a box.

A view of value v spreads v evenly over its own box; the heat of a point is the sum over the views that show it.
Negative values count as 0. Boxes are (y0, x0, y1, x1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = (0.25, 0.5, 0.75)
"""Shares of the highest heat from which on a point belongs to the region that is compared with the box."""


class Fit(NamedTuple):
    """The scores of one grounding, each 0 to 1."""

    pointing: float
    """1 where the heat is highest at the centre of the box."""
    chance: float
    """The share of the views' area where the heat is highest: how often a random point would be there."""
    inside: float
    """The share of the heat that is inside the box; that of an even heat is the box's share of the image."""
    iou: dict[float, float]
    """Intersection over union of the box and the region of each threshold."""


def fit(boxes: Sequence[Sequence[float]], values: Sequence[float], box: Sequence[float]) -> Fit:
    """Compare a grounding with a box: `boxes` of the views, their `values`, and the `box` that should be found.

    Without a positive value nothing is pointed at, and all scores are 0. Source of pointing: J. Zhang et al., Top-down
    Neural Attention by Excitation Backprop (arXiv 1608.00507), section 4.1.

    Raises ValueError for boxes of no area and for another number of values than of boxes.
    """
    if len(boxes) != len(values) or not len(boxes):
        raise ValueError(f"fit: boxes and values have {len(boxes)} and {len(values)}; expected as many, one or more")
    views, target = np.asarray(boxes, float).reshape(-1, 4), np.asarray(box, float).reshape(4)
    areas = _area(views)
    if not (areas > 0).all() or not _area(target) > 0:
        raise ValueError("fit: boxes has one without an area; expected y0 < y1 and x0 < x1")
    density = np.maximum(np.asarray(values, float), 0) / areas
    if not density.any():
        return Fit(0.0, 0.0, 0.0, dict.fromkeys(THRESHOLDS, 0.0))
    # Between two neighbouring edges of boxes the heat is the same everywhere.
    rows, columns = (np.unique(np.append(views[:, [i, i + 2]], target[[i, i + 2]])) for i in (0, 1))
    y, x = (edges[:-1] + np.diff(edges) / 2 for edges in (rows, columns))
    shown = _between(y, views[:, 0], views[:, 2])[:, :, None] & _between(x, views[:, 1], views[:, 3])[:, None, :]
    heat = np.tensordot(density, shown, 1)
    cells = np.outer(np.diff(rows), np.diff(columns))
    in_box = _between(y, target[0], target[2])[:, None] & _between(x, target[1], target[3])[None, :]
    centre = (target[:2] + target[2:]) / 2
    at_centre = density[(views[:, :2] <= centre).all(1) & (centre < views[:, 2:]).all(1)].sum()
    hottest = heat >= heat.max() * (1 - 1e-9)
    regions = {threshold: heat >= threshold * heat.max() for threshold in THRESHOLDS}
    return Fit(
        pointing=float(at_centre >= heat.max() * (1 - 1e-9)),
        chance=float(cells[hottest].sum() / cells[shown.any(0)].sum()),
        inside=float((heat * cells)[in_box].sum() / (heat * cells).sum()),
        iou={
            threshold: float(cells[region & in_box].sum() / cells[region | in_box].sum())
            for threshold, region in regions.items()
        },
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    height, width = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return np.where((height > 0) & (width > 0), height * width, 0.0)


def _between(points: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Tell which points lie between two edges: [points] for numbers, [edges, points] for arrays of them."""
    first, last = (np.asarray(edge)[..., None] for edge in (first, last))
    return (first < points) & (points < last)
