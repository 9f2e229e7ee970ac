"""The commands of training: `firebolt train`, `ablate`, `adapters` and `data`, their options and help."""

from typing import Annotated

import typer

from .options import AsJson, Overwrite

adapters = typer.Typer(help="Adapters (peft) that a training wrote.")
data = typer.Typer(help="Check training data, and make it from what others release.")


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="stage1, stage2, lora, tiny, sft, dpo, grpo, ..., or a TOML or YAML file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of it to set, such as max_steps=100. After sft, dpo or grpo a file of keys may come first.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the model and everything else goes. Default: its key out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")] = False,
) -> None:
    """Train a model: the paper's two stages, adapters, on answers, preferences or rewards, or the embedded model."""
    from .train_commands import train as start

    start(config, overrides or [], out, resume)


def ablate(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]...",
            help="The tables of one task, handwriting or boards, or single ones, such as ssm, connector and "
            "boards-query; all is the default.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each configuration.")] = 3,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Where finished runs are kept and the tables go.")
    ] = "out/ablation",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps and one seed of each: to see that it works, in minutes.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs at a time. Default: one for each core.")
    ] = None,
) -> None:
    """Train the variants of the model that the paper compares, and our own, on two small tasks, and write the tables.

    Each finished run is kept, and not run again: the pool can be filled over several sittings.
    """
    from .train_commands import ablate as start

    start(tables or [], seeds, out, quick, processes)


@adapters.command("merge")
def adapters_merge(
    source: Annotated[str, typer.Argument(metavar="ADAPTERS", help="A folder of adapters, such as OUT/adapters.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for the merged model.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="The model to add them to. Default: the one that they name."),
    ] = None,
) -> None:
    """Add adapters (peft) to the weights of their model, and write that: it loads like any other."""
    from .train_commands import merge_adapters

    merge_adapters(source, out, model)


@data.command("check")
def data_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="JSON lines, or tar shards of them.")],
    image_root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where paths of images start. Default: the file's folder.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR_OR_ID", help="Also look for what this model's tokenizer cannot take.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The longest row, in tokens of --checkpoint.")
    ] = None,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="Every row needs a `rejected` answer, for training on preferences.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read all rows, open all images and videos: each bad row by file, line, kind. Exit code 1 where there is one."""
    from .train_commands import check_data

    check_data(files, image_root, checkpoint, max_length, preferences, as_json)


@data.command("convert")
def data_convert(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help="cc3m, llava-cot or mmpr.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="What was released: a table, a tar shard, JSON.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT.jsonl", help="The file to write. A link is followed; what is there is kept.")
    ],
    images: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the images lie. Default: the folder of FILE.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cc3m's table: an image's name, {line} its line from 0 ({line:09d}.jpg)."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make training data of a release of CC3M, LLaVA-CoT-100k or MMPR v1.2; the images stay where they are."""
    from .train_commands import convert_data

    convert_data(name, file, out, images, pattern, as_json, overwrite)
