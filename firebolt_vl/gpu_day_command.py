"""`firebolt bench gpu-day`: where its results go, what it says while it works, and how it ends."""

import os
import sys
from pathlib import Path

from .bench_commands import check_compiling
from .errors import Failure, Misuse


def gpu_day(out: str | None, seconds: int, rehearse: bool) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from .bench.compile import is_interpreting
        from .bench.day.run import OtherDay, described, run
    except ModuleNotFoundError as error:
        raise Failure(f"bench gpu-day needs {error.name}, which is not installed") from None
    import torch

    check_compiling(is_interpreting())
    if not rehearse and not torch.cuda.is_available():
        raise Failure("bench gpu-day needs a GPU, and this PyTorch sees none; --rehearse does without")
    scale = "rehearsal" if rehearse else "full"
    folder = Path(out) if out else _default_folder(described(scale)["device"], rehearse)
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"--out is {out}, a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "day.json").exists():
        raise Misuse(f"--out is {folder}, which has files that this command did not write; name another folder")
    try:
        known = run(folder, scale, seconds, lambda line: print(line, flush=True))
    except OtherDay as error:
        raise Misuse(f"--out: {error}") from None
    except OSError as error:
        raise Failure(f"--out is {folder}, which could not be written ({error.strerror or error})") from None
    print(folder / "README.md")
    rows = [row for step in known.values() for row in step["rows"]]
    failed = sum(row.get("result") in ("failed", "error") for row in rows)
    red = sum(str(row.get("check", "")).startswith("red: ") for row in rows)
    broken = [name for name, step in known.items() if not step["finished"]]
    if broken:
        print(f"not finished: {', '.join(broken)}; the same command goes on with them", file=sys.stderr)
    if failed or red:
        raise Failure(f"{failed} tests failed and {red} times are of results beyond the error budget; see README.md")


def _default_folder(device: str, rehearse: bool) -> Path:
    if rehearse:
        return Path("out/gpu-day")
    return Path("docs/gpu") / "-".join(device.lower().split())
