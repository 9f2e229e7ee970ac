"""Load the exported kernels by the hub's library `kernels`, in an environment of its own: `make test-hub`.

transformers takes kernels from the hub where it finds the library, so the environment that all else is tested in has
none. The one in out/hub has it, and borrows PyTorch, Triton and NumPy of this one by their place; firebolt_vl, which is
installed by a hook of a .pth file, is not borrowed with them.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "kernels>=0.17,<0.18"
TESTS = "tests/firebolt_vl/test_hub_kernels.py"
CHECK = """
import importlib.util, kernels, torch
assert importlib.util.find_spec("firebolt_vl") is None
print("kernels", kernels.__version__, "torch", torch.__version__, flush=True)
"""


def install(folder: Path, library: str) -> Path:
    """Make the environment; returns its Python."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", library], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "hub")
    parser.add_argument("--library", default=LIBRARY, help="a requirement of pip, such as kernels==0.17.0")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = install(folder, options.library)
    subprocess.run([python, "-c", CHECK], cwd=folder, check=True)
    os.environ["FIREBOLT_HUB_PYTHON"] = str(python)
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "0", TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
