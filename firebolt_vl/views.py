"""Rows of a batch as the model takes them: encoded images, remembered and side by side, and prompts padded."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class View(NamedTuple):
    """One image as the connector takes it: grids [G,D_v] and their boxes [G,4]; and what is strange about it."""

    features: "Tensor"
    boxes: "Tensor"
    doubts: list[str]

    @property
    def bytes(self) -> int:
        return self.features.nbytes + self.boxes.nbytes


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
    for row, views in enumerate(seen):
        end = 0
        for number, view in enumerate(views):
            start, end = end, end + len(view.boxes)
            grids[row, start:end], boxes[row, start:end] = view.features, view.boxes
            mask[row, start:end], images[row, start:end] = True, number
    given = {"grids": grids, "grid_mask": mask, "grid_boxes": boxes}
    return given | ({"grid_images": images} if int(images.max()) > 0 else {})


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
