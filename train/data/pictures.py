"""Images and videos of rows: files below a folder; images also members of tar shards below it
("shards/00000.tar/000000017.jpg")."""

import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...model.images import ImageError, decode_image, open_image
from .problems import BadRow

SHARD = ".tar"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Member(NamedTuple):
    """Where a file lies in a shard."""

    name: str
    start: int
    size: int


@lru_cache(maxsize=4096)
def members(shard: Path) -> dict[str, Member]:
    """The files of a shard that is not compressed, by name. Raises OSError or tarfile.TarError."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: Member(member.name, member.offset_data, member.size) for member in tar if member.isfile()}


def read_member(shard: Path, member: Member) -> bytes:
    with shard.open("rb") as file:
        file.seek(member.start)
        data = file.read(member.size)
    if len(data) < member.size:
        raise OSError(f"{shard} ends within {member.name}")
    return data


def samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """A shard's samples in its order: key -> suffix -> file. The key ends at the first dot of the name."""
    found: dict[str, dict[str, Member]] = {}
    for member in members(shard).values():
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        found.setdefault(folder + slash + stem, {})["." + suffix.lower()] = member
    yield from found.items()


class Pictures:
    """The images below `root`."""

    def __init__(self, root: Path):
        self.root = root

    def check(self, path: str) -> None:
        """Raises BadRow where there is no such file; what is in it is not looked at."""
        shard, member = self._split(path)
        if member is not None:
            self._member(path, shard, member)
        elif not shard.exists():
            raise BadRow("missing image", f"{shard}: there is no such file")
        elif shard.is_dir():
            raise BadRow("image is a folder", f"{shard}")

    def open(self, path: str) -> Image.Image:
        """The image, upright, as RGB. Raises BadRow."""
        self.check(path)
        shard, member = self._split(path)
        try:
            if member is None:
                return open_image(shard)
            return decode_image(read_member(shard, self._member(path, shard, member)), path)
        except (ImageError, OSError) as error:
            raise BadRow("unreadable image", str(error)) from None

    def video(self, path: str) -> Path:
        """The file of a video. Raises BadRow where there is none; what is in it is not looked at."""
        file, member = self._split(path)
        if member is not None:
            raise BadRow("video in a shard", f"{path}: videos are read from files of their own")
        if not file.exists():
            raise BadRow("missing video", f"{file}: there is no such file")
        if file.is_dir():
            raise BadRow("video is a folder", f"{file}")
        return file

    def _split(self, path: str) -> tuple[Path, str | None]:
        """(file, None), or (shard, the name of the file in it)."""
        before, suffix, member = path.partition(SHARD + "/")
        return (self.root / (before + SHARD), member) if suffix else (self.root / path, None)

    def _member(self, path: str, shard: Path, member: str) -> Member:
        if not shard.is_file():
            raise BadRow("missing shard", f"{shard}: there is no such file")
        try:
            found = members(shard).get(member)
        except (OSError, tarfile.TarError) as error:
            raise BadRow("broken shard", f"{shard} cannot be read ({error})") from None
        if found is None:
            raise BadRow("missing in shard", f"{shard} holds no {member}")
        return found
