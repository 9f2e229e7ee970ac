"""Ask the page of `firebolt export page` in a real browser without a window: `make test-static`.

The page is written by the command from the embedded model, and served by Python's own server of files; a request to any
other place fails the test. playwright comes into out/static, beside this environment and not in it, and a Chromium that
is installed is used; else one is installed as `make test-page` does. ONNX Runtime Web is fetched once, to out/static.
"""

import argparse
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from demo_page import install_browser

from firebolt_vl.browser import runtime

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/firebolt_vl/test_browser_page.py", "tests/firebolt_vl/test_page_in_a_browser.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "static")
    parser.add_argument("--runtime", type=Path, help="a copy of onnxruntime-web, instead of npm's")
    parser.add_argument("--picture", type=Path, help="a PNG file of the page")
    options = parser.parse_args()
    folder = options.folder.resolve()
    packages = folder / "packages"
    if not (packages / "playwright").is_dir():
        wanted = [sys.executable, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
        subprocess.run([*wanted, "--target", packages, "playwright"], check=True)
    archive = options.runtime or folder / f"{runtime.NAME}-{runtime.VERSION}.tgz"
    if not archive.exists():
        unfinished = archive.with_suffix(".tmp")
        urllib.request.urlretrieve(runtime.ADDRESS, unfinished)
        unfinished.replace(archive)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    os.environ["PLAYWRIGHT_BROWSERS_PATH"] = str(folder / "browsers")
    install_browser(Path(sys.executable))
    os.environ["FIREBOLT_RUNTIME"] = str(archive.resolve())
    if options.picture is not None:
        os.environ["FIREBOLT_PICTURE"] = str(options.picture.resolve())
    # None is skipped here: what is missing is an error.
    os.environ["FIREBOLT_PAGE"] = "1"
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "0", *TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
