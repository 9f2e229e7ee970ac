"""PyTorch as one of the engines."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Loaded, load, quiet
from ..prompts import prompt, room_for_answer, specials, stops
from ..streaming import Certainty
from .answer import Answer

if TYPE_CHECKING:
    from PIL import Image


class TorchEngine:
    """A checkpoint in PyTorch on a CPU."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    @classmethod
    def load(cls, folder: Path) -> "TorchEngine":
        """Load a checkpoint's folder in float32. Raises Failure."""
        from ..model.generation import own_settings

        with quiet():
            loaded = load(folder, "cpu", "float32")
        own_settings(loaded.model, loaded.processor.tokenizer, sampled=False)
        return cls(loaded)

    def answer(
        self,
        image: "Image.Image | None",
        question: str,
        max_new_tokens: int = 128,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """Answer as `Engine.answer` says."""
        from transformers import LogitsProcessorList

        from ..model.generation import settings_for

        model: Any = self.loaded.model
        processor: Any = self.loaded.processor
        text = prompt(self.loaded, question, 0 if image is None else 1)
        seen = {} if image is None else {"images": image}
        inputs = processor(text=text, return_tensors="pt", **seen, **specials(self.loaded, text))
        length = inputs["input_ids"].shape[1]
        certainty = Certainty()
        sequences = model.generate(
            **inputs,
            generation_config=settings_for(model, min(max_new_tokens, room_for_answer(model, length))),
            streamer=None if on_token is None else _Listener(on_token),
            logits_processor=LogitsProcessorList([certainty]),
        )
        tokens = sequences[0, length:]
        return Answer(
            text=processor.decode(tokens, skip_special_tokens=True).strip(),
            tokens=tokens.tolist(),
            complete=tokens[-1].item() in stops(model),
            probability=certainty.of(tokens[None], [len(tokens)])[0],
            prompt_tokens=length,
        )


class _Listener:
    """A streamer that hands on each token, without the prompt, which comes first."""

    def __init__(self, on_token: Callable[[int], None]):
        self.on_token, self.begun = on_token, False

    def put(self, value: Any) -> None:
        if self.begun:
            self.on_token(value.item())
        self.begun = True

    def end(self) -> None:
        """Do nothing: there is nothing that was held back."""
