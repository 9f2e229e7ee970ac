"""One question about images and videos: the answer, how long it took, and where it comes from."""

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .checkpoint import Loaded, choose_device, load, locate, quiet
from .errors import Failure, Misuse, first_line
from .evidence import Evidence, find_evidence
from .outputs import check_picture
from .prompts import prompt, room_for_answer, specials, stops
from .starting import import_for_answers, uncollected
from .streaming import Certainty, SpokenText, Timing, TokenClock

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

    from .model.video import Video


@dataclass
class Reply:
    question: str
    answer: str
    complete: bool
    """Whether the model ended the answer itself, before it ran out of tokens."""
    image: dict | list[dict]
    """Of one image; of several, or of videos, a list."""
    checkpoint: str
    device: str
    dtype: str
    quantize: str | None
    seed: int | None
    prompt_tokens: int
    answer_tokens: int
    timing: Timing
    probability: float | None
    """The geometric mean over the answer's tokens, its end included, of the probability that each was chosen with."""
    knows: str | None = None
    """What the model was made for, where it says so (`evaluate/familiar.py`): the one in the package does."""
    doubts: list[str] = field(default_factory=list)
    """What of the question and the image is unlike that: the answer is a guess where there is something."""
    grounding: Evidence | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def ask(
    image: str | Sequence[str],
    question: str,
    checkpoint: str | None = None,
    max_new_tokens: int = 128,
    grounding: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
    overwrite: bool = False,
    frames: int | None = None,
    note: Callable[[str], None] = lambda line: None,
    **how,
) -> Reply:
    """Answer `question` about the image file `image`, or about several, among which there may be videos.

    A video gives 1 frame a second, at most 64, or `frames` of them spread over it.

    The answer is the most likely one, token by token; with a `seed` it is sampled, and the same for the same seed.
    `grounding` names a PNG file that the grounding picture is written to: it is there whole or not at all, and in the
    place of another file only where that is such a picture, or with `overwrite`. `say` is called with each piece of the
    answer as soon as it is there; together they are the answer. `note` is told what a user should know. `how` goes to
    `checkpoint.load`: dtype, quantize, compile_step.

    A question that spells a control token of the model's is refused: it would end its turn and begin others.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    start = time.perf_counter()
    question = check_question(question, max_new_tokens, seed)
    paths = [image] if isinstance(image, str) else list(image)
    for path in paths:
        _check_image_path(path)
    if frames is not None and frames < 1:
        raise Misuse(f"--frames is {frames}; expected at least 1")
    if grounding is not None:
        for path in paths:
            check_picture("--grounding", grounding, (".png",), path, "image", overwrite)
    pictures = [open_shown(path, frames) for path in paths]
    if grounding is not None and (len(paths) > 1 or is_video(pictures[0])):
        raise Misuse("--grounding is given with several images or a video; expected one image, which it is drawn on")
    if frames is not None and not any(map(is_video, pictures)):
        raise Misuse(f"--frames is {frames}, but {paths[0]} is an image; expected with a video alone")
    with uncollected():
        place = choose_device(device)
        if not how.get("compile_step"):
            import_for_answers()
        folder = locate(checkpoint)
        with quiet():
            loaded = load(folder, place, **how)

    with quiet():
        ignore_settings(loaded, seed, note)
        load_s = time.perf_counter() - start
        if any(map(is_video, pictures)) and not knows_times(loaded):
            note("this model does not know times: the frames of a video are to it images, one after another")
        text = prompt(loaded, question, shown_as(loaded, pictures))
        inputs = inputs_of(loaded, pictures, text)
        clock = TokenClock(SpokenText(loaded.processor, say) if say is not None else None)
        certainty = Certainty()
        try:
            tokens = generate(loaded.model, inputs, max_new_tokens, seed, clock, certainty)
            reply = Reply(
                question=question,
                answer=loaded.processor.decode(tokens, skip_special_tokens=True).strip(),
                complete=tokens[-1].item() in stops(loaded.model),
                image=_described(paths, pictures),
                checkpoint=str(folder),
                device=str(loaded.model.device),
                dtype=str(loaded.model.dtype).removeprefix("torch."),
                quantize=loaded.model.config.quantized,
                seed=seed,
                prompt_tokens=inputs["input_ids"].shape[1],
                answer_tokens=len(tokens),
                timing=clock.timing(load_s),
                probability=certainty.of(tokens[None], [len(tokens)])[0],
                **familiar_with(folder, question, pictures),
            )
            if grounding is not None:
                reply.grounding = find_evidence(
                    loaded, inputs, text, tokens, pictures[0], reply.question, reply.answer, grounding
                )
        except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, or settings that cannot be
            raise Failure(f"the model could not answer: {first_line(error)}") from None
    return reply


def check_question(question: str, max_new_tokens: int, seed: int | None = None) -> str:
    """Return a question as text, whatever encoding its bytes were in, once it and the numbers can be. Raises Misuse."""
    question = question.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if not question.strip():
        raise Misuse('QUESTION is empty; expected one, such as "what is in the image?"')
    check_numbers(max_new_tokens, seed)
    return question


def check_numbers(max_new_tokens: int, seed: int | None) -> None:
    """Check the numbers of an answer. Raises Misuse."""
    if max_new_tokens < 1:
        raise Misuse(f"--max-new-tokens is {max_new_tokens}; expected at least 1")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise Misuse(f"--seed is {seed}; expected a number of 64 bits, such as 0 to {2**64 - 1:,}")


def ignore_settings(loaded: Loaded, seed: int | None, note: Callable[[str], None]) -> None:
    """Set the generation settings of this command in the place of the checkpoint's, and tell which are ignored."""
    from .model.generation import own_settings

    try:
        ignored = own_settings(loaded.model, loaded.processor.tokenizer, sampled=seed is not None)
    except ValueError as error:
        raise Failure(f"the checkpoint's {error}") from None
    if ignored:
        note(f"the checkpoint's generation_config.json also sets {', '.join(ignored)}: not used here")


def is_video(picture: "Image.Image | Video") -> bool:
    """Tell a video from an image."""
    from PIL import Image

    return not isinstance(picture, Image.Image)  # without an import of PyTorch, as videos need


def knows_times(loaded: Loaded) -> bool:
    """Tell whether a model knows when the frames of a video come: else they are images to it."""
    return loaded.model.config.connector_config().grid_times


def shown_as(loaded: Loaded, pictures: "Sequence[Image.Image | Video]") -> int:
    """Count the images that these are to the model: a video is one where it knows times, else each frame is one."""
    return sum(len(one.times) if is_video(one) and not knows_times(loaded) else 1 for one in pictures)


def _described(paths: Sequence[str], pictures: "Sequence[Image.Image | Video]") -> dict | list[dict]:
    """Tell of one image its path and size, of others a list of these, of videos with frames and seconds."""
    described = []
    for path, picture in zip(paths, pictures):
        described.append({"path": path, "width": picture.width, "height": picture.height})
        if is_video(picture):
            described[-1] |= {"frames": len(picture.times), "seconds": picture.duration}
    return described[0] if len(described) == 1 and not is_video(pictures[0]) else described


def familiar_with(folder: "Path", question: str, pictures: "Sequence[Image.Image | Video]") -> dict:
    """Return what a model in `folder` knows, and its doubts about a question and images; {} where it does not say."""
    from .evaluate.familiar import read_familiar

    familiar = read_familiar(folder)
    if familiar is None:
        return {}
    images = [image for one in pictures for image in (one.frames if is_video(one) else [one])]
    return {"knows": familiar.knows, "doubts": familiar.doubts(question, *images)}


def _check_image_path(image: str) -> None:
    """Check an image's path before anything heavy is imported. Raises Misuse."""
    try:
        mode = os.stat(image).st_mode
    except FileNotFoundError:
        raise Misuse(f"{image} does not exist; check the path of the image") from None
    except OSError as error:
        raise Misuse(f"{image} cannot be opened ({error.strerror}); check the path of the image") from None
    if stat.S_ISDIR(mode):
        raise Misuse(f"{image} is a folder; expected one image file")


def open_picture(image: str) -> "Image.Image":
    """Open an image file, upright, as RGB. Raises Misuse and Failure."""
    from .views.images import ImageError, open_image

    return _opened(lambda: open_image(image), ImageError)


def open_shown(image: str, frames: int | None) -> "Image.Image | Video":
    """Open an image file, or of a video its frames. Raises Misuse, Failure, of an image before PyTorch is imported."""
    from .views.formats import begins_as_a_video

    if not begins_as_a_video(image):
        return open_picture(image)
    from .model.video import VideoError, read_video

    return _opened(lambda: read_video(image, frames), VideoError)


def _opened(opening: Callable, *failures: type[Exception]):
    """Return what `opening` does; what that raises is told as failures of a command."""
    try:
        return opening()
    except failures as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Misuse(str(error)) from None


def inputs_of(loaded: Loaded, pictures: "Image.Image | Sequence[Image.Image | Video]", text: str):
    """Make the model's inputs of images and a prompt. Raises Failure where the prompt leaves no room."""
    row = list(pictures) if isinstance(pictures, Sequence) else [pictures]
    inputs = loaded.processor(images=[row], text=[text], return_tensors="pt", **specials(loaded, text))
    room_for_answer(loaded.model, inputs["input_ids"].shape[1])
    return inputs.to(loaded.model.device)


def generate(
    model, inputs, max_new_tokens: int, seed: int | None, clock: TokenClock, certainty: Certainty
) -> "torch.Tensor":
    """Generate the tokens of the answer."""
    import torch
    from transformers import LogitsProcessorList

    from .model.generation import settings_for

    prompt_tokens = inputs["input_ids"].shape[1]
    room = room_for_answer(model, prompt_tokens)
    if seed is not None:
        torch.manual_seed(seed)
    sequences = model.generate(
        **inputs,
        generation_config=settings_for(model, min(max_new_tokens, room)),
        streamer=clock,
        logits_processor=LogitsProcessorList([certainty]),
    )
    return sequences[0, prompt_tokens:]
