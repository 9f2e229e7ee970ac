"""Images of requests on their way into the model: made ready beside it, seen once, remembered."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint import Loaded
from ..kept_views import KeptViews, View, side_by_side
from ..model.images import ImageError, decode_image
from .refusal import bad_request

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature

    from ..evaluate.familiar import Familiar


class Picture:
    """An image, or all frames of a clip, as the image processor made it ready, until the model has seen it.

    positions   those of the decoder that it takes
    """

    def __init__(
        self, name: str, pixels: "BatchFeature | None", doubts: list[str], positions: int = 0, seen: Any = None
    ):
        self.name, self.pixels, self.doubts = name, pixels, doubts
        self.positions, self.seen = positions, seen


class Sight(ABC):
    """Images of a model: `ready` is called in any thread, `look` and `arguments` in the model's."""

    KEPT = 2**28
    """Bytes of the images that are remembered, those used last."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.views, self.lock = KeptViews(self.KEPT), Lock()
        self.encoded = 0
        """How many pictures the model has seen."""

    @abstractmethod
    def ready(self, images: Sequence[bytes]) -> list[Picture]:
        """Make the images of a conversation ready. Raises Refused for what is none, or has too many pixels."""

    @abstractmethod
    def arguments(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        """Return what `generate` is told of the pictures of a batch, which were looked at."""

    @abstractmethod
    def _see(self, pixels: "BatchFeature", doubts: list[str]) -> Any:
        """Let the model see one picture."""

    def look(self, pictures: Sequence[Picture]) -> None:
        """Let the model see the pictures. Each is seen alone, as `firebolt ask` does, so that a batch changes none."""
        for picture in pictures:
            if picture.seen is None:
                picture.seen = self._remembered(picture.name)
            if picture.seen is None:
                assert picture.pixels is not None
                with torch.no_grad():
                    picture.seen = self._see(picture.pixels, picture.doubts)
                self.encoded += 1
                with self.lock:
                    self.views.keep(picture.name, picture.seen)
                    self.views.trim()
            picture.pixels = None

    def _remembered(self, name: str) -> Any:
        with self.lock:
            return self.views.get(name)


class Views(Sight):
    """Images of a Firebolt-VL: each of them some grids."""

    def __init__(self, loaded: Loaded, familiar: "Familiar | None"):
        super().__init__(loaded)
        self.familiar = familiar

    def ready(self, images: Sequence[bytes]) -> list[Picture]:
        return [self._ready(data, where) for where, data in _named(images)]

    def _ready(self, data: bytes, where: str) -> Picture:
        name = digest([data])
        if (seen := self._remembered(name)) is not None:
            return Picture(name, None, seen.doubts, 0, seen)
        image = decode(data, where)
        doubts = self.familiar.doubts_of_image(image) if self.familiar is not None else []
        return Picture(name, self.loaded.processor.image_processor([[image]], return_tensors="pt"), doubts, 0)

    def _see(self, pixels: "BatchFeature", doubts: list[str]) -> View:
        seen = self.loaded.model.get_grids(**pixels.to(self.loaded.model.device))
        return View.of(seen, 0, doubts)

    def arguments(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        return side_by_side([[picture.seen for picture in pictures] for pictures in rows])


class Clip(NamedTuple):
    """Visual tokens [F,E] of a clip, one for each frame."""

    tokens: Tensor

    @property
    def bytes(self) -> int:
        return self.tokens.nbytes


class Clips(Sight):
    """Images of a foveated model: those of a conversation are the frames of one clip, a single one is a still."""

    def ready(self, images: Sequence[bytes]) -> list[Picture]:
        if not images:
            return []
        name = digest(images)
        if (seen := self._remembered(name)) is not None:
            return [Picture(name, None, [], len(seen.tokens), seen)]
        frames = [decode(data, where) for where, data in _named(images)]
        pixels = self.loaded.processor.image_processor([frames], packed=False, return_tensors="pt")
        return [Picture(name, pixels, [], pixels["frames"].shape[1])]

    def _see(self, pixels: "BatchFeature", doubts: list[str]) -> Clip:
        model = self.loaded.model
        frames = pixels["frames"].to(model.device, dtype=model.dtype)
        return Clip(model.get_visual_tokens(frames, pixels["frame_mask"].to(model.device)).tokens[0])

    def arguments(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        clips = [pictures[0].seen.tokens for pictures in rows if pictures]
        if not clips:
            return {}
        most = max(map(len, clips))
        tokens = clips[0].new_zeros(len(rows), most, clips[0].shape[1])
        mask = torch.zeros(len(rows), most, dtype=torch.bool, device=tokens.device)
        for number, pictures in enumerate(rows):
            if pictures:
                clip = pictures[0].seen.tokens
                tokens[number, : len(clip)], mask[number, : len(clip)] = clip, True
        return {"visual_tokens": tokens, "visual_mask": mask}


def digest(images: Sequence[bytes]) -> str:
    """Return a name for the content of images in their order."""
    whole = hashlib.sha256()
    for data in images:
        whole.update(hashlib.sha256(data).digest())
    return whole.hexdigest()


def decode(data: bytes, where: str) -> "Image.Image":
    """Decode an image. Raises Refused."""
    try:
        return decode_image(data, where)
    except ImageError as error:
        raise bad_request(str(error), where, "invalid_image") from None


def _named(images: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(f"image {number}", data) for number, data in enumerate(images, 1)]
