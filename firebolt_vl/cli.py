"""The `firebolt` command. Only what a command needs is imported, and only when it runs: the help is there at once."""

import json
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .errors import Failure, first_line

app = typer.Typer(
    help="Firebolt-VL: ask an image a question, and see where the answer comes from.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluations = typer.Typer(help="Measure a model on a benchmark.")
app.add_typer(evaluations, name="eval")
benchmarks = typer.Typer(help="Measure the kernels, and compile them for GPUs that need not be there.")
app.add_typer(benchmarks, name="bench")


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_ID", help="A folder or a hub id. Default: the small model inside the package."),
]
OnDevice = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.command()
def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.")],
    checkpoint: Checkpoint = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The answer's longest length in tokens.")] = 128,
    grounding: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.png",
            help="Write a picture of what the answer rests on, and of what each word of the question weighed.",
        ),
    ] = None,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sample the answer, with this seed. Default: the most likely words, no chance."),
    ] = None,
) -> None:
    """Answer a question about an image."""
    from .ask import ask as answer

    reply = answer(image, question, checkpoint, max_new_tokens, grounding, device.value, seed)
    if as_json:
        print(json.dumps(reply.to_dict()))
    else:
        _show(reply)


def _show(reply) -> None:
    from rich.text import Text

    console = _console()
    console.print(Text(reply.question, "bold"))
    console.print(Text(reply.answer or "(an empty answer)", "bold dark_orange"))
    if not reply.complete:
        console.print(Text(f"(cut short after {reply.answer_tokens} tokens)", "dim"))
    timing = reply.timing
    facts = [
        f"loaded in {_seconds(timing.load_s)}",
        f"first token after {_seconds(timing.first_token_s)}",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {_seconds(timing.total_s)}",
        *([f"{timing.tokens_per_s:.0f} tokens/s"] if timing.tokens_per_s else []),
        f"{reply.device}, {reply.dtype}",
    ]
    console.print(Text(" · ".join(facts), "dim"))
    if reply.grounding is not None:
        console.print(Text(f"where it comes from: {reply.grounding.picture}", "dim"))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


class Mode(StrEnum):
    coarse_only = "coarse_only"
    coarse_fine = "coarse_fine"
    autoregressive = "autoregressive"


@app.command()
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
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sample the answer, with this seed. Default: the most likely words, no chance."),
    ] = None,
) -> None:
    """Answer a question about a video, with one visual token for each frame."""
    from .watch import watch as answer

    reply = answer(video, question, model, mode and mode.value, frames, max_new_tokens, attention, device.value, seed)
    if as_json:
        print(json.dumps(reply.to_dict()))
    else:
        _show_watched(reply)


def _show_watched(reply) -> None:
    from rich.text import Text

    console = _console()
    console.print(Text(reply.question, "bold"))
    console.print(Text(reply.answer or "(an empty answer)", "bold dark_orange"))
    if not reply.complete:
        console.print(Text(f"(cut short after {reply.answer_tokens} tokens)", "dim"))
    facts = [
        f"loaded in {_seconds(reply.timing.load_s)}",
        f"{reply.frames} frames looked at in {_seconds(reply.look_s)} ({reply.mode})",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {_seconds(reply.timing.total_s)}",
        f"{reply.device}, {reply.dtype}",
    ]
    console.print(Text(" · ".join(facts), "dim"))
    if reply.attention is not None:
        console.print(Text(f"where it looked: {reply.attention}", "dim"))


@evaluations.command("tiny")
def eval_tiny(checkpoint: Checkpoint = None, as_json: AsJson = False, device: OnDevice = Device.auto) -> None:
    """Grounded questions over handwritten digits: accuracy per kind beside its baselines, and where the model looks."""
    from .checkpoint import check_files, choose_device, locate, quiet

    folder, place = locate(checkpoint), choose_device(device.value)
    check_files(folder)
    try:
        from .evaluate.tiny import evaluate_tiny, print_report
    except ModuleNotFoundError as error:
        raise Failure(f"eval tiny needs {error.name}; pip install 'firebolt-vl[train]'") from None
    try:
        with quiet():
            report = evaluate_tiny(folder, device=place)
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(f"checkpoint {folder} cannot be evaluated: {first_line(error)}") from None
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)


@benchmarks.command("compile")
def bench_compile(
    op: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this op; may be repeated.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="CHIP", help="Only sm_80, sm_90, sm_100 or gfx942; may be repeated.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="DTYPE", help="Only float32, float16 or bfloat16; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, float32 and bfloat16: minutes.")] = False,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many at a time. Default: one for each core.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the report: FILE.md as tables, FILE.json as data.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel for sm_80, sm_90, sm_100 and gfx942, without a GPU: registers, spills, shared memory.

    Exit code 1 where something does not compile, spills, needs too much or has a dot without tensor cores.
    """
    from .bench_commands import compile_report

    compile_report(op, target, dtype, quick, processes, out, as_json)


@benchmarks.command("kernels")
def bench_kernels(
    op: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this op, or cmm, the whole layer; may be repeated.")
    ] = None,
    device: OnDevice = Device.auto,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Default: float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="forward, backward or both together. Default: each of the three.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where kernels.csv and the plots go.")] = "out/bench",
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, each of them for a short time.")] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads on a CPU.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time the ops: the definition, torch.compile of it and ours; GB/s, share of a copy, peak memory.

    Exit code 1 where an op is not within its error budget: then no speed-up is told.
    """
    from .bench_commands import kernel_benchmarks

    kernel_benchmarks(op, device.value, dtype, mode, out, quick, threads, as_json)


@benchmarks.command("crossover")
def bench_crossover(
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32 or float64.")] = "float32",
    seconds: Annotated[float, typer.Option(metavar="S", help="Time for each algorithm and size.")] = 0.1,
    longest: Annotated[int, typer.Option(metavar="L", min=16, help="The longest convolution.")] = 8192,
) -> None:
    """Time the three convolution algorithms of the CPU path: where each of them is the fastest."""
    from .bench_commands import crossover

    crossover(dtype, seconds, longest)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, devices, and which implementation each op takes on each of them."""
    from .info import collect, show

    found = collect()
    if as_json:
        print(json.dumps(found))
    else:
        show(found, _console())


def _console():
    from rich.console import Console

    return Console(soft_wrap=True)


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; whatever goes wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no emoji shows a question mark
            stream.reconfigure(errors="replace")
    try:
        return app(arguments or ["--help"], prog_name="firebolt", standalone_mode=False) or 0
    except Failure as error:
        message, code = str(error), error.exit_code
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "firebolt")
        message, code = f"{error.format_message().rstrip('.')}; see {command} --help", error.exit_code
    except typer.Abort:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter says so again at its end
        return 1
    except Exception as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        message = f"unexpected {type(error).__name__}: {error} (FIREBOLT_TRACEBACK=1 shows where; please report it)"
        code = 1
    print(f"firebolt: {' '.join(message.split())}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run(sys.argv[1:]))
