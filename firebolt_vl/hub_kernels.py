"""The kernels as a package of the hub's library `kernels`, from which an op is taken by name without this package."""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from . import kernels
from .outputs import new_folder

NAME = "firebolt-vl-kernels"
VERSION = 1
"""Of the functions' signatures, as the library counts: the branch `v1` of a repository on the hub has it."""
BACKENDS = ("cpu", "cuda", "metal", "rocm", "xpu")
"""Builds of PyTorch. All get the same files: each op looks for itself at the device of its tensors."""
NO_FUNCTIONS = ("reference", "use_implementation")
FILES = ("*.py", "measured/*.json")

CARD = """---
library_name: kernels
license: apache-2.0
---

# {name}

Operators of Firebolt-VL's cross-modal modulator and of state-space models, forward and backward: Triton kernels on
GPUs, exact PyTorch forms elsewhere.

    from pathlib import Path
    from kernels import get_local_kernel

    ops = get_local_kernel(Path("this folder"))
    y = ops.fft_conv(u, k)

Functions: {functions}. Each has its definition in plain PyTorch under the same name in `reference`;
`use_implementation("reference" | "pytorch" | "triton")` is a region in which that form runs. Ops are registered with
PyTorch in a namespace of this build, so that other builds, and firebolt-vl itself, can be there as well.
"""


@dataclass
class Built:
    """Result of a build."""

    out: str
    builds: list[str]
    """Folders in `out`/build, one for each of `BACKENDS`."""
    bytes: int

    def to_dict(self) -> dict:
        return asdict(self)


def export_kernels(out: str) -> Built:
    """Write this package's kernels to the new folder `out`, for `get_local_kernel` or an upload: whole, or not at all.

    In it are README.md and, for each of `BACKENDS`, build/torch-BACKEND with the files of `firebolt_vl.kernels` as they
    are and a metadata.json with their digests. The same files give the same bytes everywhere.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    files = sources()
    with new_folder("OUT", out) as unfinished:
        functions = ", ".join(f"`{name}`" for name in kernels.__all__ if name not in NO_FUNCTIONS)
        (unfinished / "README.md").write_text(CARD.format(name=NAME, functions=functions), encoding="utf-8")
        builds = [_write(unfinished / "build", backend, files) for backend in BACKENDS]
    written = [file for file in Path(out).rglob("*") if file.is_file()]
    return Built(out, builds, sum(file.stat().st_size for file in written))


def sources() -> dict[str, bytes]:
    """Read the files of the kernels, by their paths in the package, in order of these."""
    folder = Path(kernels.__file__).parent
    found = [file for pattern in FILES for file in folder.rglob(pattern)]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(found)}


def metadata(backend: str, files: dict[str, bytes]) -> dict:
    """Describe a build for PyTorch with `backend`, as the library reads it.

    Its id, the name that the library imports it by, has a part of the files' digest in it: two builds are two modules.
    """
    digests = {path: hashlib.sha256(content).digest() for path, content in files.items()}
    of_all = hashlib.sha256(json.dumps({path: digest.hex() for path, digest in digests.items()}).encode()).hexdigest()
    return {
        "name": NAME,
        "id": f"_{NAME.replace('-', '_')}_{backend}_{of_all[:8]}",
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {path: base64.b64encode(digest).decode() for path, digest in digests.items()},
        },
    }


def _write(folder: Path, backend: str, files: dict[str, bytes]) -> str:
    """Write a build; returns the name of its folder."""
    build = folder / f"torch-{backend}"
    for path, content in files.items():
        (build / path).parent.mkdir(parents=True, exist_ok=True)
        (build / path).write_bytes(content)
    text = json.dumps(metadata(backend, files), indent=2)
    (build / "metadata.json").write_text(text + "\n", encoding="utf-8")
    return build.name
