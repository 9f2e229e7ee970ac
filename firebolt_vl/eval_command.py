"""The commands of `firebolt eval`: their options and help."""

import json
from typing import Annotated

import typer

from .errors import Failure, Misuse, told
from .evaluate.benchmarks import IMAGE_BENCHMARKS, VIDEO_BENCHMARKS
from .options import AsJson, Checkpoint, Device, OnDevice

evaluations = typer.Typer(help="Measure a model on a benchmark, or on questions of your own.")

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH_OR_ID",
        help="JSON lines, VLMEvalKit's TSV, parquet, a saved `datasets` folder; or ORG/NAME, which is fetched.",
    ),
]
Out = Annotated[str, typer.Option("--out", metavar="DIR", help="Where predictions, scores and tables go.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows.")]
Part = Annotated[
    str | None,
    typer.Option("--shard", metavar="i/n", help="Only every n-th row from row i on; `eval score` joins parts."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Questions at a time.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="The longest answer.")]

BadShare = Annotated[
    float,
    typer.Option("--max-bad-share", metavar="S", min=0, max=1, help="Of rows that cannot be used: more stop the run."),
]


def _add(name: str, words: str) -> None:
    """Add the command of a benchmark."""

    @evaluations.command(name, help=words)
    def run(
        data: Data,
        checkpoint: Checkpoint = None,
        out: Out = "out/eval",
        limit: Limit = None,
        shard: Part = None,
        batch_size: BatchSize = 8,
        max_new_tokens: Tokens = 16,
        max_bad_share: BadShare = 0.01,
        device: OnDevice = Device.auto,
        as_json: AsJson = False,
    ) -> None:
        from .eval_commands import evaluate_benchmark

        model = {"checkpoint": checkpoint, "device": device.value, "max_new_tokens": max_new_tokens}
        options = {"batch_size": batch_size, "max_bad_share": max_bad_share, "limit": limit}
        evaluate_benchmark(name, data, out, shard, as_json, model, **options)


def _add_videos(name: str, words: str) -> None:
    """Add the command of a benchmark of videos."""

    @evaluations.command(name, help=words)
    def run(
        data: Data,
        checkpoint: Annotated[
            str,
            typer.Option("--checkpoint", metavar="DIR_OR_ID", help="A foveated model: a folder, or an id."),
        ],
        video_root: Annotated[
            str | None, typer.Option(metavar="DIR", help="Where the videos lie. Default: the folder of the data.")
        ] = None,
        frames: Annotated[
            int | None, typer.Option(metavar="N", min=1, help="Of a video. Default: one a second, at most 64.")
        ] = None,
        out: Out = "out/eval",
        limit: Limit = None,
        shard: Part = None,
        max_new_tokens: Tokens = 16,
        max_bad_share: BadShare = 0.01,
        device: OnDevice = Device.auto,
        as_json: AsJson = False,
    ) -> None:
        from .eval_commands import evaluate_benchmark

        model = {"checkpoint": checkpoint, "device": device.value, "max_new_tokens": max_new_tokens}
        videos = {"root": video_root, "frames": frames}
        options = {"batch_size": 1, "max_bad_share": max_bad_share, "limit": limit}
        evaluate_benchmark(name, data, out, shard, as_json, model, videos, **options)


for _benchmark in VIDEO_BENCHMARKS:
    _add_videos(_benchmark.name, f"{_benchmark.title} with a foveated model: by letter, and by the lowest loss.")
for _benchmark in IMAGE_BENCHMARKS:
    _add(_benchmark.name, f"{_benchmark.title}: its questions answered, its scores. A stopped run goes on.")
_add("all", "All benchmarks that --data, a folder, has a file or folder for: pope.jsonl, mmbench.tsv, mmmu/ ...")


@evaluations.command("own")
def eval_own(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", help="Rows with image, question, answer or answers.")],
    checkpoint: Checkpoint = None,
    out: Out = "out/eval",
    limit: Limit = None,
    shard: Part = None,
    batch_size: BatchSize = 8,
    max_new_tokens: Tokens = 32,
    max_bad_share: BadShare = 0.01,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, max=30, help="Draw the N worst answers to own.worst.png.")
    ] = 0,
    device: OnDevice = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Questions of your own: exact match, F1, ANLS by `kind`, beside the majority's answer and another image.

    Rows are as for training, or {"image", "question", "answer" or "answers"}; with a "box" [x0, y0, x1, y1] in pixels,
    where the answer is to be seen, the grounding is measured too.
    """
    from .eval_commands import evaluate_own_questions

    model = {"checkpoint": checkpoint, "device": device.value, "max_new_tokens": max_new_tokens}
    options = {"batch_size": batch_size, "max_bad_share": max_bad_share, "limit": limit}
    evaluate_own_questions(file, out, shard, as_json, worst, model, **options)


@evaluations.command("score")
def eval_score(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="NAME.predictions.jsonl, one or its parts.")],
    as_json: AsJson = False,
) -> None:
    """Compute the scores of predictions again, without a model."""
    from .eval_commands import score_files

    score_files(files, as_json)


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


@evaluations.command("screens")
def eval_screens(
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="DIR_OR_ID", help="A model that reads: `firebolt train screens`.")
    ],
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=8, help="Of each split, at least 8.")] = 160,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="Measure tesseract or rapidocr beside it, where installed."),
    ] = None,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
) -> None:
    """Questions about tickets, boards, lists, forms, chats and charts: answers that are read, and where they stand.

    Exact match and character error rate by kind, on training's fonts and layouts, on held-out ones, on sizes and noise
    beyond, in known and held-out wordings; beside the commonest answer, another scene's image, and an engine that is
    told where the answer stands.
    """
    from .checkpoint import check_files, choose_device, locate, quiet
    from .evaluate.screens.engines import ENGINES, open_engine
    from .evaluate.screens.report import evaluate_screens, print_report
    from .progress import progress_bar

    if engine is not None and engine not in ENGINES:
        raise Misuse(f"--engine is {engine}; expected one of {', '.join(ENGINES)}")
    folder, place = locate(checkpoint), choose_device(device.value)
    check_files(folder)
    try:
        if engine is not None:
            open_engine(engine)
    except ValueError as error:
        raise Failure(str(error)) from None
    try:
        with quiet(), progress_bar("examining") as progress:
            report = evaluate_screens(folder, scenes, engine=engine, device=place, progress=progress)
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(f"checkpoint {folder} cannot be evaluated: {told(error)}") from None
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
