"""Build of llama.cpp for `firebolt bench answer --peers`: `python -m firebolt_vl.bench.llama_build out/llama`.

Its source comes with the source package of llama-cpp-python, from the package index; nothing else is downloaded but the
tools that build it. In the new folder are then llama-bench, for this machine, and random models (`llama_files`).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from .answer import LFM2_350M
from .llama import BENCH

SOURCE = "llama-cpp-python==0.3.36"
TOOLS = ("gguf==0.19.0", "cmake>=3.28", "ninja", "scikit-build-core")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def build(out: Path, jobs: int) -> None:
    """Make the folder `out`, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="firebolt-llama-", dir=out.parent) as temporary:
        work = Path(temporary)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"

        def run(*command: object) -> None:
            subprocess.run([str(part) for part in command], check=True, env={**os.environ, "PATH": path})

        run(python, "-m", "pip", "install", "--quiet", *TOOLS)
        fetch = ("download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
        run(python, "-m", "pip", *fetch, "--dest", work, SOURCE)
        (package,) = work.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(package) as files:
            files.extractall(work / "source", filter="data")
        (source,) = work.glob("source/*/vendor/llama.cpp")
        settings = [f"-D{name}={value}" for name, value in OPTIONS.items()]
        run("cmake", "-S", source, "-B", work / "build", "-G", "Ninja", *settings)
        run("cmake", "--build", work / "build", "--target", "llama-bench", "--parallel", jobs)
        made = work / "made"
        made.mkdir()
        shutil.copy2(built_program(work / "build"), made / BENCH)
        run(python, Path(__file__).with_name("llama_files.py"), made, json.dumps(LFM2_350M))
        made.rename(out)


def built_program(folder: Path) -> Path:
    """Find llama-bench in the folder that it was built in, which has folders of that name too."""
    return next(file for file in sorted(folder.rglob(BENCH)) if file.is_file())


def main() -> None:
    """Build it, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if (given.out / BENCH).is_file():
        print(f"{given.out} is there; remove it to build it again")
        return
    if given.out.exists():
        parser.error(f"OUT is {given.out}, which exists already; expected a new folder")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        build(given.out, given.jobs)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed with exit code {error.returncode}; {given.out} was not made")


if __name__ == "__main__":
    main()
