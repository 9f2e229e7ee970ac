"""A foveated model that harnesses ask: questions about videos and images, one at a time, and losses of answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..checkpoint import quiet
from ..errors import Failure, first_line
from ..prompts import check_controls, render
from ..streaming import TokenClock
from ..video_evaluation import VideoExaminee
from ..watch import Source, generate, inputs_of, open_source
from .asked import Turn, cut


class WatchedModel:
    """A checkpoint as harnesses use it: answers are the most likely ones, token by token."""

    def __init__(self, checkpoint: str, device: str = "auto", frames: int | None = None):
        """`frames` of each video are shown. Raises Misuse, Failure: what cannot be done."""
        self.frames = frames
        with quiet():
            self.loaded = VideoExaminee(Path(), frames, checkpoint=checkpoint, device=device).loaded(print)

    def answer(
        self, conversations: Sequence[Sequence[Turn]], max_new_tokens: int, until: Sequence[str] = ()
    ) -> list[str]:
        """The answers to conversations that end with a user's turn, each cut before the first of `until` in it.

        Raises ValueError for a conversation that cannot be answered.
        """
        return [cut(self._answer(turns, max_new_tokens), until) for turns in conversations]

    def _answer(self, turns: Sequence[Turn], max_new_tokens: int) -> str:
        model, processor = self.loaded.model, self.loaded.processor
        try:
            with quiet(), torch.no_grad():
                inputs = self._inputs(turns)
                visual = model.get_visual_tokens(inputs["frames"], inputs["frame_mask"])
                tokens = generate(model, inputs, visual, max_new_tokens, None, TokenClock())
        except (Failure, RuntimeError, ValueError, MemoryError) as error:
            raise ValueError(f"WatchedModel: the conversation cannot be answered ({first_line(error)})") from None
        return processor.decode(tokens, skip_special_tokens=True).strip()

    @torch.no_grad()
    def loss(self, turns: Sequence[Turn], reply: str) -> tuple[float, bool]:
        """The mean cross-entropy of a reply's tokens, in nats, and whether each of them is the most likely one."""
        model, tokenizer = self.loaded.model, self.loaded.processor.tokenizer
        tokens = tokenizer(reply, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        if not tokens.numel():
            raise ValueError("WatchedModel: reply is empty; expected a token or more")
        with quiet():
            inputs = self._inputs(turns)
            visual = model.get_visual_tokens(inputs["frames"], inputs["frame_mask"])
            ids = torch.cat([inputs["input_ids"], tokens], 1)
            logits = model(
                ids, mode="coarse_fine", visual_tokens=visual.tokens, visual_mask=visual.mask, use_cache=False
            ).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), tokens[0])
        return float(loss), bool((logits.argmax(-1) == tokens[0]).all())

    def _inputs(self, turns: Sequence[Turn]):
        """The model's inputs of a conversation: all that it shows comes before its text."""
        for turn in turns:
            check_controls(self.loaded, turn.text)
        text = None
        if self.loaded.processor.chat_template is not None:
            text = render(self.loaded, [{"role": turn.role, "content": turn.text} for turn in turns])
        shown = [one for turn in turns for one in turn.images]
        return inputs_of(self.loaded, self._source(shown), turns[-1].text, text)

    def _source(self, shown: Sequence[Image.Image | str]) -> Source:
        """Make of what is shown what is watched: a video's file, an image, or images as frames."""
        videos = [one for one in shown if isinstance(one, str)]
        if not shown or len(videos) > 1 or (videos and len(shown) > 1):
            raise ValueError(f"a conversation shows {len(shown)} images and videos; expected one video, or images")
        if videos:
            return open_source(videos[0], self.frames)
        frames = [one.convert("RGB") for one in shown]
        return Source(frames, None if len(frames) == 1 else list(map(float, range(len(frames)))), None)
