"""Options that several commands of the command line share."""

from enum import StrEnum
from typing import Annotated

import typer


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantize(StrEnum):
    int8 = "int8"


Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_ID",
        help="A folder; else hf:ORG/NAME (or ORG/NAME, where no folder is called ORG) from the hub. Default: tiny, the "
        "small model inside the package.",
    ),
]
OnDevice = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is there, though this command did not write it. Never an input."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
