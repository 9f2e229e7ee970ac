"""Ask on the page of `firebolt demo` in a real browser without a window: `make test-page`.

gradio excludes the Pillow that all else is tested with, so the page gets a virtual environment of its own in out/page,
with the versions of constraints.txt but that one. A Chromium that is installed is used; else playwright's own comes
into out/page, and where that cannot be had, Debian's is installed. With --picture a picture of the page is written.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from browsers import installed

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/firebolt_vl/test_demo.py", "tests/firebolt_vl/test_demo_in_a_browser.py")
DEBIANS = "chromium-headless-shell"


def install(folder: Path, torch_index: str | None) -> Path:
    """Make the environment where it is not there yet; returns its Python."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = (ROOT / "constraints.txt").read_text().splitlines()
    kept = folder / "constraints.txt"
    needs = "\n".join(line for line in wanted if not line.startswith("pillow==")) + "\n"
    if kept.exists() and kept.read_text() == needs:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "constraints.unfinished.txt"
    unfinished.write_text(needs)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
    index = ["--index-url", torch_index] if torch_index else []
    torch = next(line for line in wanted if line.startswith("torch=="))
    for arguments in ([*index, torch], ["-c", unfinished, "-e", f"{ROOT}[demo,video,test]", "playwright"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
    unfinished.replace(kept)
    return python


def install_browser(python: Path) -> None:
    """Install a Chromium where there is none."""
    if installed():
        return
    if not subprocess.run([python, "-m", "playwright", "install", "--only-shell", "chromium"]).returncode:
        return
    if shutil.which("apt-get") is None:
        sys.exit("no Chromium is here, and playwright cannot fetch its own; install one, such as chromium")
    subprocess.run(["apt-get", "update", "-q"], check=True)
    subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", DEBIANS], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "page")
    parser.add_argument("--torch-index", help="of pip, for torch alone")
    parser.add_argument("--picture", type=Path, help="a PNG file of the page")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.environ["PLAYWRIGHT_BROWSERS_PATH"] = str(folder / "browsers")
    python = install(folder, options.torch_index)
    install_browser(python)
    if options.picture is not None:
        os.environ["FIREBOLT_PICTURE"] = str(options.picture.resolve())
    # None is skipped here: what is missing is an error.
    os.environ["FIREBOLT_PAGE"] = "1"
    return subprocess.run([python, "-m", "pytest", "-n", "0", *TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
