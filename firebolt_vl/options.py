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
    int4 = "int4"


class Engine(StrEnum):
    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"


class ExportFor(StrEnum):
    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"
    page = "page"
    kernels = "kernels"


Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_ID",
        help="A folder; else hf:ORG/NAME (or ORG/NAME, where no folder is called ORG) from the hub. Default: tiny, the "
        "small model inside the package.",
    ),
]
OnDevice = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")]
OfWeights = Annotated[
    Dtype, typer.Option(help="auto is the checkpoint's, on a CPU float32 where that is faster (firebolt info).")
]
Quantized = Annotated[
    Quantize | None, typer.Option(help="Weights in 8 or 4 bits: several times faster on a CPU, answers may differ.")
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is there, though this command did not write it. Never an input."),
]
Ops = Annotated[list[str] | None, typer.Option("--op", metavar="NAME", help="Only this op; may be repeated.")]
Dtypes = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="DTYPE", help="Only float32, float16 or bfloat16; may be repeated."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few sizes, float32 and bfloat16: minutes.")]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="How many at a time. Default: one for each core.")
]
ReportFile = Annotated[
    str | None,
    typer.Option("--out", metavar="FILE", help="Also write the report: FILE.md as tables, FILE.json as data."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
