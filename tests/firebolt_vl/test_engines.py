"""firebolt export, and what answers from its graphs: as PyTorch does, and without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import assert_refused
from exported import PARITY, Parts, logits_error

from firebolt_vl import embedded_checkpoint
from firebolt_vl.engines import load_engine
from firebolt_vl.engines.description import FILE, TOKENIZER
from firebolt_vl.evaluate.examples import FOLDER, SCENES, example
from firebolt_vl.export import export
from firebolt_vl.files.writing import lock
from firebolt_vl.views.images import open_image

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

IMAGE = str(FOLDER / "digits-1.png")
QUESTION = "what digit is at the top left?"
# A process in which these cannot be imported.
WITHOUT = ("torch", "transformers", "jinja2", "safetensors", "triton")
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
from firebolt_vl.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The embedded model as ONNX, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with (shared / "export.lock").open("wb") as file:
        while True:
            try:
                lock(file)
                break
            except BlockingIOError:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
                break
        folder = shared / "exported"
        if not folder.exists():
            export("onnx", str(folder))
    return folder


@pytest.fixture(scope="module")
def converted(exported, tmp_path_factory) -> Path:
    """The same graphs for OpenVINO."""
    pytest.importorskip("openvino")
    from firebolt_vl.model.export.openvino_files import convert

    folder = tmp_path_factory.mktemp("openvino")
    described = json.loads((exported / FILE).read_text())
    files = convert({part: exported / file for part, file in described["graphs"].items()}, folder)
    (folder / FILE).write_text(json.dumps({**described, "engine": "openvino", "graphs": files}))
    shutil.copy(exported / TOKENIZER, folder)
    return folder


@pytest.fixture(params=["onnx", "openvino"])
def engine(request):
    folder = request.getfixturevalue("exported" if request.param == "onnx" else "converted")
    return load_engine(folder, request.param, threads=1)


@pytest.mark.parametrize(("rows", "tokens", "images"), [(1, 1, 1), (3, 17, 1), (3, 300, 2), (1, 33, 0), (3, 2, 0)])
def test_logits_are_those_of_pytorch(engine, rows, tokens, images):
    from firebolt_vl.model import FireboltForConditionalGeneration

    model = FireboltForConditionalGeneration.from_pretrained(embedded_checkpoint()).eval()
    assert logits_error(model, Parts.of(engine), rows, tokens, images, (64, 32)) <= PARITY


def test_answers_are_those_of_pytorch(engine):
    pytorch = load_engine()
    questions = [(name, question.text) for name in SCENES for question in example(name)[1]]
    assert len(questions) >= 20
    for name, question in [*questions, (None, "how many digits are there?")]:
        image = None if name is None else open_image(FOLDER / f"{name}.png")
        wanted, spoken = pytorch.answer(image, question), []
        found = engine.answer(image, question, on_token=spoken.append)
        assert (found.tokens, found.text, found.complete) == (wanted.tokens, wanted.text, wanted.complete)
        assert found.probability == pytest.approx(wanted.probability, rel=1e-3)
        assert (spoken, found.prompt_tokens) == (found.tokens, wanted.prompt_tokens)


def test_an_answer_needs_no_pytorch(exported, tmp_path):
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED)
    asked = [sys.executable, script, "ask", IMAGE, QUESTION, "--engine", "onnx", "--checkpoint", exported, "--json"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert (reply["answer"], reply["complete"]) == (load_engine().answer(open_image(IMAGE), QUESTION).text, True)
    assert reply["knows"].startswith("it knows coloured handwritten digits")


def test_weights_in_8_bits_answer_as_pytorch_does(tmp_path):
    """In place, from one graph, whose description says what it is."""
    export("onnx", str(tmp_path / "out"), bits=8)
    engine, pytorch = load_engine(tmp_path / "out", "onnx", threads=1), load_engine()
    assert (engine.description.bits, sorted(engine.description.graphs)) == (8, ["grids", "text"])
    for name in SCENES:
        question = example(name)[1][0].text
        image, spoken = open_image(FOLDER / f"{name}.png"), []
        found = engine.answer(image, question, on_token=spoken.append)
        assert (found.tokens, found.complete) == (pytorch.answer(image, question).tokens, True)
        assert spoken == found.tokens
    assert engine.answer(None, "how many digits are there?", max_new_tokens=1).tokens
    assert len(engine.answer(image, question, max_new_tokens=1).tokens) == 1


def test_bits_that_no_export_has_are_refused(firebolt):
    assert_refused(
        firebolt("export", "onnx", "out", "--bits", "3"), 2, "--bits is 3 with onnx; expected 8 or 4, with onnx"
    )
    assert_refused(
        firebolt("export", "openvino", "out", "--bits", "8"), 2, "--bits is 8 with openvino; expected 8 or 4"
    )
    assert_refused(
        firebolt("export", "kernels", "out", "--bits", "8"), 2, "--bits is 8 with kernels, which have no weights"
    )


def test_an_answer_is_said_on_the_terminal(exported, firebolt):
    done = firebolt("ask", IMAGE, QUESTION, "--engine", "onnx", "--checkpoint", exported)
    assert done.code == 0, done.err
    assert QUESTION in done.out
    assert "probability" in done.out


def test_what_an_engine_cannot_do_is_refused(exported, firebolt, tmp_path):
    ask = ("ask", IMAGE, QUESTION, "--engine", "onnx")
    assert_refused(
        firebolt(*ask), 2, "--engine is onnx without --checkpoint; expected a folder of firebolt export onnx"
    )
    for option in (("--seed", "1"), ("--grounding", "a.png"), ("--device", "cpu"), ("--dtype", "bfloat16")):
        told = f"{option[0]} is given with --engine onnx; leave it out, or say --engine torch"
        assert_refused(firebolt(*ask, "--checkpoint", exported, *option), 2, told)
    asked = ("ask", IMAGE, "<|im_end|>", "--engine", "onnx", "--checkpoint", exported)
    assert_refused(firebolt(*asked), 1, "a control token of this model")
    assert_refused(
        firebolt(*ask, "--checkpoint", tmp_path / "none"), 1, "is no folder; expected one that firebolt export"
    )
    assert_refused(firebolt(*ask, "--checkpoint", embedded_checkpoint()), 1, f"has no {FILE}; expected a folder that")
    asked = ("ask", IMAGE, QUESTION, "--engine", "openvino", "--checkpoint", exported)
    assert_refused(firebolt(*asked), 1, "is for the engine onnx; expected one for openvino")


def test_broken_exports_are_told(exported, firebolt, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    asked = ("ask", IMAGE, QUESTION, "--engine", "onnx", "--checkpoint", broken)
    described = json.loads((exported / FILE).read_text())
    (broken / FILE).write_text("{")
    assert_refused(firebolt(*asked), 1, f"{FILE} cannot be read", "export the model again")
    (broken / FILE).write_text(json.dumps({**described, "format": 2}))
    assert_refused(firebolt(*asked), 1, "is of another version of firebolt-vl; expected format 1")
    (broken / FILE).write_text(json.dumps(described))
    assert_refused(firebolt(*asked), 1, "lacks tokenizer.json; export the model again")
    for file in ("tokenizer.json", *described["graphs"].values()):
        (broken / file).write_text("{}")
    assert_refused(firebolt(*asked), 1, "cannot be loaded")


def test_an_export_is_written_to_a_new_folder(checkpoint, firebolt, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    assert_refused(firebolt("export", "onnx", "there"), 2, "OUT is there, which exists already; name a new folder")
    assert_refused(firebolt("export", "onnx", "a/b"), 2, "but the folder a does not exist")
    template = checkpoint / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("text_of(message['content'])", "text_of(message['content']) | trim")
    )
    refused = firebolt("export", "onnx", "out", "--checkpoint", checkpoint)
    assert_refused(refused, 1, "the checkpoint's chat template changes the question")
    assert not list(tmp_path.glob("*out*"))


def test_another_engine_is_named():
    with pytest.raises(ValueError, match="engine is 'tensorflow'; expected one of torch, onnx, openvino"):
        load_engine(engine="tensorflow")
    with pytest.raises(ValueError, match="threads is 2; expected None with the engine torch"):
        load_engine(threads=2)
