"""Images of requests on their way into the model: made ready beside it, encoded once, remembered."""

import hashlib
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import torch

from ..checkpoint import Loaded
from ..kept_views import KeptViews, View, side_by_side
from ..model.images import ImageError, decode_image
from .refusal import bad_request

if TYPE_CHECKING:
    from transformers import BatchFeature

    from ..evaluate.familiar import Familiar


class Picture:
    """An image, as the image processor made it ready, until the model has seen it: then its view."""

    def __init__(self, name: str, pixels: "BatchFeature | None", doubts: list[str], view: View | None = None):
        self.name, self.pixels, self.doubts, self.view = name, pixels, doubts, view


class Sight:
    """Images of a Firebolt-VL: `ready` in any thread, `look` and `arguments` in the model's."""

    KEPT = 2**28
    """Bytes of the images that are remembered, those used last."""

    def __init__(self, loaded: Loaded, familiar: "Familiar | None"):
        self.loaded, self.familiar = loaded, familiar
        self.views, self.lock = KeptViews(self.KEPT), Lock()
        self.encoded = 0
        """How many images were encoded."""

    def ready(self, data: bytes, where: str) -> Picture:
        """Make an image ready. Raises Refused for what is none, or has too many pixels."""
        name = hashlib.sha256(data).hexdigest()
        if (view := self._remembered(name)) is not None:
            return Picture(name, None, view.doubts, view)
        try:
            image = decode_image(data, where)
        except ImageError as error:
            raise bad_request(str(error), where, "invalid_image") from None
        doubts = self.familiar.doubts_of_image(image) if self.familiar is not None else []
        return Picture(name, self.loaded.processor.image_processor([[image]], return_tensors="pt"), doubts)

    def _remembered(self, name: str) -> View | None:
        with self.lock:
            return self.views.get(name)

    def look(self, pictures: Sequence[Picture]) -> None:
        """Give each picture its view. Each is encoded alone, as `firebolt ask` does, so that a batch changes none."""
        for picture in pictures:
            if picture.view is None and (view := self._remembered(picture.name)) is not None:
                picture.view, picture.pixels = view, None
            if picture.view is not None:
                continue
            assert picture.pixels is not None
            with torch.no_grad():
                seen = self.loaded.model.get_grids(**picture.pixels.to(self.loaded.model.device))
            picture.view, picture.pixels = View.of(seen, 0, picture.doubts), None
            self.encoded += 1
            with self.lock:
                self.views.keep(picture.name, picture.view)
                self.views.trim()

    def arguments(self, rows: Sequence[Sequence[Picture]]) -> dict:
        """Return what `generate` is told of the images of a batch, which were looked at."""
        return side_by_side([[picture.view for picture in pictures] for pictures in rows])
