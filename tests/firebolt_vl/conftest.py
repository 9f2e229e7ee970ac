"""A checkpoint, an image, and the command that is run on them."""

import numpy as np
import pytest
from batches import TOKENS, write
from commands import Result
from originals import letter_tokenizer, write_original
from PIL import Image
from tiny_models import write_checkpoint

from firebolt_vl import cli


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def original(tmp_path):
    """A checkpoint of the original Firebolt-VL, with a tokenizer."""
    folder = tmp_path / "original"
    write_original(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    levels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def firebolt(capfd, tmp_path, monkeypatch):
    """Run the command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> Result:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def images(tmp_path):
    """Four images of several sizes: their native tilings differ."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 40), (30, 70), (64, 20), (9, 90)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def batch(firebolt, checkpoint, tmp_path):
    """Run `ask --batch` from q.jsonl, which is written where `rows` are given, to a.jsonl."""

    def run(*arguments, rows=None, checkpoint=checkpoint):
        if rows is not None:
            write(tmp_path / "q.jsonl", rows)
        given = ["--checkpoint", checkpoint, "--max-new-tokens", TOKENS]
        return firebolt("ask", "--batch", "q.jsonl", "--out", "a.jsonl", *given, *arguments)

    return run
