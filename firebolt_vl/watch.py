"""One question about one video or image for a foveated model: the answer, and where each frame's query looked."""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .ask import check_numbers, ignore_settings
from .checkpoint import Loaded, choose_device, locate, quiet
from .errors import Failure, Misuse, first_line
from .foveated_checkpoint import load_foveated
from .outputs import check_picture, write_picture
from .prompts import check_controls, render, specials, stops
from .streaming import Certainty, Timing, TokenClock

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".png", ".gif")


@dataclass
class Look:
    """Look of one frame's query: the patch with the largest share, as (y0, x0, y1, x1) in pixels."""

    time_s: float | None
    box: list[float]
    share: float


@dataclass
class Watched:
    question: str
    answer: str
    complete: bool
    """Whether the model ended the answer itself, before it ran out of tokens."""
    video: dict
    mode: str
    checkpoint: str
    device: str
    dtype: str
    quantize: str | None
    seed: int | None
    frames: int
    visual_tokens: int
    prompt_tokens: int
    answer_tokens: int
    look_s: float
    """Seconds from the frames to their visual tokens."""
    timing: Timing
    looks: list[Look]
    attention: str | None = None

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Source:
    """Video or image that is watched: its frames, when each was on screen (None for an image), and how long it is."""

    frames: list["Image.Image"]
    times: list[float] | None
    seconds: float | None


def watch(
    video: str,
    question: str,
    checkpoint: str,
    mode: str | None = None,
    frames: int | None = None,
    max_new_tokens: int = 128,
    attention: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
    quantize: str | None = None,
) -> Watched:
    """Answer `question` about the video or image file `video`.

    A video gives 1 frame a second, at most 64, or `frames` of them spread over it; an image is shown as several equal
    frames. `attention` names a PNG (all frames on a page) or GIF file (one after another) that shows where each frame's
    query looked: it is there whole or not at all. The answer is the most likely one; with a `seed` it is sampled.
    `overwrite` and `note`: as in `ask`; `quantize`: "int8" or "int4", as in `checkpoint.load`.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    start = time.perf_counter()
    question = question.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes of another encoding
    if not question.strip():
        raise Misuse('QUESTION is empty; expected one, such as "what happens?"')
    check_numbers(max_new_tokens, seed)
    if frames is not None and frames < 1:
        raise Misuse(f"--frames is {frames}; expected at least 1")
    _check_video_path(video)
    if attention is not None:
        check_picture("--attention", attention, PICTURES, video, "video", overwrite)
    source = open_source(video, frames)
    place = choose_device(device)
    folder = locate(checkpoint)

    with quiet():
        loaded = load_foveated(folder, place, quantize)
        ignore_settings(loaded, seed, note)
        load_s = time.perf_counter() - start
        mode = mode or loaded.model.config.mode
        inputs = inputs_of(loaded, source, question)
        try:
            start = time.perf_counter()
            visual = look(loaded.model, inputs, mode)
            look_s = time.perf_counter() - start
            clock = TokenClock()
            tokens = generate(loaded.model, inputs, visual, max_new_tokens, seed, clock)
        except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, or settings that cannot be
            raise Failure(f"the model could not answer: {first_line(error)}") from None
        if source.times is None:
            source.frames = source.frames * visual.tokens.shape[1]
        maps = visual.maps()[0].cpu()
        reply = Watched(
            question=question,
            answer=loaded.processor.decode(tokens, skip_special_tokens=True).strip(),
            complete=tokens[-1].item() in stops(loaded.model),
            video={
                "path": video,
                "width": source.frames[0].width,
                "height": source.frames[0].height,
                "seconds": source.seconds,
            },
            mode=mode,
            checkpoint=str(folder),
            device=str(loaded.model.device),
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            quantize=loaded.model.config.quantized,
            seed=seed,
            frames=len(source.frames),
            visual_tokens=visual.tokens.shape[1],
            prompt_tokens=inputs["input_ids"].shape[1],
            answer_tokens=len(tokens),
            look_s=look_s,
            timing=clock.timing(load_s),
            looks=[_strongest(source, number, shares) for number, shares in enumerate(maps)],
        )
        if attention is not None:
            _draw(attention, source, maps.numpy(), reply)
            reply.attention = attention
    return reply


def _check_video_path(video: str) -> None:
    """Check a video's path before anything heavy is imported. Raises Misuse."""
    try:
        mode = os.stat(video).st_mode
    except FileNotFoundError:
        raise Misuse(f"{video} does not exist; check the path of the video") from None
    except OSError as error:
        raise Misuse(f"{video} cannot be opened ({error.strerror}); check the path of the video") from None
    if stat.S_ISDIR(mode):
        raise Misuse(f"{video} is a folder; expected one video file")


def open_source(path: str, frames: int | None) -> Source:
    """Open a video or an image. Raises Misuse, Failure."""
    from .model.images import ImageError, open_image
    from .model.video import VideoError, read_video

    try:
        if _is_image(path):
            if frames is not None:
                raise Misuse(f"--frames is {frames}, but {path} is an image; expected with a video alone")
            return Source([open_image(path)], None, None)
        video = read_video(path, frames)
    except (ImageError, VideoError) as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Misuse(str(error)) from None
    return Source(video.frames, video.times, video.duration)


def _is_image(path: str) -> bool:
    """A still image; an animated one is a video."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except Exception:  # no image, or a damaged one: the reader of videos says what is wrong with it
        return False


def inputs_of(loaded: Loaded, source: Source | None, question: str, text: str | None = None, looked_at: int = 0):
    """Make the model's inputs of a question about a video; `text` is a prompt that was made of it. Without a source
    they are those of the text alone, which comes after `looked_at` visual tokens. Raises Failure."""
    processor, model = loaded.processor, loaded.model
    if text is None:
        check_controls(loaded, question)
        text = question
        if processor.chat_template is not None:
            text = render(loaded, [{"role": "user", "content": question}])
    shown = {}
    if source is not None:
        shown = {"images": source.frames[0]} if source.times is None else {"videos": [source.frames]}
    inputs = processor(text=[text], return_tensors="pt", **specials(loaded, text), **shown)
    taken = inputs["input_ids"].shape[1] + (inputs["frames"].shape[1] if shown else looked_at)
    most = model.config.text_config.max_position_embeddings
    if taken >= most:
        raise Failure(
            f"question and frames are {taken:,} tokens long; expected fewer than {most:,}, which this model reads at "
            "most with its answer; shorten them"
        )
    return inputs.to(model.device, dtype=model.dtype)


def look(model, inputs, mode: str):
    """Look at the frames of the inputs: their visual tokens, and where each query looked."""
    import torch

    with torch.no_grad():
        return model.get_visual_tokens(inputs["frames"], inputs["frame_mask"], mode, return_attention=True)


def generate(
    model,
    inputs,
    visual,
    max_new_tokens: int,
    seed: int | None,
    clock: TokenClock,
    certainty: Certainty | None = None,
):
    """Generate the tokens of the answer."""
    import torch
    from transformers import LogitsProcessorList

    from .model.generation import settings_for

    prompt_tokens = inputs["input_ids"].shape[1]
    room = model.config.text_config.max_position_embeddings - prompt_tokens - visual.tokens.shape[1]
    if seed is not None:
        torch.manual_seed(seed)
    sequences = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        visual_tokens=visual.tokens,
        visual_mask=visual.mask,
        generation_config=settings_for(model, min(max_new_tokens, room)),
        streamer=clock,
        logits_processor=LogitsProcessorList([certainty] if certainty is not None else []),
    )
    return sequences[0, prompt_tokens:]


def _strongest(source: Source, number: int, shares) -> Look:
    """The patch that the query of frame `number` looked at most, of `shares` [h,w]."""
    rows, columns = shares.shape
    y, x = divmod(int(shares.argmax()), columns)
    height, width = source.frames[number].height / rows, source.frames[number].width / columns
    box = [y * height, x * width, (y + 1) * height, (x + 1) * width]
    return Look(source.times[number] if source.times is not None else None, box, float(shares.max()))


def _draw(path: str, source: Source, maps, reply: Watched) -> None:
    from .gaze import draw_animation, draw_page

    times = source.times
    captions = [f"{time:.1f} s" for time in times] if times is not None else [f"look {i + 1}" for i in range(len(maps))]

    def draw(unfinished: Path) -> None:
        if unfinished.suffix.lower() == ".gif":
            draw_animation(source.frames, maps, captions, unfinished)
        else:
            draw_page(source.frames, maps, captions, reply.question, reply.answer, reply.mode, unfinished)

    write_picture("--attention", path, draw)
