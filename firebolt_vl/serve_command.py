"""Command `firebolt serve`: a checkpoint behind OpenAI's protocol of chat completions."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .errors import Misuse
from .options import Checkpoint, Device, Dtype, OfWeights, OnDevice, Quantized
from .shown import note


def serve(
    checkpoint: Checkpoint = None,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen: 0.0.0.0 is every network that this machine is in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 is any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model. Default: the checkpoint's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that are answered together.")] = 8,
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests let in at a time; those beyond them get status 429.")
    ] = 128,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="The longest answer in tokens, whatever a request asks for.")
    ] = 1024,
    max_prompt: Annotated[
        int, typer.Option(metavar="N", min=1, help="The longest conversation in tokens, images not counted.")
    ] = 8192,
    timeout: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, help="The longest that a request may take, its wait with it.")
    ] = 120,
    max_body: Annotated[int, typer.Option(metavar="MB", min=1, help="The largest request.")] = 32,
    image_folder: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Let requests name files in this folder as images. Default: data: URLs only."),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Fetch images from this host too; may be repeated. Default: from none."),
    ] = None,
    device: OnDevice = Device.auto,
    dtype: OfWeights = Dtype.auto,
    quantize: Quantized = None,
) -> None:
    """Answer over HTTP as OpenAI's chat completions do: images, several turns, streams. Needs the extra `serve`.

    POST /v1/chat/completions, GET /v1/models, /health and /metrics. Ctrl-C ends it once all is answered. A key that
    clients have to send is taken from the environment, FIREBOLT_API_KEY.
    """
    from .serving.server import KEY, address_of, build, check_installed, listen, run, web_server

    check_installed()
    if image_folder is not None and not Path(image_folder).is_dir():
        raise Misuse(f"--image-folder is {image_folder}, which is no folder; expected that of the images")
    listener = listen(host, port)
    from .checkpoint import choose_device, locate, quiet
    from .foveated_checkpoint import load_any
    from .serving.gate import Limits, is_own_machine
    from .serving.pictures import Sources
    from .serving.preparation import Most
    from .serving.server import Plan

    if not is_own_machine(listener.getsockname()[0]) and not os.environ.get(KEY):
        note(f"everyone who reaches {host} can ask, since {KEY} is not set")
    place, folder = choose_device(device.value), locate(checkpoint)
    plan = Plan(
        name=name or checkpoint or folder.name,
        batch_size=batch_size,
        most=Most(max_prompt, max_new_tokens),
        limits=Limits(queue, max_body * 2**20, timeout),
        sources=Sources(Path(image_folder) if image_folder else None, tuple(image_host or ()), max_body * 2**20),
    )
    with quiet():
        loaded = load_any(folder, place, dtype.value, quantize and quantize.value)
        service = build(loaded, folder, plan, note)
        told = f"{plan.name} answers at {address_of(listener)}/v1; Ctrl-C ends it"
        try:
            run(web_server(service, listener, lambda: note(told)), service, listener)
        except KeyboardInterrupt:
            note("stopped")
