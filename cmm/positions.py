"""Positions of grids: a box of the image, the number of the image in its row, and when a frame was to be seen."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.checks import check_integer
from .linear import in_dtype_of, product

# Angular frequencies. Centres lie in 0..1: half a period of the highest is one 32nd of the image, a patch's side.
CENTRE_FREQUENCIES = tuple(math.pi * 2**j for j in range(6))
# log2 of a side lies in -8..0 for sides down to 1/256, which is half a period of the lowest.
SIZE_FREQUENCIES = tuple(math.pi / 8 * 2**j for j in range(3))
SMALLEST_SIDE = 2.0**-8
# Keeps the gradient of the RMS finite for a grid that is zero, as masked ones are.
SMALLEST_SQUARE = 1e-12
# Image numbers repeat after 32.
IMAGE_FREQUENCIES = tuple(math.pi / 16 * 2**j for j in range(4))
# Of seconds. Half a period of the highest is a quarter of a second, of the lowest over two hours.
TIME_FREQUENCIES = tuple(math.pi * 2.0 ** (2 - j) for j in range(16))


def default_boxes(grids: int, device: torch.device | None = None) -> Tensor:
    """Boxes [G,4] (y0, x0, y1, x1 in 0..1) of the standard tiling: the global view, then n x n tiles in reading order.

    Raises ValueError if grids - 1 is not a square: then only the caller knows where they lie.
    """
    n = 0
    while n * n < grids - 1:  # not math.isqrt, which torch.compile cannot take of a number that varies between calls
        n += 1
    if grids < 1 or n * n != grids - 1:
        raise ValueError(
            f"default_boxes: grid_boxes is None with {grids} grids; expected boxes [B, {grids}, 4]. Only a global view "
            "and n x n tiles (2, 5, 10, 17 ... grids) have default boxes; firebolt_vl.cmm.patch_boxes(rows, columns) "
            "makes those of an image in patches"
        )
    tiles = patch_boxes(n, device=device)
    # Made on the device, here and below: a copy from the host cannot be captured into a CUDA graph.
    return torch.cat([F.pad(tiles.new_zeros(1, 2), (0, 2), value=1.0), tiles])


def patch_boxes(rows: int, columns: int | None = None, device: torch.device | None = None) -> Tensor:
    """Boxes [rows columns,4] of an image's patches in reading order, y0, x0, y1, x1 in 0..1; columns None: as many.

    What `grid_boxes` is where the grids are a vision tower's features of rows x columns patches, 14 x 14 for example:
    patch_boxes(14).expand(B, -1, -1). Raises TypeError or ValueError where they are no numbers of patches.
    """
    columns = rows if columns is None else columns
    for name, number in (("rows", rows), ("columns", columns)):
        check_integer("patch_boxes", name, number, at_least=0)
    y0, x0 = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device) / max(rows, 1),
        torch.arange(columns, dtype=torch.float32, device=device) / max(columns, 1),
        indexing="ij",
    )
    return torch.stack([y0, x0, y0 + 1 / max(rows, 1), x0 + 1 / max(columns, 1)], -1).reshape(-1, 4)


def _waves(values: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """[..., C] -> sin and cos of every frequency times every channel, [..., 2 C len(frequencies)]."""
    angles = torch.stack([values * frequency for frequency in frequencies], -1)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def box_features(boxes: Tensor) -> Tensor:
    """Fourier features of centre and log2 of the sides of boxes [..., 4]; their squares sum to half their number."""
    y0, x0, y1, x1 = boxes.unbind(-1)
    centres = torch.stack([y0 + y1, x0 + x1], -1) / 2
    sides = torch.stack([y1 - y0, x1 - x0], -1).clamp(min=SMALLEST_SIDE).log2()
    return torch.cat([_waves(centres, CENTRE_FREQUENCIES), _waves(sides, SIZE_FREQUENCIES)], -1)


def features_from_zero(values: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """Fourier features of values [...] less those of 0, [..., 2 len(frequencies)]: any linear map is zero at 0."""
    values = values.unsqueeze(-1)
    return _waves(values, frequencies) - _waves(torch.zeros_like(values), frequencies)


class GridPositions(nn.Module):
    """Adds to each grid a linear map of where it lies, and when, at the scale of the grid's own features.

        x + rms(x) (W f(box) + W' f'(image number) + W'' f''(seconds))

    The last term is there with `times`; without, `forward` takes no notice of them. W starts so that W f has an RMS of
    1 for any box: positions that start near zero do not come to be used. The map is the same for every tiling, and no
    grid depends on another.
    """

    def __init__(self, width: int, times: bool = False):
        super().__init__()
        self.box = nn.Linear(4 * len(CENTRE_FREQUENCIES) + 4 * len(SIZE_FREQUENCIES), width, bias=False)
        self.image = nn.Linear(2 * len(IMAGE_FREQUENCIES), width, bias=False)
        self.time = nn.Linear(2 * len(TIME_FREQUENCIES), width, bias=False) if times else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.box, self.image, self.time):
            if linear is not None:
                nn.init.normal_(linear.weight, std=(linear.in_features / 2) ** -0.5)

    def forward(
        self, grids: Tensor, boxes: Tensor, images: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """grids [B,G,D_v], boxes [B,G,4], images [B,G] (None: all 0), times [B,G] in seconds (None: all 0)

        -> [B,G,D_v].
        """
        # Angles are taken in float32 or wider: a half-precision coordinate times the highest frequency is off by 2 %.
        wide = torch.promote_types(grids.dtype, torch.float32)
        position = product(self.box, in_dtype_of(self.box, box_features(boxes.to(wide)), grids.dtype))
        parts = [(self.image, images, IMAGE_FREQUENCIES)]
        if self.time is not None:
            parts.append((self.time, times, TIME_FREQUENCIES))
        for linear, values, frequencies in parts:
            # 0 adds nothing, but in training is not left out: a parameter without a gradient stops distributed runs.
            if values is None and torch.is_grad_enabled():
                values = torch.zeros_like(boxes[..., 0])
            if values is not None:
                features = in_dtype_of(linear, features_from_zero(values.to(wide), frequencies), grids.dtype)
                position = position + product(linear, features)
        scale = (grids.to(wide).square().mean(-1, keepdim=True) + SMALLEST_SQUARE).sqrt()
        return grids + (scale * position).to(grids.dtype)
