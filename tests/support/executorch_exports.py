"""Compare exported ExecuTorch programs with PyTorch, in an environment of their own: `make test-executorch`.

ExecuTorch brings packages that transformers would take notice of, so it gets a virtual environment in out/executorch,
which borrows all else from this one. There the embedded model, and random ones with each state-space model, are
exported for one row and for three; logits of prompts and steps are compared for each size, and the embedded model's
greedy answers to 200 questions about held-out scenes. What was found is printed and, with --out, written as a page;
exit code 1 where a logit differs by more than the promise, or an answer.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTORCH = "executorch==1.5.1"
TESTS = "tests/firebolt_vl/test_executorch.py"
ROWS = (1, 3)

PAGE = """\
# ExecuTorch

`firebolt export executorch DIR` writes a checkpoint as a program for ExecuTorch's runtime, which is made for phones and
other devices. It has the three parts of [exports.md](exports.md); what cannot be exported there cannot be here.

    pip install 'firebolt-vl[executorch]'
    firebolt export executorch out/et                  # the embedded model; --checkpoint names another
    firebolt ask --engine executorch --checkpoint out/et examples/digits-1.png "what digit is at the top left?"

`model.pte` has the methods `grids`, `prompt` and `step`, and the weights once; `engine.json` names their tensors in
order, with their shapes. Sizes are fixed, where those of ONNX's graphs are open:

- Rows are as many as `--batch` says, 1 by default, no more and no fewer. `firebolt ask` wants a program for one.
- A row has one image, with all tiles that it can have, masked where there are fewer; without an image all is masked.
- Prompt and answer have 512 tokens at most. The text of a prompt is open up to that bound. Caches have 512 positions
  from the first token on, masked where nothing was read, and what is in them moves to the left as tokens come.

Other sizes are refused. Weights are float32, and ExecuTorch's own (portable) kernels compute all. The runtime in
Python takes PyTorch's tensors, so that `firebolt ask` imports PyTorch here; the one in C++, for devices, was not tried.
Neither was another version than {version}.

## Parity

`make test-executorch`, on two cores of an AMD EPYC, without a GPU, with PyTorch {torch} and ExecuTorch {version}: the
largest relative error of logits against PyTorch's uncached forward, float32: prompts of 1, 2, 31 and 300 tokens and two
steps after each, padded on the left, an image in a row, and a row without. The promise is {parity:g}. The embedded
model, and random ones of two layers.

| model | 1 row | 3 rows |
| --- | --- | --- |
{errors}

Greedy answers of the embedded model to {questions} questions about held-out scenes, token for token those of PyTorch:
{same}. Exporting it took two minutes of a core (`time firebolt export executorch`).

## What was in the way

With ExecuTorch 1.5.1, tried by hand (no command here repeats that), and why programs are as they are:

- With an open batch a loop over time lowers, and fails at run time: `op_copy.cpp: Check failed
  (tensor_is_broadcastable_to(src, in))`. The state of a `scan` before its first token has memory for the upper bound of
  rows, and is not resized.
- Open numbers of images and tiles make lowering slow, and memory is planned for the upper bound of every open size.
- The vision part failed at run time: `op_permute_copy.cpp: tensors_have_same_dim_order`. For tiles of another size than
  the tower was made for, positions are interpolated, and `upsample_bicubic2d` of a permuted tensor gives a result with
  channels last, which `permute_copy` does not take. None of it depends on pixels: what depends on weights alone is now
  computed when the program is made, and stored contiguous. Stored as it comes, the pooling head's one query,
  [1,4,1,24] with strides of a transposed tensor, fails the same way: `op_mul.cpp: tensors_have_same_dim_order`.
- With XNNPACK's delegate, which took half of the time of lowering, the vision part failed with the message of `op_mul`
  too. Whether it runs since constants are contiguous was not tried.
- One token of a fixed batch chose its grids by a sort that keeps the order of equals, for which there is no kernel
  (`Missing operator: aten::sort.values_stable`). Exported graphs do not sort any more.
"""


def install(folder: Path) -> Path:
    """Make the environment where it is not there yet; returns its Python."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / "ready"
    wanted = f"{EXECUTORCH} beside {sys.prefix}\n"
    if ready.exists() and ready.read_text() == wanted:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    borrowed = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(own) / "borrowed.pth").write_text(borrowed, encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", EXECUTORCH]
    subprocess.run(pip, check=True)
    ready.write_text(wanted)
    return python


def embedded_errors(folder: Path, exported: bool) -> dict[int, float]:
    """Rows -> the largest error of the embedded model, exported to `folder`, or found there."""
    from exported import Parts
    from exports import largest_error

    from firebolt_vl import embedded_checkpoint
    from firebolt_vl.engines import load_engine
    from firebolt_vl.export import export
    from firebolt_vl.model import FireboltForConditionalGeneration

    model, found = FireboltForConditionalGeneration.from_pretrained(embedded_checkpoint()).eval(), {}
    for rows in ROWS:
        place = folder / str(rows)
        if not exported:
            export("executorch", str(place), batch=rows)
        engine = load_engine(place, "executorch", threads=1)
        found[rows] = largest_error(model, Parts.of(engine), (64, 32), sizes_of(rows))
    return found


def random_errors(folder: Path, options: dict) -> dict[int, float]:
    """Rows -> the largest error of a small random model with these options."""
    import tiny_models
    from exported import Parts
    from exports import TEXT, largest_error

    from firebolt_vl.engines.program import open_program
    from firebolt_vl.export import POSITIONS
    from firebolt_vl.model.export.executorch_files import FILE, Room, bounded_parts, write_executorch

    model, found = tiny_models.make_model(text=TEXT, **options), {}
    for rows in ROWS:
        parts = bounded_parts(model.export_parts(32, 16), Room(rows, 4, POSITIONS))
        write_executorch(parts, folder)
        inputs, outputs = (
            {name: {one: list(shape) for one, shape in getattr(part, ends).items()} for name, part in parts.items()}
            for ends in ("inputs", "outputs")
        )
        graphs = open_program(folder / FILE, inputs, outputs, 1)
        found[rows] = largest_error(model, Parts(graphs, inputs), (32, 16), sizes_of(rows))
    return found


def sizes_of(rows: int) -> list[tuple[int, int, int]]:
    """The sizes that are compared of a program for so many rows, which has an image at most in each."""
    from exports import SIZES

    return [one for one in SIZES if one[0] == rows and one[2] <= 1]


def same_answers(folder: Path) -> int:
    """How many greedy answers of the embedded model, of QUESTIONS, are those of PyTorch."""
    from exports import QUESTIONS, SCENES

    from firebolt_vl.engines import load_engine
    from firebolt_vl.evaluate.digits import draw
    from firebolt_vl.evaluate.exam import pose

    engine, pytorch, same = load_engine(folder / "1", "executorch", threads=1), load_engine(), 0
    scenes, asked = pose(SCENES, 7, "held-out")
    assert len(asked) >= QUESTIONS
    for one in asked[:QUESTIONS]:
        image = draw(scenes[one.scene], 128)
        same += engine.answer(image, one.question.text).tokens == pytorch.answer(image, one.question.text).tokens
    return same


def compare(folder: Path, exported: bool, out: Path | None) -> int:
    """Export to `folder`, or find the exports there, compare and write the page, where ExecuTorch is installed."""
    from importlib.metadata import version

    import torch
    from exported import PARITY
    from exports import QUESTIONS, SSMS

    errors = {"embedded": embedded_errors(folder, exported)}
    print("embedded", errors["embedded"], flush=True)
    same = same_answers(folder)
    print(same, "of", QUESTIONS, flush=True)
    for name, options in SSMS.items():
        with tempfile.TemporaryDirectory() as place:
            errors[f"random, {name}"] = random_errors(Path(place), {"ssm": name.split(",")[0], **options})
        print(name, errors[f"random, {name}"], flush=True)
    page = PAGE.format(
        torch=torch.__version__.partition("+")[0],
        version=version("executorch"),
        parity=PARITY,
        errors="\n".join(f"| {name} | {of[1]:.1e} | {of[3]:.1e} |" for name, of in errors.items()),
        questions=QUESTIONS,
        same=same,
    )
    if out is not None:
        out.write_text(page, encoding="utf-8")
    worst = max(error for of in errors.values() for error in of.values())
    return 0 if worst <= PARITY and same == QUESTIONS else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "executorch")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--exports", type=Path, help="exports to compare, a folder 1 and a folder 3. Default: made anew"
    )
    parser.add_argument("--inside", action="store_true", help="this is the environment: compare")
    options = parser.parse_args()
    if options.inside:
        with tempfile.TemporaryDirectory() as temporary:
            return compare(options.exports or Path(temporary), options.exports is not None, options.out)
    python = install(options.folder.resolve())
    tested = subprocess.run([python, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", TESTS], cwd=ROOT).returncode
    return tested or subprocess.run([python, __file__, *sys.argv[1:], "--inside"]).returncode


if __name__ == "__main__":
    sys.exit(main())
