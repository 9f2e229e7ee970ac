"""Rows of a batch as the model takes them: encoded images, remembered and side by side, and prompts padded."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from .model.firebolt.grids import Grids


class View(NamedTuple):
    """One image or video as the connector takes it: grids [G,D_v] and their boxes [G,4]; and what is strange about it.

    images [G] int64, which image of it each grid is of, and times [G], their seconds: all 0 for an image. It counts as
    `count` images: a video that the model cannot tell as such as several.
    """

    features: "Tensor"
    boxes: "Tensor"
    images: "Tensor"
    times: "Tensor"
    count: int
    doubts: list[str]

    @classmethod
    def of(cls, seen: "Grids", row: int, doubts: list[str]) -> "View":
        """The view of the one image or video of a row."""
        mask = seen.mask[row]
        features = seen.features[row][mask]
        images = mask.new_zeros(len(features)).long() if seen.images is None else seen.images[row][mask]
        times = images.float() * 0 if seen.times is None else seen.times[row][mask].float()
        assert seen.boxes is not None  # of an image processor
        return cls(features, seen.boxes[row][mask], images, times, int(images.max()) + 1, doubts)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.features, self.boxes, self.images, self.times))


class KeptViews:
    """Images as a model saw them, by their names, each with its `bytes`: of more than `most` bytes only those used last
    stay, once `trim` is called."""

    def __init__(self, most: int):
        self.most, self.held = most, 0
        self.views: OrderedDict[str, Any] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self.views

    def __iter__(self) -> Iterator[str]:
        return iter(self.views)

    def __getitem__(self, name: str) -> Any:
        self.views.move_to_end(name)
        return self.views[name]

    def get(self, name: str) -> Any:
        if (view := self.views.get(name)) is not None:
            self.views.move_to_end(name)
        return view

    def keep(self, name: str, view: Any) -> None:
        self.views[name] = view
        self.held += view.bytes

    def trim(self) -> None:
        while self.held > self.most:
            self.held -= self.views.popitem(last=False)[1].bytes


def side_by_side(seen: Sequence[Sequence[View]]) -> dict[str, "Tensor"]:
    """The images of each row side by side, as the model takes grids; nothing where no row has one."""
    import torch

    most = max(sum(len(view.boxes) for view in views) for views in seen)
    if most == 0:
        return {}
    like = next(view for views in seen for view in views)
    grids = like.features.new_zeros(len(seen), most, like.features.shape[1])
    # A box of size 0 would have no logarithm: what is not there gets the box of the whole image.
    boxes = like.boxes.new_tensor([0, 0, 1, 1]).repeat(len(seen), most, 1)
    mask = torch.zeros(len(seen), most, dtype=torch.bool, device=grids.device)
    images = torch.zeros(len(seen), most, dtype=torch.int64, device=grids.device)
    times = torch.zeros(len(seen), most, device=grids.device)
    for row, views in enumerate(seen):
        end = number = 0
        for view in views:
            start, end = end, end + len(view.boxes)
            grids[row, start:end], boxes[row, start:end] = view.features, view.boxes
            mask[row, start:end], images[row, start:end] = True, number + view.images
            times[row, start:end] = view.times
            number += view.count
    given = {"grids": grids, "grid_mask": mask, "grid_boxes": boxes}
    given |= {"grid_images": images} if int(images.max()) > 0 else {}
    return given | ({"grid_times": times} if bool(times.any()) else {})


def may_mix(model) -> bool:
    """Return whether rows with and without an image may share a batch.

    They may not where the latter are shown a black one, which a model does by itself where a whole batch has none.
    """
    described = getattr(model.config, "connector_config", None)
    return not getattr(described(), "black_image", False) if described is not None else True


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple["Tensor", "Tensor"]:
    """Pad prompts on the left, whatever the tokenizer's files say, since answers follow them: tokens and mask [B,T]."""
    import torch

    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = torch.tensor(text)
        mask[row, width - len(text) :] = 1
    return ids, mask
