"""Commands `firebolt data`, `firebolt train` and `firebolt ablate`: arguments checked, the work, its results shown."""

import json
import os
import shlex
import shutil
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Failure, Interrupted, Misuse, disk_failure, first_line, told

if TYPE_CHECKING:
    from .train.ablation.studies import Study

SHOWN = 100


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _plain_warnings():
    """Warnings of a run as lines, without the place in the source that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(str(message))
        yield


def check_data(
    files: list[str],
    image_root: str | None,
    checkpoint: str | None,
    max_length: int | None,
    preferences: bool,
    as_json: bool,
) -> None:
    """Read every row and open every image and video; exit code 1 where a row is bad."""
    from .model.video import read_video
    from .train.data import Conversations

    if max_length is not None and checkpoint is None:
        raise Misuse(f"--max-length is {max_length}, but only a tokenizer can count tokens; name one with --checkpoint")
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


def convert_data(
    name: str, file: str, out: str, images: str | None, pattern: str | None, as_json: bool, overwrite: bool
) -> None:
    from .files.writing import OutputError
    from .outputs import allow_overwriting
    from .train.data.convert import FORMATS, READ_ERRORS, convert

    if name not in FORMATS:
        raise Misuse(f"FORMAT is {name}; expected one of {', '.join(FORMATS)}")
    options = {"pattern": pattern} if pattern is not None else {}
    if options and name != "cc3m":
        raise Misuse(f"--pattern is given with {name}; only the table of cc3m does not name its images; leave it out")
    source = Path(file)
    if not source.is_file():
        raise Misuse(f"{file} does not exist; check the path")
    allow_overwriting("OUT", out, [("the file that is converted", source)], overwrite=overwrite)
    try:
        found = convert(name, source, Path(out), Path(images or source.parent), report=_tell(as_json), **options)
    except OutputError as error:
        raise Misuse(str(error)) from None
    except READ_ERRORS as error:
        if isinstance(error, OSError) and (failure := disk_failure(error)):
            raise failure from None
        raise Failure(f"{file} cannot be converted: {first_line(error)}") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Failure(f"{file} is not in the format of {name}: {type(error).__name__} {first_line(error)}") from None
    if found.rows == len(found):
        raise Failure(f"{file} has {found.rows} rows, none of which could be converted; {out} is left as it is")
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
        from .train.config_files import load_config
        from .train.errors import ConfigError, TrainingError
        from .train.session import is_first_process, leave_others
        from .train.start import out_folder
        from .train.start import train as start
    except ModuleNotFoundError as error:
        raise Failure(f"train needs {error.name}; pip install 'firebolt-vl[train]'") from None
    from .checkpoint import quiet

    try:
        config = load_config(name, overrides)
    except ConfigError as error:
        raise Misuse(str(error)) from None
    place = out_folder(config, out)
    again = shlex.join(["firebolt", "train", name, *overrides, *(["--out", out] if out else []), "--resume"])
    try:
        with quiet(), _plain_warnings():
            folder = start(config, out, resume, _say, _say)
    except ConfigError as error:
        raise Misuse(str(error)) from None
    except KeyboardInterrupt as error:
        kept = str(error) or "stopped before the first step"
        raise Interrupted(f"{kept}; to go on: {again}") from None
    except TrainingError as error:
        raise Failure(f"{place}: {error}; to go on: {again}") from None
    except (RuntimeError, ValueError, OSError) as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        if isinstance(error, ValueError):  # of data and checkpoints, whose messages name the file
            raise Failure(said) from None
        raise Failure(f"{getattr(error, 'filename', None) or place}: {said}") from None
    finally:
        leave_others()
    if is_first_process():
        print(folder / "model.safetensors")


def merge_adapters(source: str, out: str, model: str | None) -> None:
    """Write a model with its adapters merged to the new folder `out`, which is there whole or not at all."""
    from .checkpoint import quiet
    from .outputs import check_place

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Misuse(f"OUT is {out}, which exists already; name a new folder")
    check_place("OUT", out)
    try:
        import peft  # noqa: F401  (whether it is there)

        from .train.errors import ConfigError
        from .train.post.adapters import base_of, merge
    except ModuleNotFoundError as error:
        raise Failure(f"adapters needs {error.name}; pip install 'firebolt-vl[train]'") from None
    unfinished = target.absolute().with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with quiet(), _plain_warnings():
            base = base_of(Path(source)) if model is None else model
            merge(Path(source), base, unfinished)
        if target.is_dir():
            target.rmdir()
        unfinished.replace(target)
    except ConfigError as error:
        raise Misuse(str(error)) from None
    except OSError as error:
        raise (disk_failure(error) or Failure(f"OUT is {out}: {first_line(error)}")) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(target / "model.safetensors")


def ablate(tables: list[str], seeds: int, out: str, quick: bool, processes: int | None) -> None:
    from .bench_commands import chosen, folder_for

    try:
        from .train.ablation.studies import STUDIES, tables_of
        from .train.errors import ConfigError
        from .train.outputs import alone_in
    except ModuleNotFoundError as error:
        raise Failure(f"ablate needs {error.name}; pip install 'firebolt-vl[train]'") from None
    studies = [of_task(quick) for of_task in STUDIES]
    wanted = chosen("TABLE", tables_of(tables), [table for study in studies for table in study.tables])
    pages = [(table, end) for study in studies for table in study.tables for end in study.suffixes]
    written = [f"{table}.{end}" for table, end in pages if table in wanted]
    folder = folder_for(out, written, lambda folder: any(folder.glob("*/*-seed-*.json")))
    if quick:
        seeds = 1
        for study in studies:
            if any(table in study.tables for table in wanted) and (kept := study.others(folder)):
                raise Misuse(
                    f"--out is {out}, where {folder / study.rows} has runs of whole length, such as {kept[0]}, which "
                    "--quick would replace; name another folder"
                )
    try:
        with alone_in(folder, _say):
            for study in studies:
                if of_study := [table for table in wanted if table in study.tables]:
                    _fill(folder, study, of_study, seeds, processes)
    except ConfigError as error:
        raise Misuse(f"--{error}") from None
    except (OSError, RuntimeError, ValueError) as error:
        if os.environ.get("FIREBOLT_TRACEBACK"):
            raise
        raise Failure(f"{out}: {first_line(error)}; the finished runs are kept") from None


def _fill(folder: Path, study: "Study", wanted: list[str], seeds: int, processes: int | None) -> None:
    from .bench_commands import command_line

    names = study.variants_of(wanted)
    left = len(study.missing(folder, names, seeds))
    print(f"{len(names)} configurations x {seeds} seeds: {left} runs to do, the others are there", file=sys.stderr)
    done = 0

    def report(name: str, seed: int, row: dict) -> None:
        nonlocal done
        done += 1
        print(
            f"{done} of {left}: {name}, seed {seed}: {study.summary(row)}, {row['seconds']:.0f} s"
            + (f"; {row['skipped_steps']} steps were skipped" if row["skipped_steps"] else ""),
            file=sys.stderr,
        )
        # What is stopped on the way leaves tables of all that is there.
        study.write_report(folder, wanted, seeds, command_line())

    study.fill_pool(folder, names, seeds, processes or max(1, (os.cpu_count() or 1)), report)
    print(study.write_report(folder, wanted, seeds, command_line()))
