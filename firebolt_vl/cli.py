"""The `firebolt` command. Only what a command needs is imported, and only when it runs: the help is there at once."""

import json
import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .ask_command import ask
from .bench_command import benchmarks
from .demo_command import demo
from .errors import Failure, Interrupted, Misuse, disk_failure
from .eval_command import evaluations
from .options import AsJson, Checkpoint, ExportFor
from .serve_command import serve
from .shown import new_console, note
from .starting import begin_command, end_command
from .train_command import ablate, adapters, data, train
from .usage import complaint
from .watch_command import watch

app = typer.Typer(
    help="Firebolt-VL: ask an image a question, and see where the answer comes from.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(evaluations, name="eval")
app.add_typer(benchmarks, name="bench")
app.add_typer(data, name="data")
app.add_typer(adapters, name="adapters")


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"firebolt {__version__}")
        raise typer.Exit


@app.callback()
def firebolt(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and nothing else.")
    ] = False,
) -> None:
    """Firebolt-VL: ask an image a question, and see where the answer comes from."""


app.command()(ask)


@app.command()
def export(
    engine: Annotated[
        ExportFor, typer.Argument(help="The engine that is to run it; page: a browser; kernels: the hub's library.")
    ],
    out: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")],
    checkpoint: Checkpoint = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="8|4", help="For onnx: weights in so many bits, by blocks; else float32.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="For executorch: rows that are read at a time. Default: 1.", show_default=False
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_DIR",
            help="For page: a copy of onnxruntime-web (npm's archive, its package, another page). Default: fetched.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as graphs that need no PyTorch (firebolt ask --engine), as a page that answers in the browser,
    or the kernels.

    For executorch: one program, for a fixed batch and 512 tokens of prompt and answer at most."""
    if runtime is not None and engine is not ExportFor.page:
        raise Misuse(f"--runtime is {runtime} with {engine.value}, which takes none; leave it out")
    if batch is not None and engine in (ExportFor.page, ExportFor.kernels):
        raise Misuse(f"--batch is {batch} with {engine.value}; expected executorch, or leave it out")
    if engine is ExportFor.page:
        if bits is not None:
            raise Misuse(f"--bits is {bits} with page, whose weights are float32; leave it out")
        _export_page(out, checkpoint, runtime, as_json)
        return
    if engine is ExportFor.kernels:
        if bits is not None:
            raise Misuse(f"--bits is {bits} with kernels, which have no weights; leave it out")
        _export_kernels(out, checkpoint, as_json)
        return
    from .export import export as write_graphs

    done = write_graphs(engine.value, out, checkpoint, bits, batch)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        print(
            f"{out}: {len(done.files)} files, {done.bytes / 2**20:.1f} MiB; firebolt ask --engine {engine.value} "
            f"--checkpoint {out} IMAGE QUESTION"
        )


def _export_page(out: str, checkpoint: str | None, runtime: str | None, as_json: bool) -> None:
    from .browser import export_page

    page = export_page(out, checkpoint, runtime, note)
    if as_json:
        print(json.dumps(page.to_dict()))
    else:
        print(
            f"{out}: {page.files} files, {page.bytes / 2**20:.1f} MiB, for any server of files; to see it: "
            f"python -m http.server --bind 127.0.0.1 --directory {out}, then http://localhost:8000"
        )


def _export_kernels(out: str, checkpoint: str | None, as_json: bool) -> None:
    if checkpoint is not None:
        raise Misuse(f"--checkpoint is {checkpoint} with kernels, which belong to none; leave it out")
    from .hub_kernels import export_kernels

    built = export_kernels(out)
    if as_json:
        print(json.dumps(built.to_dict()))
    else:
        print(
            f"{out}: {', '.join(built.builds)}, {built.bytes / 2**20:.1f} MiB; "
            f'kernels.get_local_kernel(pathlib.Path("{out}")) loads it'
        )


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint of the original Firebolt-VL.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for the converted one.")],
    kernel_taps: Annotated[
        int | None,
        typer.Option(metavar="N", help="512 truncates S4's kernel as the original does. Default: as long as the text."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="Where the decoder's configuration is, if DIR is wrong there."),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="Where the encoder's configuration is, if DIR is wrong there."),
    ] = None,
    insert: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="V2 only: prepend, or mean_at_token. Default: by its image token."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint of the original Firebolt-VL anew as one of ours: safetensors, every key accounted for."""
    from .convert import convert as write_anew

    done = write_anew(source, out, kernel_taps, decoder, vision, insert)
    if as_json:
        print(json.dumps(done.to_dict()))
        return
    placed = f"kernel taps {done.kernel_taps}" + (f", insert {done.insert}" if done.insert else "")
    print(f"{done.out}: {done.parameters:,} parameters, {done.dtype}, {done.ssm}, {placed}")
    print(f"{done.keys} keys: {done.used} used, {len(done.dead)} without influence and left out")
    for key in done.dead:
        print(f"  {key}")


app.command()(watch)
app.command()(demo)
app.command()(serve)


app.command()(train)
app.command()(ablate)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, devices, and which implementation each op takes on each of them."""
    from .info import collect, show

    found = collect()
    if as_json:
        print(json.dumps(found))
    else:
        show(found, new_console())


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; whatever goes wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no emoji shows a question mark
            stream.reconfigure(errors="replace")
    try:
        code = app(arguments or ["--help"], prog_name="firebolt", standalone_mode=False) or 0
        sys.stdout.flush()  # what is written to a full disk fails here, and not when nobody can tell it any more
        if code != Interrupted.exit_code:  # typer makes it of Ctrl-C
            return code
        message = f"stopped; {kept_by(arguments)}"
    except Failure as error:
        message, code = str(error), error.exit_code
    except TyperException as error:
        message, code = complaint(error, arguments), error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        message, code = f"stopped; {kept_by(arguments)}", Interrupted.exit_code
    except BrokenPipeError:
        _drop_what_stdout_holds()
        return 1
    except Exception as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        known = disk_failure(error) if isinstance(error, OSError) else None
        where = "(FIREBOLT_TRACEBACK=1 shows where; please report it)"
        message, code = str(known or f"unexpected {type(error).__name__}: {error} {where}"), 1
    try:
        sys.stdout.flush()
    except OSError:  # a full disk behind it, which the message tells of
        _drop_what_stdout_holds()
    print(f"firebolt: {' '.join(message.split())}", file=sys.stderr)
    return code


def _drop_what_stdout_holds() -> None:
    """Let what is still to be written to stdout go nowhere, or the interpreter fails with it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# What is left of a command that is stopped and does not say so itself, more exactly, by Interrupted; and how to go on.
KEPT = {
    ("ask", "--batch"): "the answers in --out are kept; the same command goes on with the other questions",
    ("ask",): "nothing was written; ask again",
    ("watch",): "nothing was written; ask again",
    ("export",): "nothing is left of the new folder; start again",
    ("demo",): "the page is closed",
    ("serve",): "nothing was being answered yet; start it again",
    ("convert",): "nothing is left of the new folder; start again",
    ("eval", "tiny"): "nothing was kept of it; start again",
    ("eval", "screens"): "nothing was kept of it; start again",
    ("eval", "score"): "nothing was written; start again",
    ("eval",): "the predictions in --out are kept; the same command goes on with the other questions",
    ("bench", "kernels"): "what was measured of whole ops is in --out; --op NAME measures the others",
    ("bench", "gpu-day"): "the finished steps in --out are kept; the same command goes on with the others",
    ("bench",): "nothing was kept of it; start again",
    ("train",): "the last checkpoint in --out is kept; the same command with --resume goes on from it",
    ("adapters",): "nothing is left of the new folder; start again",
    ("ablate",): "the finished runs in --out are kept; the same command goes on with the others",
    ("data", "convert"): "nothing was written; start again",
    ("data",): "nothing was written; start again",
}


def kept_by(arguments: list[str]) -> str:
    for words, kept in KEPT.items():
        if arguments[:1] == [words[0]] and set(words) <= set(arguments):
            return kept
    return "nothing was written"


def main() -> None:
    begin_command()
    code = run(sys.argv[1:])
    end_command()
    sys.exit(code)
