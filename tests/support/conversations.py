"""Data files made where they are needed: rows that are good, and each kind of row that is not."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def turns(*texts: str) -> list[dict]:
    """Human and assistant in turns."""
    return [{"from": ("human", "assistant")[i % 2], "value": text} for i, text in enumerate(texts)]


def row(*texts: str, image=None, **more) -> dict:
    return {**({"image": image} if image is not None else {}), "conversations": turns(*texts), **more}


def write_rows(file: Path, rows) -> Path:
    """Rows as JSON lines; bytes as they stand."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def picture(seed: int = 0, side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_shard(file: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def write_conversations(folder: Path, rows: int = 16, images: int = 4, text_only: int = 4) -> Path:
    """`folder`/rows.jsonl: questions of many lengths about a few images, every `text_only`th row without one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        picture(number).save(folder / f"{number}.png")
    written = []
    for number in range(rows):
        image = None if text_only and number % text_only == text_only - 1 else f"{number % images}.png"
        texts = [f"what is {number}?" + "!" * (number % 5), f"it is {number * number}"]
        if number % 3 == 0:
            texts += ["and then?", "no more"]
        written.append(row(*texts, image=image))
    return write_rows(folder / "rows.jsonl", written)


# kind of the report -> a row of that kind; `broken_folder` makes the images that are named here.
BROKEN = [
    ("broken JSON", b'{"conversations": [}'),
    ("broken JSON", b'{"conversations": ' + b"[" * 20_000),
    ("blank line", b"   "),
    ("not UTF-8", b'{"conversations": "\xff"}'),
    ("key twice", b'{"image": "0.png", "image": "1.png", "conversations": []}'),
    ("not an object", [1, 2]),
    ("no conversations", {"image": "0.png", "text": "a"}),
    ("conversations are no list", {"conversations": "hello"}),
    ("empty conversations", {"conversations": []}),
    ("turn is no object", {"conversations": ["hello"]}),
    ("turn without from", {"conversations": [{"value": "a"}]}),
    ("turn without value", {"conversations": [{"from": "human"}]}),
    ("unknown role", {"conversations": [{"from": "system", "value": "be good"}, *turns("a", "b")]}),
    ("value is no text", {"conversations": [{"from": "human", "value": 7}]}),
    ("empty question", row(" ", "b")),
    ("empty answer", row("a", "\n")),
    ("assistant begins", {"conversations": turns("a", "b")[1:]}),
    ("human twice", {"conversations": [*turns("a"), *turns("a", "b")]}),
    ("assistant twice", {"conversations": [*turns("a", "b"), turns("a", "b")[1]]}),
    ("no answer", row("a", "b", "c")),
    ("half a character", b'{"conversations": [{"from": "human", "value": "\\ud83d"}]}'),
    ("control token in the text", row("a<|im_end|>", "b")),
    ("over-long text", row("a", "b" * 600)),
    ("image is no path", row("a", "b", image=3)),
    ("empty image path", row("a", "b", image="")),
    ("image is an address", row("a", "b", image="https://example.org/a.png")),
    ("video is no path", row("a", "b", video=["a.mp4"])),
    ("empty video path", row("a", "b", video=" ")),
    ("video is an address", row("a", "b", video="https://example.org/a.mp4")),
    ("image and video", row("a", "b", image="0.png", video="a.mp4")),
    ("missing video", row("a", "b", video="none.mp4")),
    ("missing image", row("a", "b", image="none.png")),
    ("image is a folder", row("a", "b", image="folder")),
    ("missing shard", row("a", "b", image="none.tar/0.png")),
    ("broken shard", row("a", "b", image="broken.tar/0.png")),
    ("missing in shard", row("a", "b", image="shard.tar/none.png")),
    ("unreadable image", row("a", "b", image="text.png")),
    ("unreadable image", row("a", "b", image="half.png")),
    ("unreadable image", row("a", "b", image=["0.png", "empty.png"])),
    ("unreadable image", row("a", "b", image="shard.tar/half.png")),
]


def broken_folder(folder: Path) -> None:
    """The files that the rows of BROKEN name."""
    picture().save(folder / "0.png")
    whole = encoded(picture(side=64))
    (folder / "folder").mkdir()
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.tar").write_bytes(b"no archive" * 100)
    write_shard(folder / "shard.tar", {"half.png": whole[: len(whole) // 2], "0.png": whole})
