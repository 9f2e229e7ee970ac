"""Command `firebolt demo`: a page in the browser on which a model is asked."""

from typing import Annotated

import typer

from .options import Checkpoint, Device, Dtype, OnDevice, Quantize
from .shown import note


def demo(
    checkpoint: Checkpoint = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Who may ask: this machine alone; 0.0.0.0 is everyone who reaches it."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    largest_file: Annotated[
        int, typer.Option(metavar="MB", min=1, help="The largest image or video that is taken, in megabytes.")
    ] = 32,
    device: OnDevice = Device.auto,
    dtype: Annotated[
        Dtype, typer.Option(help="auto is the checkpoint's, on a CPU float32 where that is faster (firebolt info).")
    ] = Dtype.auto,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Weights in 8 or 4 bits: faster on a CPU, answers may differ.")
    ] = None,
) -> None:
    """Open a page on which a model is asked about images and videos.

    Answers appear as they are made; pointing at a word lights up where it looked. Nothing leaves this machine.
    """
    from .demo.serving import serve

    try:
        serve(checkpoint, host, port, largest_file, device.value, dtype.value, quantize and quantize.value, _say)
    except KeyboardInterrupt:
        note("the page is closed")


def _say(line: str) -> None:
    print(line, flush=True)
