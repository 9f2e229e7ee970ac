"""Run the pipeline of examples/bulk_ray.py in Ray, with workers and drivers that are killed: `make test-ray`.

Ray is nothing that the package needs, so it gets a virtual environment of its own in out/ray, with the versions of
constraints.txt for all else.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAY = "ray[data]==2.60.0"
TESTS = "tests/firebolt_vl/test_bulk_ray.py"


def install(folder: Path, torch_index: str | None) -> Path:
    """Make the environment where it is not there yet; returns its Python."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    versions = f"{RAY}\n{(ROOT / 'constraints.txt').read_text()}"
    ready = folder / "ready"
    if ready.exists() and ready.read_text() == versions:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
    index = ["--index-url", torch_index] if torch_index else []
    torch = next(line for line in versions.splitlines() if line.startswith("torch=="))
    for arguments in ([*index, torch], ["-c", ROOT / "constraints.txt", "-e", f"{ROOT}[test]", RAY, "psutil"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
    ready.write_text(versions)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "ray")
    parser.add_argument("--torch-index", help="of pip, for torch alone")
    options = parser.parse_args()
    python = install(options.folder.resolve(), options.torch_index)
    environment = {**os.environ, "FIREBOLT_RAY": "1"}
    return subprocess.run([python, "-m", "pytest", "-n", "0", TESTS], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
