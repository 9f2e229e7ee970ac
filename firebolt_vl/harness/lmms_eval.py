"""Our models in lmms-eval: found by its entry points, `lmms-eval --model firebolt --model_args pretrained=DIR`, and
`--model firebolt_foveated` for the model that looks at videos.

Tested with lmms-eval 0.7. Answers are the most likely ones; `temperature` and other settings of sampling are ignored.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from .asked import AskedModel, Turn
from .watched import WatchedModel

MAX_NEW_TOKENS = 128


class FireboltSimple(lmms):
    """The interface of requests with a prompt and images."""

    is_simple = True
    shows: tuple[str, ...] = ("image",)
    """What a message may show, in lmms-eval's words."""

    def __init__(
        self,
        pretrained: str = "tiny",
        device: str | None = "auto",
        batch_size: int | str | None = 1,
        dtype: str = "auto",
        quantize: str | None = None,
        max_batch_size: int | None = None,
    ):
        """Load a checkpoint: a folder, an id of the hub, or "tiny", the model inside the package."""
        super().__init__()
        checkpoint = None if pretrained == "tiny" else pretrained
        self.asked = AskedModel(checkpoint, _place(device), dtype=dtype, quantize=quantize)
        self.batch_size = (
            int(batch_size or 1) if str(batch_size).isdigit() or batch_size is None else max_batch_size or 1
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests, those of equal settings in batches; the order of the answers is that of the requests."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(self._settings(request.args)), []).append(number)
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="Answering", disable=self.rank != 0) as bar:
            for numbers in groups.values():
                numbers = sorted(numbers, key=lambda number: len(str(requests[number].args[0])))
                for start in range(0, len(numbers), self.batch_size):
                    chosen = numbers[start : start + self.batch_size]
                    most, until = self._settings(requests[chosen[0]].args)
                    asked = [self._turns(requests[number].args) for number in chosen]
                    answers |= zip(chosen, self.asked.answer(asked, most, until))
                    bar.update(len(chosen))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args[:2], answers[number])
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The mean cross-entropy of each continuation: lmms-eval chooses the option for which it is lowest."""
        found = []
        for request in tqdm(requests, desc="Scoring", disable=self.rank != 0):
            context, target, visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            reply = target if isinstance(target, str) else target(document)
            found.append(self.asked.loss([Turn("user", context, self._shown(visual(document)))], reply))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer requests of several rounds: after each the task makes the next question out of the answers so far."""
        found = []
        for request in tqdm(requests, desc="Answering", disable=self.rank != 0):
            context, settings, visual, next_round, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            images, said, information = self._shown(visual(document)), [], None
            most, until = _limits(settings)
            while True:
                said = [*said, self.asked.answer([[Turn("user", context, images)]], most, until)[0]]
                pictures, context, ended, said, information = next_round(
                    document, previous_output=said, round_idx=len(said), previous_round_info=information
                )
                if ended:
                    break
                images = self._shown(pictures)
            found.append(list(said))
        return found

    def _settings(self, arguments: Sequence[Any]) -> tuple[int, tuple[str, ...]]:
        return _limits(arguments[1])

    def _turns(self, arguments: Sequence[Any]) -> list[Turn]:
        context, _, visual, doc_id, task, split = arguments
        return [Turn("user", context, self._shown(visual(self.task_dict[task][split][doc_id])))]

    def _shown(self, visuals: Any) -> tuple[Image.Image | str, ...]:
        return _images(visuals, "video" in self.shows)


class FireboltChat(FireboltSimple):
    """The interface of requests with messages."""

    is_simple = False

    def _settings(self, arguments: Sequence[Any]) -> tuple[int, tuple[str, ...]]:
        return _limits(arguments[2])

    def _turns(self, arguments: Sequence[Any]) -> list[Turn]:
        _, messages, _, doc_id, task, split = arguments
        turns = []
        for message in messages(self.task_dict[task][split][doc_id]):
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if odd := {part["type"] for part in content} - {"text", *self.shows}:
                known = ", ".join(("text", *self.shows))
                raise ValueError(f"FireboltChat: a message has {', '.join(sorted(odd))}; expected {known}")
            text = "\n".join(part["text"] for part in content if part["type"] == "text")
            shown = self._shown([part["url"] for part in content if part["type"] in self.shows])
            turns.append(Turn(message["role"], text, shown))
        return turns


class FoveatedSimple(FireboltSimple):
    """The interface of requests with a prompt and a video or images, for a foveated model."""

    shows = ("image", "video")

    def __init__(
        self,
        pretrained: str,
        device: str | None = "auto",
        batch_size: int | str | None = 1,
        frames: int | None = None,
        max_batch_size: int | None = None,
    ):
        """Load a checkpoint; `frames` of each video are shown (one a second, at most 64), one video at a time."""
        lmms.__init__(self)
        self.asked = WatchedModel(pretrained, _place(device), int(frames) if frames else None)
        self.batch_size = 1


class FoveatedChat(FireboltChat, FoveatedSimple):
    """The interface of requests with messages, for a foveated model."""


def _place(device: str | None) -> str:
    return "cuda" if str(device).startswith("cuda") else str(device or "auto")


def _limits(settings: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The longest answer, in tokens, and the texts that end one."""
    until = settings.get("until") or ()
    return int(settings.get("max_new_tokens") or MAX_NEW_TOKENS), (until,) if isinstance(until, str) else tuple(until)


def _images(visuals: Any, videos: bool = False) -> tuple[Image.Image | str, ...]:
    """The images and paths of `videos` of a document, which tasks nest as they like. Raises ValueError for others."""
    if visuals is None:
        return ()
    if isinstance(visuals, Image.Image) or (videos and isinstance(visuals, str)):
        return (visuals,)
    if isinstance(visuals, str) or not isinstance(visuals, Iterable):
        raise ValueError(f"FireboltSimple: a document has {visuals!r}; expected images, which this model looks at")
    return tuple(image for one in visuals for image in _images(one, videos))


def manifest() -> ModelManifest:
    """Manifest that lmms-eval finds by its entry point."""
    return _manifest("firebolt", FireboltSimple, FireboltChat, "firebolt_vl")


def foveated_manifest() -> ModelManifest:
    """Manifest of the foveated model."""
    return _manifest("firebolt_foveated", FoveatedSimple, FoveatedChat, "foveated_vlm")


def _manifest(name: str, simple: type, chat: type, alias: str) -> ModelManifest:
    return ModelManifest(name, f"{__name__}.{simple.__name__}", f"{__name__}.{chat.__name__}", aliases=(alias,))
