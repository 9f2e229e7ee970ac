"""Our models in VLMEvalKit, which has a table of models in the place of plug-ins:

    from functools import partial
    from vlmeval.config import supported_VLM
    from firebolt_vl.harness.vlmevalkit import FireboltForVLMEvalKit

    supported_VLM["Firebolt-VL"] = partial(FireboltForVLMEvalKit, checkpoint="DIR")

before `run.py --model Firebolt-VL --data ...` is called in the same process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..model.images import open_image
from .asked import AskedModel, Turn

try:
    from vlmeval.vlm.base import BaseModel
except ImportError:
    BaseModel = object


class FireboltForVLMEvalKit(BaseModel):
    """A model of VLMEvalKit."""

    INSTALL_REQ = False
    INTERLEAVE = False

    def __init__(self, checkpoint: str | None = None, device: str = "auto", max_new_tokens: int = 128, **how: Any):
        """Load a checkpoint: a folder, an id of the hub, or None, the model inside the package."""
        super().__init__()
        self.asked, self.max_new_tokens = AskedModel(checkpoint, device, **how), max_new_tokens

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """Answer a message: a list of {"type": "image" or "text", "value": a path or the text}.

        Raises ValueError for another type.
        """
        if odd := {part["type"] for part in message} - {"image", "text"}:
            raise ValueError(f"generate_inner: message has {', '.join(sorted(odd))}; expected images and text")
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        images = tuple(open_image(part["value"]) for part in message if part["type"] == "image")
        return self.asked.answer([[Turn("user", text, images)]], self.max_new_tokens)[0]
