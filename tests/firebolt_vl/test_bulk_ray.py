"""examples/bulk_ray.py in Ray, where it is installed (`make test-ray`): every row once, whoever is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from batches import questions, read, write

if os.environ.get("FIREBOLT_RAY"):  # nothing is skipped then
    import ray  # noqa: F401
else:
    pytest.importorskip("ray")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "bulk_ray.py"
TOKENS, SIZE = 40, 2


@pytest.fixture
def command(checkpoint):
    given = ["--checkpoint", checkpoint, "--workers", 2, "--batch-size", SIZE, "--max-new-tokens", TOKENS]
    return [sys.executable, str(SCRIPT), "q.jsonl", "a.jsonl", *map(str, given)]


PATIENCE = 900
"""Seconds that a machine which does much else may take to start Ray and load the model."""


@contextmanager
def started(command: list[str], folder: Path, rows: int) -> Iterator[subprocess.Popen]:
    """Start the script, and wait until so many rows are there; where something fails it is ended."""
    out, deadline = folder / "a.jsonl", time.monotonic() + PATIENCE
    with subprocess.Popen(command, cwd=folder) as running:
        try:
            while not (out.exists() and out.read_bytes().count(b"\n") >= rows):
                assert running.poll() is None, "it ended before there were so many rows"
                assert time.monotonic() < deadline, "it takes too long"
                time.sleep(0.01)
            yield running
        except BaseException:
            running.terminate()
            raise


def workers_of(running: subprocess.Popen) -> list[psutil.Process]:
    """The processes of Ray that hold a model and work on rows, whichever process began them."""
    found = psutil.Process(running.pid).children(recursive=True)
    return [one for one in found if "Answerer" in " ".join(one.cmdline())]


def test_a_worker_killed_in_the_middle_loses_no_row_and_doubles_none(batch, command, images, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = questions(60)
    asked[7]["image"] = "gone.png"
    assert batch("--max-new-tokens", TOKENS, "--batch-size", SIZE, rows=asked).code == 1
    wanted = {row["id"]: (row["answer"], row["by"]) for row in read(images / "a.jsonl")}
    (images / "a.jsonl").unlink()
    with started(command, images, 6) as running:
        victims = workers_of(running)
        assert victims
        victims[0].kill()
        assert running.wait() == 1  # for the row without its image
    found = read(images / "a.jsonl")
    assert len(found) == 59
    assert {row["id"]: (row["answer"], row["by"]) for row in found} == wanted
    assert [row["id"] for row in read(images / "a.errors.jsonl")] == ["q7"]


def test_a_killed_pipeline_goes_on_and_so_does_the_command(batch, command, images, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write(images / "q.jsonl", questions(60))
    with started(command, images, 6) as running:
        running.kill()
    there = read(images / "a.jsonl")
    assert len(there) < 60
    write(images / "q.jsonl", questions(50))
    subprocess.run(command, cwd=images, check=True)
    assert sorted(row["id"] for row in read(images / "a.jsonl")) == sorted(f"q{i}" for i in range(50))
    assert read(images / "a.jsonl")[: len(there)] == there
    result = batch("--max-new-tokens", TOKENS, rows=questions(60))
    assert result.code == 0
    assert sorted(row["id"] for row in read(images / "a.jsonl")) == sorted(f"q{i}" for i in range(60))
