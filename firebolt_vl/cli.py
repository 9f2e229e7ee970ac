"""The `firebolt` command. Only what a command needs is imported, and only when it runs: the help is there at once."""

import json
import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .ask_command import ask
from .demo_command import demo
from .errors import Failure, Interrupted, Misuse, disk_failure
from .eval_command import evaluations
from .options import (
    AsJson,
    Checkpoint,
    Device,
    Dtypes,
    ExportFor,
    OnDevice,
    Ops,
    Overwrite,
    Processes,
    Quick,
    ReportFile,
)
from .serve_command import serve
from .shown import new_console
from .starting import begin_command, end_command
from .usage import complaint
from .watch_command import watch

app = typer.Typer(
    help="Firebolt-VL: ask an image a question, and see where the answer comes from.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(evaluations, name="eval")
benchmarks = typer.Typer(help="Measure the kernels, and compile them for GPUs that need not be there.")
app.add_typer(benchmarks, name="bench")
data = typer.Typer(help="Check training data, and make it from what others release.")
app.add_typer(data, name="data")
adapters = typer.Typer(help="Adapters (peft) that a training wrote.")
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
    engine: Annotated[ExportFor, typer.Argument(help="The engine that is to run it; kernels: the hub's library.")],
    out: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")],
    checkpoint: Checkpoint = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="8|4", help="For onnx: weights in so many bits, by blocks; else float32.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as graphs for an engine that needs no PyTorch (firebolt ask --engine), or the kernels."""
    if engine is ExportFor.kernels:
        if bits is not None:
            raise Misuse(f"--bits is {bits} with kernels, which have no weights; leave it out")
        _export_kernels(out, checkpoint, as_json)
        return
    from .export import export as write_graphs

    done = write_graphs(engine.value, out, checkpoint, bits)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        print(
            f"{out}: {len(done.files)} files, {done.bytes / 2**20:.1f} MiB; firebolt ask --engine {engine.value} "
            f"--checkpoint {out} IMAGE QUESTION"
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


@benchmarks.command("compile")
def bench_compile(
    op: Ops = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CHIP", help="Only sm_80, sm_90, sm_100, sm_120, gfx942 or gfx950; may be repeated."),
    ] = None,
    dtype: Dtypes = None,
    quick: Quick = False,
    processes: Processes = None,
    out: ReportFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel for sm_80 to sm_120, gfx942 and gfx950, without a GPU: registers, spills, shared memory.

    Exit code 1 where something does not compile, spills, needs too much or has a dot without tensor cores.
    """
    from .bench_commands import compile_report

    compile_report(op, target, dtype, quick, processes, out, as_json, overwrite)


@benchmarks.command("predict")
def bench_predict(
    op: Ops = None,
    chip: Annotated[
        str, typer.Option(metavar="CHIP", help="h100, h200, a100, rtx4090, or mi300x, of which only bytes count.")
    ] = "h100",
    dtype: Dtypes = None,
    quick: Quick = False,
    goals: Annotated[bool, typer.Option("--goals", help="Those sizes for which there is a goal on an H100.")] = False,
    around: Annotated[
        bool, typer.Option("--around", help="Other tiles and warps than the default ones instead, as JSON.")
    ] = False,
    processes: Processes = None,
    out: ReportFile = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Say how long every op would take on a GPU that need not be there, from its compiled code, and what limits it."""
    from .without_gpu_commands import predicted_configurations, predictions

    if around:
        predicted_configurations(op, chip, dtype, quick, processes)
        return
    predictions(op, chip, dtype, quick, goals, processes, out, as_json, overwrite)


@benchmarks.command("host")
def bench_host(
    op: Ops = None,
    dtype: Dtypes = None,
    out: ReportFile = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Count the compilations that kernels need as sizes vary, and time a call's part on the CPU; no GPU is needed."""
    from .without_gpu_commands import host_costs

    host_costs(op, dtype, out, as_json, overwrite)


@benchmarks.command("emulate")
def bench_emulate(
    op: Ops = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="CHIP", help="sm_80 (default), sm_90 or sm_100; may be repeated.")
    ] = None,
    dtype: Dtypes = None,
    quick: Quick = False,
    mutate: Annotated[
        bool, typer.Option("--mutate", help="Also put mistakes into the kernels and count which are found: an hour.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of inputs and of the order of programs.")] = 0,
    processes: Processes = None,
    out: ReportFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run the compiled kernels without a GPU, in an emulator of PTX that watches every byte: errors, races, addresses.

    Exit code 1 where an error is over its budget or something is found.
    """
    from .bench_commands import emulation_report

    emulation_report(op, target, dtype, quick, mutate, seed, processes, out, as_json, overwrite)


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
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Where kernels.csv (other ops' lines in it stay) and the plots go.")
    ] = "out/bench",
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, each of them for a short time.")] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads on a CPU.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time the ops: the reference implementation, torch.compile of it and ours; GB/s, share of a copy, peak memory.

    Exit code 1 where an op is not within its error budget: then no speed-up is told.
    """
    from .bench_commands import kernel_benchmarks

    kernel_benchmarks(op, device.value, dtype, mode, out, quick, threads, as_json)


@benchmarks.command("answer")
def bench_answer(
    peers: Annotated[
        bool, typer.Option("--peers", help="Also LFM2-VL-450M and SmolVLM2 256M and 500M, built from transformers.")
    ] = False,
    device: OnDevice = Device.auto,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE", help="float32 (default; on a GPU bfloat16) or bfloat16; may be repeated."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of an answer.")] = 256,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How many answers of each, in turns.")] = 3,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads on a CPU. Default: all.")] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where answer.csv and answer.png go.")] = "out/bench",
    as_json: AsJson = False,
) -> None:
    """Time whole answers at full size, random weights: first token, tokens a second, memory; ours beside others."""
    from .bench_commands import answer_benchmark

    answer_benchmark(peers, device.value, dtype, new_tokens, rounds, only, threads, out, as_json)


@benchmarks.command("evaluation")
def bench_evaluation(
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Questions.")] = 200,
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images that they are about. Default: one for each.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Questions at a time.")] = 8,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of an answer.")] = 4,
    device: OnDevice = Device.auto,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="float32 (default; on a GPU bfloat16) or bfloat16.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads on a CPU. Default: all.")] = None,
    out: ReportFile = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time `eval pope` at full size, random weights, beside processor and `generate` alone, in turns; and its memory.

    Exit code 1 where an answer is another one.
    """
    from .evaluation_benchmark import evaluation_benchmark

    evaluation_benchmark(rows, images, batch_size, new_tokens, device.value, dtype, threads, out, as_json, overwrite)


@benchmarks.command("serve")
def bench_serve(
    checkpoint: Checkpoint = None,
    clients: Annotated[int, typer.Option(metavar="N", min=1, help="Clients that ask at the same time.")] = 64,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests for each batch size.")] = 512,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Only this batch size; may be repeated. Default: 1, 4, 8, 16."),
    ] = None,
    out: ReportFile = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Time `firebolt serve` with many clients, for each batch size: p50 and p95, tokens a second, memory.

    Exit code 1 where a request is refused.
    """
    from .serve_benchmark import serve_benchmark

    serve_benchmark(checkpoint, clients, requests, batch_size or [1, 4, 8, 16], out, as_json, overwrite)


@benchmarks.command("gpu-day")
def bench_gpu_day(
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where results go. Default: docs/gpu/ and the GPU's name.")
    ] = None,
    seconds: Annotated[int, typer.Option(metavar="N", min=30, help="How long it may take.")] = 540,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Do it without a GPU, at tiny sizes, to see that it works.")
    ] = False,
) -> None:
    """Find out all that a GPU can tell: tests, times beside others and predictions, configurations, whole answers.

    A run that is cut short keeps what is finished, and the same command goes on. Exit code 1 where a test fails or a
    result is beyond the error budget.
    """
    from .gpu_day_command import gpu_day

    gpu_day(out, seconds, rehearse)


@benchmarks.command("crossover")
def bench_crossover(
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32 or float64; on a GPU float32, float16 or bfloat16.")
    ] = "float32",
    seconds: Annotated[float, typer.Option(metavar="S", help="Time for each algorithm and size.")] = 0.1,
    longest: Annotated[int, typer.Option(metavar="L", min=16, help="The longest convolution.")] = 8192,
    device: OnDevice = Device.cpu,
) -> None:
    """Time the three convolution algorithms of a device: where each of them is the fastest."""
    from .bench_commands import crossover

    crossover(dtype, seconds, longest, device.value)


@benchmarks.command("packing")
def bench_packing(
    size: Annotated[str, typer.Option(metavar="NAME", help="The decoder: small or lfm2-350m.")] = "small",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of a micro-batch.")] = 8,
    median: Annotated[int, typer.Option(metavar="T", min=2, help="Median length of the rows in tokens.")] = 60,
    spread: Annotated[float, typer.Option(metavar="S", min=0, help="Deviation of the lengths' logarithm.")] = 0.6,
    batches: Annotated[int, typer.Option(metavar="N", min=1, max=32, help="Micro-batches that are measured.")] = 4,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time for each micro-batch and way.")] = 2.0,
    device: OnDevice = Device.cpu,
) -> None:
    """Time training steps on padded rows and on the same rows packed into one (`packing=true`), in turns."""
    from .bench_commands import packing

    packing(size, device.value, seconds=seconds, batch=batch_size, median=median, spread=spread, count=batches)


@app.command()
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


@app.command()
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
