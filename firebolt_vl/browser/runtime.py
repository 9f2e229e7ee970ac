"""ONNX Runtime Web, as its makers publish it: fetched, or taken from a copy; always of one version, by its digests."""

import hashlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..errors import Failure, Misuse, told

NAME, VERSION = "onnxruntime-web", "1.30.0"
ADDRESS = f"https://registry.npmjs.org/{NAME}/-/{NAME}-{VERSION}.tgz"
MEGABYTES = 32
# Of the archive, which no other version comes near.
MOST_BYTES = 2 * MEGABYTES * 2**20
TIMEOUT = 60
# File of the package -> its name on a page, where all servers take it for what it is, and its SHA-256.
FILES = {
    "ort.wasm.bundle.min.mjs": (
        "onnxruntime.js",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "ort-wasm-simd-threaded.wasm": (
        "onnxruntime.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}


def put_runtime(folder: Path, copy: str | None, say: Callable[[str], None]) -> None:
    """Write the files of the runtime into a new folder: of a local `copy`, else fetched from npm, which is told first.

    A copy is npm's archive (.tgz), its unpacked package, or a page that was written before. Raises Misuse for a copy
    that is none, Failure where it cannot be fetched, and for files that are not those of this version.
    """
    folder.mkdir()
    if copy is not None:
        _put_all(folder, _of_copy(Path(copy)), Misuse, f"--runtime is {copy}")
        return
    say(f"fetching {NAME} {VERSION} (MIT, {MEGABYTES} MB) from {ADDRESS}; --runtime takes a local copy")
    with tempfile.TemporaryFile() as archive:
        try:
            _fetch(archive)
        except OSError as error:  # also urllib's
            raise Failure(
                f"{ADDRESS} cannot be fetched ({told(error)}); where there is a network: npm pack {NAME}@{VERSION}, "
                "and name its file with --runtime"
            ) from None
        archive.seek(0)
        _put_all(folder, _of_archive(archive), Failure, f"the archive is {ADDRESS}")


def _fetch(file: IO[bytes]) -> None:
    with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT) as response:
        done = 0
        while piece := response.read(2**20):
            done += len(piece)
            if done > MOST_BYTES:
                raise OSError("it is larger than it can be")
            file.write(piece)


def _of_copy(copy: Path) -> dict[str, bytes]:
    """Read what there is of the package's files in a local copy."""
    if not copy.exists():
        raise Misuse(f"--runtime is {copy}, which does not exist; name npm's archive of {NAME} {VERSION}")
    try:
        if copy.is_file():
            with copy.open("rb") as archive:
                return _of_archive(archive)
        found = dict(_of_folder(copy))
    except OSError as error:
        raise Misuse(f"--runtime is {copy}, which cannot be read ({told(error)})") from None
    return found


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name, (ours, _) in FILES.items():
        places = (folder / "dist" / name, folder / name, folder / "runtime" / ours, folder / ours)
        file = next(filter(Path.is_file, places), None)
        if file is not None:
            yield name, file.read_bytes()


def _of_archive(archive: IO[bytes]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as package:
            for name in FILES:
                file = package.extractfile(f"package/dist/{name}")
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, KeyError, OSError):  # what is missing is told by its name
        pass
    return found


def _put_all(folder: Path, found: dict[str, bytes], wrong: type[Failure], given: str) -> None:
    expected = f"expected npm's archive of {NAME} {VERSION}, its unpacked package, or a page written by this version"
    for name, (ours, digest) in FILES.items():
        if name not in found:
            raise wrong(f"{given}, which lacks {name}; {expected}")
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise wrong(f"{given}, whose {name} is of another version, or damaged; {expected}")
        (folder / ours).write_bytes(found[name])
