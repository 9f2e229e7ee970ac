"""Command `firebolt watch`: a question about a video, and where the model looked."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from .options import AsJson, Device, OnDevice, Overwrite, Quantize
from .shown import in_words, new_console, note, show_facts


class Mode(StrEnum):
    coarse_only = "coarse_only"
    coarse_fine = "coarse_fine"
    autoregressive = "autoregressive"


def watch(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or an image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.")],
    model: Annotated[str, typer.Option(metavar="DIR_OR_ID", help="A foveated model: a folder or a hub id.")],
    mode: Annotated[
        Mode | None, typer.Option(help="How often a frame is looked at, and where the queries come from.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many frames, spread over the video. Default: 1 a second, at most 64."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The answer's longest length in tokens.")] = 128,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.png|.gif", help="Write a picture or an animation of where each frame's query looked."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Weights in 8 or 4 bits: faster on a CPU, answers may differ.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sample the answer, with this seed. Default: the most likely words, no chance."),
    ] = None,
) -> None:
    """Answer a question about a video, with one visual token for each frame."""
    from .watch import watch as answer

    reply = answer(
        video,
        question,
        model,
        mode and mode.value,
        frames,
        max_new_tokens,
        attention,
        device.value,
        seed,
        overwrite=overwrite,
        note=note,
        quantize=quantize and quantize.value,
    )
    if as_json:
        print(json.dumps(reply.to_dict()))
    else:
        _show_watched(reply)


def _show_watched(reply) -> None:
    from rich.text import Text

    console = new_console()
    console.print(Text(reply.question, "bold"))
    console.print(Text(reply.answer or "(an empty answer)", "bold dark_orange"))
    facts = [
        f"loaded in {in_words(reply.timing.load_s)}",
        f"{reply.frames} frames looked at in {in_words(reply.look_s)} ({reply.mode})",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {in_words(reply.timing.total_s)}",
        f"{reply.device}, {', '.join(filter(None, (reply.dtype, reply.quantize)))}",
    ]
    picture = None if reply.attention is None else f"where it looked: {reply.attention}"
    show_facts(reply, facts, picture, console)
