"""Compare exported graphs with PyTorch, on random models and on the embedded one: `make test-exports`.

Logits of prompts and steps for each state-space model, engine and size; greedy answers of the embedded model to 200
questions about held-out scenes; the time of a question in a process of its own. What was found is printed and, with
--out, written as a page; exit code 1 where a logit differs by more than the promise, or an answer in float32 at all.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from exported import PARITY, Parts, logits_error
from PIL.Image import Image

from firebolt_vl import embedded_checkpoint
from firebolt_vl.engines import load_engine
from firebolt_vl.engines.description import FILE, TOKENIZER
from firebolt_vl.engines.graph_engine import GraphEngine
from firebolt_vl.engines.graphs import OPENERS
from firebolt_vl.evaluate.digits import draw
from firebolt_vl.evaluate.exam import pose
from firebolt_vl.evaluate.examples import FOLDER
from firebolt_vl.export import BITS, export
from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.model.export.onnx_files import write_onnx
from firebolt_vl.model.export.openvino_files import convert

SSMS = {"s4": {}, "s4, 8 taps": {"kernel_taps": 8}, "s4d": {}, "mamba": {}}
# Rows, tokens and images of a batch; several rows are padded on the left, and the last one has no image.
SIZES = [(rows, tokens, images) for rows in (1, 3) for tokens in (1, 2, 31, 300) for images in (0, 1, 2)]
SCENES, QUESTIONS, STARTS = 80, 200, 5
TEXT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}

PAGE = """\
# Exports

`firebolt export onnx|openvino DIR` writes a checkpoint as three graphs that need no PyTorch: images to the
modulator's table of grids, a prompt, and one token, with a state of real numbers that goes in and comes out. Batch,
images, tiles, grids and text have open sizes. `engine.json` says how the graphs, the tokenizer and the chat template
fit together; large weights lie once in `weights.bin`. What has no such form is refused: connectors and fusions other
than cmm with replace, liquid S4.

    pip install 'firebolt-vl[onnx]'
    firebolt export onnx out/onnx                      # the embedded model; --checkpoint names another
    firebolt ask --engine onnx --checkpoint out/onnx examples/digits-1.png "what digit is at the top left?"

In Python `firebolt_vl.engines.load_engine("out/onnx", "onnx").answer(image, question)` is the same answer, and
`model.export_parts()` gives the three callables with examples of their arguments, for `torch.export` and other
engines. Only NumPy, Pillow, tokenizers and the engine are imported. ONNX Runtime runs the graphs as they are;
OpenVINO's are made of the ONNX ones. The state-space model is a loop over the tokens of a prompt (ONNX's Scan): no
transform of open length, no complex number, no longest text. Padding stands on the left, as `generate` wants it.

## Weights in 8 and 4 bits

    firebolt export onnx out/onnx-4 --bits 4           # or 8
    firebolt ask --engine onnx --checkpoint out/onnx-4 examples/digits-1.png "what digit is at the top left?"

All that a token reads is then in blocks of 32 numbers with a scale each (mathematics.md, section 10), the head and the
embeddings in 8 bits; products inside a state-space model and the vision tower stay in float32. Products are ONNX
Runtime's MatMulNBits, which rounds its inputs to 8 bits by blocks too; norms, rotations and attention are its own
operators, and products that share an input are one. One graph, `text.onnx`, reads prompts and tokens, so that the
weights are in memory once; its caches have room for the whole answer and are changed where they lie. Its rows have no
padding. The 4-bit codes are those of `quantize_int4`.

OpenVINO is without: tried by hand on the same graph, which it reads, it was the slower one (no command here repeats
that), and ONNX Runtime's wheels are smaller, and there for more systems.

ExecuTorch's programs have fixed sizes, and a page of their own: [executorch.md](executorch.md).

What follows is written by `make test-exports`, on two cores of an AMD EPYC, without a GPU, with PyTorch {torch}, ONNX
Runtime {onnx} and OpenVINO {openvino}.

## Logits

The largest relative error of logits against PyTorch's uncached forward, float32: prompts of 1, 2, 31 and 300 tokens
and two steps after each, batches of 1 and 3, padded on the left, 0, 1 and 2 images in a row, and a row without. The
promise is {parity:g}. Random models of two layers, and the embedded one.

| model | ONNX Runtime | OpenVINO |
| --- | --- | --- |
{logits}

## Answers

Greedy answers of the embedded model to {questions} questions about held-out scenes, token for token those of PyTorch:
ONNX Runtime {same[onnx]}, OpenVINO {same[openvino]}; in 8 bits {same[8]}, in 4 bits {same[4]}. The logits of the first
token of these answers move by {drift[8]:.1f} % of their spread in 8 bits and {drift[4]:.1f} % in 4 (root mean square).

## Time

`firebolt ask` in a process of its own, from Enter to its end, the median of {starts}, in turns: PyTorch {torch_s:.1f}
s, ONNX Runtime {onnx_s:.1f} s, OpenVINO {openvino_s:.1f} s. The machine did other work; only the ratios tell.
"""


def random_errors(folder: Path) -> dict[str, dict[str, float]]:
    """State-space model -> engine -> the largest error of any size."""
    found = {}
    for name, options in SSMS.items():
        model = tiny_models.make_model(ssm=name.split(",")[0], text=TEXT, **options)
        parts = model.export_parts(32, 16)
        at = {engine: folder / f"{len(found)}-{engine}" for engine in OPENERS}
        for place in at.values():
            place.mkdir()
        files = {"onnx": write_onnx(parts, at["onnx"])}
        files["openvino"] = convert({part: at["onnx"] / file for part, file in files["onnx"].items()}, at["openvino"])
        inputs = {part: {one: list(shape) for one, shape in told.inputs.items()} for part, told in parts.items()}
        found[f"random, {name}"] = {
            engine: largest_error(
                model,
                Parts({part: opened(at[engine] / file, 1) for part, file in files[engine].items()}, inputs),
                (32, 16),
            )
            for engine, opened in OPENERS.items()
        }
        print(name, found[f"random, {name}"], flush=True)
    return found


def largest_error(model, parts: Parts, sides: tuple[int, int], sizes: list[tuple[int, int, int]] = SIZES) -> float:
    return max(logits_error(model, parts, *size, sides) for size in sizes)


def embedded_exports(folder: Path) -> dict[str, Path]:
    """The embedded model for each engine."""
    at = {engine: folder / f"embedded-{engine}" for engine in OPENERS}
    export("onnx", str(at["onnx"]))
    described = json.loads((at["onnx"] / FILE).read_text())
    at["openvino"].mkdir()
    files = convert({part: at["onnx"] / file for part, file in described["graphs"].items()}, at["openvino"])
    (at["openvino"] / FILE).write_text(json.dumps({**described, "engine": "openvino", "graphs": files}))
    shutil.copy(at["onnx"] / TOKENIZER, at["openvino"])
    return at


def rounded_exports(folder: Path) -> dict[int, GraphEngine]:
    """The embedded model in 8 and in 4 bits."""
    engines = {}
    for bits in BITS:
        export("onnx", str(folder / f"embedded-{bits}"), bits=bits)
        engines[bits] = GraphEngine.load(folder / f"embedded-{bits}", "onnx", threads=1)
    return engines


def same_answers(engines: dict[Any, GraphEngine]) -> tuple[dict[Any, int], dict[Any, float]]:
    """Engine -> answers, of all questions, that have PyTorch's tokens; engine -> drift from the graphs in float32.

    The drift is of the logits after the prompts, in percent of their spread.
    """
    scenes, asked = pose(SCENES, 7, "held-out")
    pytorch = load_engine()
    same, moved, spread = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0), 0.0
    for one in asked[:QUESTIONS]:
        image = draw(scenes[one.scene], 128)
        wanted = pytorch.answer(image, one.question.text).tokens
        plain = first_logits(engines["onnx"], image, one.question.text)
        spread += np.square(plain - plain.mean()).mean()
        for name, engine in engines.items():
            same[name] += engine.answer(image, one.question.text).tokens == wanted
            moved[name] += np.square(first_logits(engine, image, one.question.text) - plain).mean()
    assert len(asked) >= QUESTIONS
    return same, {name: 100 * (one / spread) ** 0.5 for name, one in moved.items()}


def first_logits(engine: GraphEngine, image: Image, question: str) -> np.ndarray:
    prompt = np.array([engine.encode(question, 1)])
    return engine.begin(engine.grids(image), prompt.size)(prompt)[0]


def cold_starts(at: dict[str, Path]) -> dict[str, float]:
    """Engine -> median seconds of `firebolt ask` in a process of its own."""
    ask = [sys.executable, "-m", "firebolt_vl", "ask", FOLDER / "digits-1.png", "what digit is at the top left?"]
    commands = {"torch": ask} | {name: [*ask, "--engine", name, "--checkpoint", at[name]] for name in at}
    seconds = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    import onnxruntime
    import openvino
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        errors = random_errors(folder)
        at = embedded_exports(folder)
        model = FireboltForConditionalGeneration.from_pretrained(embedded_checkpoint()).eval()
        errors["embedded, s4"] = {
            name: largest_error(model, Parts.of(load_engine(place, name, threads=1)), (64, 32))
            for name, place in at.items()
        }
        print(errors["embedded, s4"], flush=True)
        engines = {name: GraphEngine.load(place, name, threads=1) for name, place in at.items()}
        same, drift = same_answers({**engines, **rounded_exports(folder)})
        print(same, drift, flush=True)
        seconds = cold_starts(at)
    page = PAGE.format(
        torch=torch.__version__.partition("+")[0],
        onnx=onnxruntime.__version__,
        openvino=openvino.__version__.partition("-")[0],
        parity=PARITY,
        logits="\n".join(f"| {name} | {one['onnx']:.1e} | {one['openvino']:.1e} |" for name, one in errors.items()),
        questions=QUESTIONS,
        same=same,
        drift=drift,
        starts=STARTS,
        **{f"{name}_s": one for name, one in seconds.items()},
    )
    print(page)
    if out is not None:
        out.write_text(page, encoding="utf-8")
    good = max(one for found in errors.values() for one in found.values()) <= PARITY
    return 0 if good and {same[name] for name in OPENERS} == {QUESTIONS} else 1


if __name__ == "__main__":
    sys.exit(main())
