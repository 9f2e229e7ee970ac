"""The `firebolt` command. Only what a command needs is imported, and only when it runs: the help is there at once."""

import json
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .errors import Failure, Interrupted, Misuse, disk_failure, told

app = typer.Typer(
    help="Firebolt-VL: ask an image a question, and see where the answer comes from.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluations = typer.Typer(help="Measure a model on a benchmark.")
app.add_typer(evaluations, name="eval")
benchmarks = typer.Typer(help="Measure the kernels, and compile them for GPUs that need not be there.")
app.add_typer(benchmarks, name="bench")
data = typer.Typer(help="Check training data, and make it from what others release.")
app.add_typer(data, name="data")


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


@app.command()
def ask(
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="An image file.")] = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="QUESTIONS.jsonl",
            help='Answer many questions, one JSON object a line: {"image": "a.png", "question": "...", "id": ...}. '
            "image may be a list, or absent in a question about none; it is looked for beside the file. id is the "
            "line number by default.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="ANSWERS.jsonl",
            help="Where the answers of --batch go. Started again after any kind of end, it answers what is not there.",
        ),
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Go on in a file with answers of another model or of other settings.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many questions of --batch at a time. Default: 8.")
    ] = None,
    checkpoint: Checkpoint = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The answer's longest length in tokens.")] = 128,
    grounding: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.png",
            help="Write a picture of what the answer rests on, and of what each word of the question weighed.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sample the answer, with this seed. Default: the most likely words, no chance."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="auto is the checkpoint's, on a CPU float32 where that is faster (firebolt info).")
    ] = Dtype.auto,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Weights in 8 bits: several times faster on a CPU, answers may differ.")
    ] = None,
    compile_step: Annotated[
        bool, typer.Option("--compile", help="torch.compile the generation step: the first answer waits for it.")
    ] = False,
) -> None:
    """Answer a question about an image, or with --batch many of them.

    A question may not spell the model's control tokens (such as <|im_end|>): it would forge turns, and is refused.
    """
    how = {"checkpoint": checkpoint, "max_new_tokens": max_new_tokens, "device": device.value, "seed": seed}
    how |= {"dtype": dtype.value, "quantize": quantize and quantize.value, "compile_step": compile_step}
    if batch is not None:
        for name, value in {"IMAGE": image, "--grounding": grounding, "--overwrite": overwrite or None}.items():
            if value is not None:
                raise Misuse(f"{name} does not go with --batch; leave one of them out")
        if out is None:
            raise Misuse("--batch needs --out ANSWERS.jsonl, where the answers go")
        _ask_many(batch, out, batch_size or 8, as_json, {**how, "mixed": mixed})
        return
    for name, value in {"--out": out, "--batch-size": batch_size, "--mixed": mixed or None}.items():
        if value is not None:
            raise Misuse(f"{name} goes with --batch alone; leave it out")
    for name, value in {"IMAGE": image, "QUESTION": question}.items():
        if value is None:
            raise Misuse(f"Missing argument '{name}'; see firebolt ask --help")
    from .ask import ask as answer

    how |= {"grounding": grounding, "overwrite": overwrite, "note": _note}
    if as_json:
        print(json.dumps(answer(image, question, **how).to_dict()))
        return
    speech = _Speech(question)
    # With a picture to follow nothing is said before all is done: where the picture fails there is no answer.
    speech.conclude(answer(image, question, say=None if grounding else speech, **how))


def _note(text: str) -> None:
    print(f"firebolt: {text}", file=sys.stderr, flush=True)


class _Speech:
    """An answer on the terminal while it is being made: nothing is printed before its first piece is there."""

    def __init__(self, question: str):
        self.console, self.question, self.begun = _console(), question, False

    def __call__(self, piece: str) -> None:
        from rich.text import Text

        if not self.begun:
            self.console.print(Text(self.question, "bold"))
        self.begun = True
        self.console.print(Text(piece, "bold dark_orange"), end="")

    def conclude(self, reply) -> None:
        self.question = reply.question
        if not self.begun:
            self(reply.answer or "(an empty answer)")
        self.console.print()
        _show_reply(reply, self.console)


def _ask_many(batch: str, out: str, batch_size: int, as_json: bool, how: dict) -> None:
    from .batch import answer_file
    from .progress import progress_bar

    def report(problem: str) -> None:
        print(problem, file=sys.stderr, flush=True)

    with progress_bar("answering") as progress:
        done = answer_file(batch, out, batch_size=batch_size, progress=progress, report=report, **how)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        rate = f", {done.tokens / done.seconds:.0f} tokens/s" if done.tokens else ""
        print(
            f"{out}: {done.answered} answered in {_seconds(done.seconds)}{rate}, {done.before} were there before, "
            f"{done.bad} could not be answered"
        )
    if done.bad:
        raise Failure(f"{done.bad} of {done.questions} questions could not be answered; see {done.problems}")


def _show_reply(reply, console) -> None:
    timing = reply.timing
    _show_doubts(reply, console)
    facts = [
        *([f"probability {_percent(reply.probability)}"] if reply.probability is not None else []),
        f"loaded in {_seconds(timing.load_s)}",
        f"first token after {_seconds(timing.first_token_s)}",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {_seconds(timing.total_s)}",
        *([f"{timing.tokens_per_s:.0f} tokens/s"] if timing.tokens_per_s else []),
        f"{reply.device}, {', '.join(filter(None, (reply.dtype, reply.quantize)))}",
    ]
    picture = None if reply.grounding is None else f"where it comes from: {reply.grounding.picture}"
    _show_facts(reply, facts, picture, console)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share < 0.995 else "over 99 %"


def _show_doubts(reply, console) -> None:
    from rich.text import Text

    for doubt in reply.doubts:
        console.print(Text(f"a guess: {doubt}", "yellow"))
    if reply.knows is not None:
        console.print(Text(f"(the small model {Path(reply.checkpoint).name}: {reply.knows})", "dim"))


def _show_facts(reply, facts: list[str], picture: str | None, console) -> None:
    """What stands under an answer."""
    from rich.text import Text

    if not reply.complete:
        console.print(Text(f"(cut short after {reply.answer_tokens} tokens)", "dim"))
    console.print(Text(" · ".join(facts), "dim"))
    if picture is not None:
        console.print(Text(picture, "dim"))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


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
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint of the original Firebolt-VL anew as one of ours: safetensors, every key accounted for."""
    from .convert import convert as write_anew

    done = write_anew(source, out, kernel_taps, decoder, vision)
    if as_json:
        print(json.dumps(done.to_dict()))
        return
    print(f"{done.out}: {done.parameters:,} parameters, {done.dtype}, {done.ssm}, kernel taps {done.kernel_taps}")
    print(f"{done.keys} keys: {done.used} used, {len(done.dead)} without influence and left out")
    for key in done.dead:
        print(f"  {key}")


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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
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
        note=_note,
    )
    if as_json:
        print(json.dumps(reply.to_dict()))
    else:
        _show_watched(reply)


def _show_watched(reply) -> None:
    from rich.text import Text

    console = _console()
    console.print(Text(reply.question, "bold"))
    console.print(Text(reply.answer or "(an empty answer)", "bold dark_orange"))
    facts = [
        f"loaded in {_seconds(reply.timing.load_s)}",
        f"{reply.frames} frames looked at in {_seconds(reply.look_s)} ({reply.mode})",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {_seconds(reply.timing.total_s)}",
        f"{reply.device}, {reply.dtype}",
    ]
    picture = None if reply.attention is None else f"where it looked: {reply.attention}"
    _show_facts(reply, facts, picture, console)


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
    from .progress import progress_bar

    try:
        with quiet(), progress_bar("examining") as progress:
            report = evaluate_tiny(folder, device=place, progress=progress)
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(f"checkpoint {folder} cannot be evaluated: {told(error)}") from None
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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel for sm_80, sm_90, sm_100 and gfx942, without a GPU: registers, spills, shared memory.

    Exit code 1 where something does not compile, spills, needs too much or has a dot without tensor cores.
    """
    from .bench_commands import compile_report

    compile_report(op, target, dtype, quick, processes, out, as_json, overwrite)


@benchmarks.command("emulate")
def bench_emulate(
    op: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this op; may be repeated.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="CHIP", help="sm_80 (default), sm_90 or sm_100; may be repeated.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="DTYPE", help="Only float32, float16 or bfloat16; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, float32 and bfloat16: minutes.")] = False,
    mutate: Annotated[
        bool, typer.Option("--mutate", help="Also put mistakes into the kernels and count which are found: an hour.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of inputs and of the order of programs.")] = 0,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many at a time. Default: one for each core.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the report: FILE.md as tables, FILE.json as data.")
    ] = None,
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
    """Time the ops: the definition, torch.compile of it and ours; GB/s, share of a copy, peak memory.

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


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="stage1, stage2, lora or tiny, or a TOML or YAML file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of it to set, such as max_steps=100.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the model and everything else goes. Default: its key out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")] = False,
) -> None:
    """Train a model: the paper's two stages, adapters, or the small model inside the package."""
    from .train_commands import train as start

    start(config, overrides or [], out, resume)


@app.command()
def ablate(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help="ssm, connector, top-k, fusion, positions, or all (the default)."),
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
    """Train the variants of the model that the paper compares on the handwriting task, and write the tables.

    Each finished run is kept, and not run again: the pool can be filled over several sittings.
    """
    from .train_commands import ablate as start

    start(tables or [], seeds, out, quick, processes)


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
        code = app(arguments or ["--help"], prog_name="firebolt", standalone_mode=False) or 0
        sys.stdout.flush()  # what is written to a full disk fails here, and not when nobody can tell it any more
        if code != Interrupted.exit_code:  # typer makes it of Ctrl-C
            return code
        message = f"stopped; {kept_by(arguments)}"
    except Failure as error:
        message, code = str(error), error.exit_code
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "firebolt")
        text = error.format_message().rstrip(".").replace("Value error, ", "")
        message, code = f"{with_value(text, arguments)}; see {command} --help", error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        message, code = f"stopped; {kept_by(arguments)}", Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter says so again at its end
        return 1
    except Exception as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        known = disk_failure(error) if isinstance(error, OSError) else None
        where = "(FIREBOLT_TRACEBACK=1 shows where; please report it)"
        message, code = str(known or f"unexpected {type(error).__name__}: {error} {where}"), 1
    print(f"firebolt: {' '.join(message.split())}", file=sys.stderr)
    return code


def with_value(message: str, arguments: list[str]) -> str:
    """A complaint about an option with the value that came, which it may leave out."""
    named = re.search(r"Invalid value for '(--[\w-]+)'", message)
    if named is None or named[1] not in arguments[:-1]:
        return message
    value = arguments[arguments.index(named[1]) + 1]
    return message if value in message else message.replace(named[1], f"{named[1]} {value}", 1)


# What is left of a command that is stopped and does not say so itself, more exactly, by Interrupted; and how to go on.
KEPT = {
    ("ask", "--batch"): "the answers in --out are kept; the same command goes on with the other questions",
    ("ask",): "nothing was written; ask again",
    ("watch",): "nothing was written; ask again",
    ("convert",): "nothing is left of the new folder; start again",
    ("eval",): "nothing was kept of it; start again",
    ("bench", "kernels"): "what was measured of whole ops is in --out; --op NAME measures the others",
    ("bench",): "nothing was kept of it; start again",
    ("train",): "the last checkpoint in --out is kept; the same command with --resume goes on from it",
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
    sys.exit(run(sys.argv[1:]))
