"""`firebolt data`, `firebolt train` and `firebolt ablate`: what was asked for, checked; the work; what came of it."""

import json
import os
import sys
from pathlib import Path

from .errors import Failure, Misuse, first_line, told

SHOWN = 100


def check_data(
    files: list[str],
    image_root: str | None,
    checkpoint: str | None,
    max_length: int | None,
    preferences: bool,
    as_json: bool,
) -> None:
    """Read every row and open every image and video; exit code 1 where a row is bad."""
    from .model.foveated import read_video
    from .train.data import Conversations

    if max_length is not None and checkpoint is None:
        raise Misuse(f"--max-length {max_length}: tokens are a tokenizer's; name its --checkpoint too")
    tokenizer = _tokenizer(checkpoint) if checkpoint else None
    try:
        found = Conversations(
            [Path(file) for file in files],
            tokenizer,
            image_root=Path(image_root) if image_root else None,
            max_length=max_length,
            max_bad_share=1.0,
            check_images=True,
            read_video=lambda file: read_video(file).frames,
            preferences=preferences,
            report=_tell(as_json),
        ).problems
    except ValueError as error:
        raise Failure(str(error)) from None
    _conclude(found, as_json, f"{found.rows} rows, all good")


def convert_data(name: str, file: str, out: str, images: str | None, pattern: str | None, as_json: bool) -> None:
    from .train.data.convert import FORMATS, READ_ERRORS, convert

    if name not in FORMATS:
        raise Misuse(f"{name}: no such format; choose from {', '.join(FORMATS)}")
    options = {"pattern": pattern} if pattern is not None else {}
    if options and name != "cc3m":
        raise Misuse(f"--pattern {pattern}: only the images of cc3m are named by one")
    source = Path(file)
    if not source.is_file():
        raise Misuse(f"{file}: there is no such file")
    try:
        found = convert(name, source, Path(out), Path(images or source.parent), report=_tell(as_json), **options)
    except READ_ERRORS as error:
        raise Failure(f"{file} cannot be converted: {first_line(error)}") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Failure(f"{file} is not in the format of {name}: {type(error).__name__} {first_line(error)}") from None
    if found.rows == len(found):
        raise Failure(f"{file}: none of its {found.rows} rows could be converted")
    _show(found, as_json, f"{found.rows - len(found)} rows: {out}")


def _tell(as_json: bool):
    """Prints the first hundred bad rows as they are found."""
    shown = 0

    def tell(problem) -> None:
        nonlocal shown
        shown += 1
        if as_json:
            return
        if shown <= SHOWN:
            print(problem)
        elif shown == SHOWN + 1:
            print("(and more: --json lists them all)")

    return tell


def _show(found, as_json: bool, well: str) -> None:
    if as_json:
        listed = [vars(problem) for problem in found]
        print(json.dumps({"rows": found.rows, "bad": len(found), "by_kind": found.by_kind, "problems": listed}))
        return
    print(well)
    if len(found):
        print(found.summary(), file=sys.stderr)


def _conclude(found, as_json: bool, well: str) -> None:
    if as_json or not len(found):
        _show(found, as_json, well)
    if len(found):
        raise Failure(found.summary())


def _tokenizer(checkpoint: str):
    from .checkpoint import files_checked, locate, quiet
    from .model.loading import load_tokenizer

    folder = locate(checkpoint)
    try:
        with quiet(), files_checked():
            return load_tokenizer(folder)
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"checkpoint {folder} has no tokenizer that can be loaded: {told(error)}") from None


def train(name: str, overrides: list[str], out: str | None, resume: bool) -> None:
    """Exit code 2 for what the configuration has wrong, 1 for what goes wrong later."""
    try:
        from .train.config import ConfigError, load_config
        from .train.start import is_first_process, leave_others, out_folder
        from .train.start import train as start
    except ModuleNotFoundError as error:
        raise Failure(f"train needs {error.name}; pip install 'firebolt-vl[train]'") from None
    from .checkpoint import quiet

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    try:
        config = load_config(name, overrides)
        with quiet():
            folder = start(config, out, resume, note, note)
    except ConfigError as error:
        raise Misuse(str(error)) from None
    except (RuntimeError, ValueError, OSError) as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        raise Failure(f"{out_folder(config, out)}: {first_line(error)}") from None
    finally:
        leave_others()
    if is_first_process():
        print(folder / "model.safetensors")


def ablate(tables: list[str], seeds: int, out: str, quick: bool, processes: int | None) -> None:
    from .bench_commands import chosen, command_line
    from .checkpoint import locate

    try:
        from .train.ablation.report import write_report
        from .train.ablation.runs import fill_pool, missing
        from .train.ablation.task import Settings
        from .train.ablation.variants import TABLES, variants_of
    except ModuleNotFoundError as error:
        raise Failure(f"ablate needs {error.name}; pip install 'firebolt-vl[train]'") from None
    wanted = chosen("table", None if tables in ([], ["all"]) else tables, tuple(TABLES))
    settings = Settings.quick() if quick else Settings()
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"--out {out}: it is a file; name a folder")
    if quick:
        seeds = 1
    names = variants_of(wanted)
    left = len(missing(folder, names, seeds, settings))
    print(f"{len(names)} configurations x {seeds} seeds: {left} runs to do, the others are there", file=sys.stderr)
    done = 0

    def report(name: str, seed: int, row: dict) -> None:
        nonlocal done
        done += 1
        right = row["accuracy"].get("inside", {}).get("all", 0)
        print(
            f"{done} of {left}: {name}, seed {seed}: {100 * right:.1f} % inside the tiles, "
            f"perplexity {row['perplexity']:.3f}, {row['seconds']:.0f} s",
            file=sys.stderr,
        )
        # What is stopped on the way leaves tables of all that is there.
        write_report(folder, wanted, seeds, settings, command_line())

    try:
        fill_pool(folder, names, seeds, settings, locate(None), processes or max(1, (os.cpu_count() or 1)), report)
        print(write_report(folder, wanted, seeds, settings, command_line()))
    except (OSError, RuntimeError) as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        raise Failure(f"{out}: {first_line(error)}; the finished runs are kept") from None
