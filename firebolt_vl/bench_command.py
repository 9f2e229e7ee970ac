"""The commands of `firebolt bench`: their options and help."""

from typing import Annotated

import typer

from .options import AsJson, Checkpoint, Device, Dtypes, OnDevice, Ops, Overwrite, Processes, Quick, ReportFile

benchmarks = typer.Typer(help="Measure the kernels, and compile them for GPUs that need not be there.")


@benchmarks.command("compile")
def bench_compile(
    op: Ops = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CHIP", help="Only sm_80, sm_90, sm_100, sm_120, gfx942 or gfx950; may be repeated."),
    ] = None,
    dtype: Dtypes = None,
    quick: Quick = False,
    in_turn: Annotated[
        bool,
        typer.Option("--in-turn", help="Each for one chip of NVIDIA and one of AMD, in turn: a third of the time."),
    ] = False,
    processes: Processes = None,
    out: ReportFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel for sm_80 to sm_120, gfx942 and gfx950, without a GPU: registers, spills, shared memory.

    Exit code 1 where something does not compile, spills, needs too much or has a dot without tensor cores.
    """
    from .bench_commands import compile_report

    compile_report(op, target, dtype, quick, in_turn, processes, out, as_json, overwrite)


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
