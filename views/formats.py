"""Recognition of videos by the first bytes of a file: nothing is decoded."""

from os import PathLike
from pathlib import Path

# First bytes of formats of videos. An MP4 or MOV begins with one of some boxes, by its brand it may be a still image;
# packets of an MPEG stream are 188 bytes long.
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"crx ", b"jxl ")
SIGNATURES = (b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV\x01", b"\x30\x26\xb2\x75", b"OggS")
TS_SYNC, HEAD = 0x47, 189


def begins_as_a_video(path: str | PathLike) -> bool:
    """Tell by its first bytes whether the file at `path` is in one of the usual formats of videos."""
    if not Path(path).is_file():
        return False  # a pipe would be waited for
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    if head[4:8] in MP4_BOXES:
        return head[4:8] != b"ftyp" or head[8:12] not in STILL_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    return head.startswith(SIGNATURES) or (len(head) == HEAD and head[0] == head[188] == TS_SYNC)
