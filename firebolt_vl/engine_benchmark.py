"""Whole answers of engines other than PyTorch, each in a process of its own: exported graphs, and llama.cpp."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.numpy import save_file

from .bench.answer import FULL_SIZE, PROMPT_TOKENS, Outside, Sizes, Subject, encoded_photo, random_model, text_inputs
from .bench.llama import CONTAINS, FOLDER, LLAMA, LlamaProcess, is_installed
from .errors import Failure

# Name of a row -> bits of the weights that a token reads.
ENGINES = {"ours-onnx-int8": 8, "ours-onnx-int4": 4}
NAMES = (*ENGINES, *LLAMA)


def names_there() -> tuple[str, ...]:
    """Return the names that `--peers` has beside PyTorch's: all, where llama.cpp is there to be compared with."""
    return NAMES if is_installed() else ()


@contextmanager
def engine_subjects(wanted: Sequence[str], threads: int, sizes: Sizes = FULL_SIZE) -> Iterator[list[Subject]]:
    """Make the subjects of these names; their files and processes are there while the context is.

    Raises Failure for one of llama.cpp that is not installed.
    """
    for name in wanted:
        if name in LLAMA and not is_installed():
            raise Failure(f"--only is {name}, but there is no {FOLDER}; make bench-llama builds it")
    if not wanted:
        yield []
        return
    model = random_model("float32", "cpu", sizes)
    pixels = encoded_photo(sizes)
    with tempfile.TemporaryDirectory(prefix="firebolt-bench-") as temporary:
        workers = []
        try:
            subjects = []
            for name in wanted:
                if name in LLAMA:
                    subjects.append(_llama(name, model, pixels, threads))
                    continue
                folder = Path(temporary) / name
                folder.mkdir()
                text_bytes = _write(model, pixels, ENGINES[name], folder)
                workers.append(_Worker(folder, threads))
                subjects.append(_exported(name, workers[-1], folder, text_bytes))
            yield subjects
        finally:
            for worker in workers:
                worker.close()


def _write(model, pixels: dict[str, torch.Tensor], bits: int, folder: Path) -> int:
    """Write the graphs of a model and the inputs of an answer. Returns the bytes of the weights that a token reads."""
    from .model.export.block_weights import Rounding
    from .model.export.onnx_files import write_onnx
    from .model.firebolt.fused_parts import TEXT, fused_parts, kept_whole

    parts = fused_parts(model)
    files = write_onnx(parts, folder, {TEXT: Rounding(bits, kept_whole(model))})
    text = text_inputs(PROMPT_TOKENS, model.config.text_config.vocab_size, "cpu")
    views = {name: pixels[name].unsqueeze(1).numpy() for name in parts["grids"].inputs}  # one image in its row
    save_file({"input_ids": text["input_ids"].numpy(), **views}, folder / "inputs.safetensors")
    return _weight_bytes(folder / files[TEXT])


def _weight_bytes(file: Path) -> int:
    """Count the bytes of a graph's weights beside it, each once: tied embeddings are the head."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    places = [
        {entry.key: int(entry.value) for entry in one.external_data if entry.key != "location"}
        for one in graph.initializer
    ]
    return sum({place["offset"]: place["length"] for place in places if place}.values())


class _Worker:
    """A process of `engines.timed_worker`."""

    def __init__(self, folder: Path, threads: int):
        command = [sys.executable, "-m", "firebolt_vl.engines.timed_worker", str(folder), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak = 0

    def answer(self, new_tokens: int) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{new_tokens}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended with exit code {self.process.wait()}")
        told = json.loads(line)
        self.peak = told["peak"]
        return told["times"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _exported(name: str, worker: _Worker, folder: Path, read: int) -> Subject:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "inputs.safetensors")
    told = Outside(
        read, size, lambda: worker.peak, "ours in ONNX Runtime: tower, modulator, decoder; its whole process"
    )
    return Subject(name, f"int{ENGINES[name]}", worker.answer, None, [], outside=told)


def _llama(name: str, model, pixels: dict[str, torch.Tensor], threads: int) -> Subject:
    """Its decoder, for as many tokens as an image is to LFM2-VL, after our tower in PyTorch."""
    file = FOLDER / f"{LLAMA[name]}.gguf"

    @torch.no_grad()
    def see() -> float:
        start = time.perf_counter()
        model.get_grids(**pixels)
        return time.perf_counter() - start

    process = LlamaProcess(file, PROMPT_TOKENS, threads, see)
    size = file.stat().st_size
    return Subject(
        name, LLAMA[name], process.answer, None, [], outside=Outside(size, size, lambda: process.peak, CONTAINS)
    )


__all__ = ["NAMES", "engine_subjects", "names_there"]
