"""Images and videos of rows: files below a folder; images also members of tar shards below it
("shards/00000.tar/000000017.jpg")."""

import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...files.problems import BadRow
from ...model.images import ImageError, decode_image, open_image

SHARD = ".tar"
# Of a file in a sample, by the last part of its name: what is an image, and what needs not be one.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif")
BESIDE = (".json", ".txt", ".cls", ".id", ".url", ".md5", ".sha256")


class Member(NamedTuple):
    """Place of a file in a shard. `header` is a checksum of the block before it, by which it is known again; `link` is
    the target of a link that leads to no file of the shard."""

    name: str
    start: int
    size: int
    header: int
    link: str | None = None


class Changed(OSError):
    """A shard is not what it was when it was looked through."""


def index(shard: Path) -> dict[str, Member]:
    """The files of a shard that is not compressed, by name, links to them among them.

    Raises OSError or tarfile.TarError.
    """
    found: dict[str, Member] = {}
    with tarfile.open(shard, "r:") as tar, shard.open("rb") as file:
        for member in tar:
            name = posixpath.normpath(member.name)
            if member.isreg() and not member.issparse():
                start = member.offset_data
                found[name] = Member(name, start, member.size, _header(file, start))
            elif member.islnk() or member.issym():
                folder = posixpath.dirname(name) if member.issym() else ""
                found[name] = Member(name, 0, 0, 0, posixpath.normpath(posixpath.join(folder, member.linkname)))
    return {name: _followed(member, found)._replace(name=name) for name, member in found.items()}


def _followed(member: Member, found: dict[str, Member]) -> Member:
    passed = set()
    while member.link is not None and member.link in found and member.name not in passed:
        passed.add(member.name)
        member = found[member.link]
    return member


def members(shard: Path) -> dict[str, Member]:
    """`index`, remembered for as long as the file is the same to the file system."""
    about = shard.stat()
    return _remembered(shard, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=4096)
def _remembered(shard: Path, *version: int) -> dict[str, Member]:
    return index(shard)


def _header(file, start: int) -> int:
    file.seek(start - tarfile.BLOCKSIZE)
    return zlib.crc32(file.read(tarfile.BLOCKSIZE))


def read_member(shard: Path, member: Member) -> bytes:
    """Read a file of a shard. Raises OSError where it cannot be read, and Changed where it was replaced meanwhile."""
    if member.link is not None:
        raise OSError(f"{shard}: {member.name} is a link to {member.link}; expected a file of the shard")
    with shard.open("rb") as file:
        if _header(file, member.start) != member.header:
            raise Changed(f"{shard} was written anew after it was looked through")
        data = file.read(member.size)
    if len(data) < member.size:
        raise OSError(f"{shard} ends within {member.name}")
    return data


def samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """A shard's samples in its order: key -> suffix -> file. The key ends at the first dot of the name."""
    found: dict[str, dict[str, Member]] = {}
    for path, member in index(shard).items():
        folder, slash, name = path.rpartition("/")
        stem, _, suffix = name.partition(".")
        files, lower = found.setdefault(folder + slash + stem, {}), "." + suffix.lower()
        files["." + suffix if lower in files else lower] = member
    yield from found.items()


def images_of(files: dict[str, Member]) -> list[Member]:
    """The images of a sample, in its order: by the last part of their names ("7.left.jpg" is one of sample 7).

    Raises BadRow where there is none, but a file that may be one.
    """
    endings = {suffix: posixpath.splitext("x" + suffix)[1].lower() for suffix in files}
    found = [file for suffix, file in files.items() if endings[suffix] in IMAGE_SUFFIXES]
    unknown = [suffix for suffix, ending in endings.items() if ending not in (*IMAGE_SUFFIXES, *BESIDE)]
    if unknown and not found:
        raise BadRow(
            "unknown file in sample",
            f"{', '.join(unknown)}: is it an image? Name it in the row's `image`, or put null there; by themselves "
            f"{', '.join(IMAGE_SUFFIXES)} are taken",
        )
    return found


class Pictures:
    """The images below `root`."""

    def __init__(self, root: Path):
        self.root = root

    def check(self, path: str) -> None:
        """Check that an image's file exists; what is in it is not looked at. Raises BadRow."""
        shard, member = self._split(path)
        if member is not None:
            self._member(path, shard, member)
        elif not shard.exists():
            raise BadRow("missing image", f"{shard} does not exist")
        elif shard.is_dir():
            raise BadRow("image is a folder", f"{shard}; expected a file")

    def open(self, path: str) -> Image.Image:
        """The image, upright, as RGB. Raises BadRow."""
        self.check(path)
        shard, member = self._split(path)
        try:
            if member is None:
                return open_image(shard)
            return decode_image(self._read(path, shard, member), path)
        except (ImageError, OSError) as error:
            raise BadRow("unreadable image", str(error)) from None

    def video(self, path: str) -> Path:
        """The file of a video. Raises BadRow where there is none; what is in it is not looked at."""
        file, member = self._split(path)
        if member is not None:
            raise BadRow("video in a shard", f"{path}; expected a file of its own")
        if not file.exists():
            raise BadRow("missing video", f"{file} does not exist")
        if file.is_dir():
            raise BadRow("video is a folder", f"{file}; expected a file")
        return file

    def _split(self, path: str) -> tuple[Path, str | None]:
        """(file, None), or (shard, the name of the file in it)."""
        before, suffix, member = path.partition(SHARD + "/")
        shard = self.root / (before + SHARD)
        return (shard, posixpath.normpath(member)) if suffix and not shard.is_dir() else (self.root / path, None)

    def _read(self, path: str, shard: Path, member: str) -> bytes:
        try:
            return read_member(shard, self._member(path, shard, member))
        except Changed:  # within the grain of the file system's clock
            _remembered.cache_clear()
            return read_member(shard, self._member(path, shard, member))

    def _member(self, path: str, shard: Path, member: str) -> Member:
        if not shard.is_file():
            raise BadRow("missing shard", f"{shard} does not exist")
        try:
            found = members(shard).get(member)
        except (OSError, tarfile.TarError) as error:
            raise BadRow("broken shard", f"{shard} cannot be read ({error})") from None
        if found is None:
            raise BadRow("missing in shard", f"{shard} holds no {member}")
        if found.link is not None:
            raise BadRow(
                "missing in shard", f"{shard}: {member} is a link to {found.link}; expected a file of the shard"
            )
        return found
