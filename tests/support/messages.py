"""All that the commands say where they cannot go on, on one page: read it as somebody who has never seen this project.

python tests/support/messages.py [OUT.md]     (make test-messages)

Each case is provoked for real, in a folder of its own. A problem is counted where the exit code is 0, a traceback or
the word "unexpected" is shown, the message is not in the one form (`argument is VALUE; expected WHAT`), or one of the
case's words is missing.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import eval_messages
import payloads
import torch
from originals import VECTORS, letter_tokenizer, write_original
from PIL import Image
from tiny_models import write_checkpoint
from voice import OTHER_FORMS

from firebolt_vl import cli


class Case(NamedTuple):
    """A command line, and words that its message has to have: what is wrong."""

    line: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None


class Said(NamedTuple):
    line: str
    code: int
    out: str
    err: str
    problem: str


def make_world(folder: Path) -> None:
    """An image, a video that is none, a good checkpoint, one of the original and data files, in `folder`."""
    Image.effect_noise((64, 48), 60).convert("RGB").save(folder / "a.png")
    (folder / "text.png").write_text("no image")
    (folder / "clip.mp4").write_text("no video")
    (folder / "cut.jpg").write_bytes(b"")
    (folder / "folder").mkdir()
    with quiet():
        write_checkpoint(folder / "model")
        write_original(folder / "original")
        letter_tokenizer().save_pretrained(folder / "original")
    (folder / "questions.jsonl").write_text('{"image": "a.png", "question": "what?"}\n')
    (folder / "bad.jsonl").write_text('{"image": "a.png"}\nno json\n{"question": 7}\n')
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (folder / "rows.jsonl").write_text(json.dumps({"image": "a.png", "conversations": turns}) + "\n")
    (folder / "badrows.jsonl").write_text('{"image": "no.png", "conversations": []}\n')
    run = ('model = "model"', 'data = ["rows.jsonl"]', "max_steps = 1", "batch_size = 1", "workers = 0", "")
    (folder / "run.toml").write_text("\n".join(run))
    (folder / "deep.toml").write_text("x = " + "[" * 5000)


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def spoiled(**changes) -> Callable[[Path], None]:
    """The good checkpoint with other values in config.json; a dotted key has "__" in it."""
    return lambda folder: payloads.change_json(folder / "model" / "config.json", **changes)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model" / name).unlink()


def special(name: str, kind: str) -> Callable[[Path], None]:
    return lambda folder: payloads.make_special(folder / "model" / name, kind)


def pickled(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()
    torch.save(VECTORS.under("param"), folder / "model" / "pytorch_model.bin")


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model" / "chat_template.jinja").write_text(text)


ASK = "ask a.png what? --max-new-tokens 2 --checkpoint"
CASES = [
    Case("shout", ("shout",)),
    Case("ask", ("IMAGE",)),
    Case("ask a.png", ("QUESTION",)),
    Case("ask a.png what? --loud", ("--loud",)),
    Case("ask a.png what? --device tpu", ("--device", "tpu", "cpu")),
    Case("ask a.png what? --quantize int3", ("--quantize", "int8")),
    Case("ask a.png what? --seed x", ("--seed is x", "integer")),
    Case("ask a.png what? --max-new-tokens 0", ("--max-new-tokens", "1")),
    Case("ask no.png what?", ("no.png", "does not exist")),
    Case("ask folder what?", ("folder", "expected one image file")),
    Case("ask text.png what?", ("text.png", "not an image")),
    Case("ask cut.jpg what?", ("cut.jpg",)),
    Case("ask a.png what? --grounding out.jpg", ("--grounding", "out.jpg", ".png")),
    Case("ask a.png what? --grounding no/out.png", ("--grounding", "no/out.png")),
    Case("ask a.png what? --grounding a.png", ("--grounding", "a.png")),
    Case("ask a.png what? --out x.jsonl", ("--out", "--batch")),
    Case("ask a.png what? --batch questions.jsonl --out x.jsonl", ("IMAGE", "--batch")),
    Case("ask --batch questions.jsonl", ("--batch", "--out")),
    Case("ask --batch no.jsonl --out x.jsonl", ("no.jsonl",)),
    Case("ask --batch bad.jsonl --out x.jsonl --checkpoint model", ("bad.jsonl",)),
    Case(f"{ASK} modle", ("modle", "did you mean model?")),
    Case(f"{ASK} tiyn", ("tiyn", "did you mean tiny?")),
    Case(f"{ASK} no/such/model", ("no/such/model",)),
    Case(f"{ASK} nobody/nothing", ("nobody/nothing",)),
    Case(f"{ASK} hf:a/b/c", ("hf:a/b/c", "ORG/NAME")),
    Case(f"{ASK} folder", ("folder", "config.json")),
    Case(f"{ASK} a.png", ("a.png", "file")),
    Case(f"{ASK} model", ("config.json",), without("config.json")),
    Case(f"{ASK} model", ("model.safetensors",), without("model.safetensors")),
    Case(f"{ASK} model", ("tokenizer.json",), without("tokenizer.json")),
    Case(f"{ASK} model", ("processor_config.json",), without("processor_config.json")),
    Case(f"{ASK} model", ("pytorch_model.bin", "safetensors"), pickled),
    Case(f"{ASK} model", ("config.json", "pipe"), special("config.json", "fifo")),
    Case(f"{ASK} model", ("tokenizer.json", "link"), special("tokenizer.json", "dangling")),
    Case(f"{ASK} model", ("tokenizer.json", "bytes"), special("tokenizer.json", "huge")),
    Case(f"{ASK} model", ("tokenizer.json",), special("tokenizer.json", "deep")),
    Case(f"{ASK} model", ("model.safetensors",), special("model.safetensors", "huge")),
    Case(f"{ASK} model", ("llava",), spoiled(model_type="llava")),
    Case(f"{ASK} model", ("connector", "glue", "cmm"), spoiled(connector="glue")),
    Case(f"{ASK} model", ("conector", "connector"), spoiled(conector="cmm")),
    Case(f"{ASK} model", ("patch_size", "0"), spoiled(vision_config__patch_size=0)),
    Case(f"{ASK} model", ("num_attention_heads", "5"), spoiled(text_config__num_attention_heads=5)),
    Case(f"{ASK} model", ("hidden_size",), spoiled(text_config__hidden_size="wide")),
    Case(f"{ASK} model", ("num_hidden_layers",), spoiled(text_config__num_hidden_layers=10**8)),
    Case(f"{ASK} model", ("state_size",), spoiled(cmm_config__state_size=10**9)),
    Case(f"{ASK} model", ("state_sise", "state_size"), spoiled(cmm_config__state_sise=8)),
    Case(f"{ASK} model", ("chat_template",), template("{% for i in range(10**9) %}{% endfor %}")),
    Case(f"{ASK} model", ("chat_template", "nothing"), template("{{ messages|nothing }}")),
    Case(f"{ASK} model", ("chat_template",), template("{% if %}")),
    Case("watch no.mp4 what? --model model", ("no.mp4",)),
    Case("watch clip.mp4 what? --model model", ("clip.mp4",)),
    Case("watch a.png what?", ("--model",)),
    Case("watch a.png what? --model model", ("model", "foveated")),
    Case("watch a.png what? --model modle", ("modle",)),
    Case("watch a.png what? --model model --frames 0", ("--frames", "1")),
    Case("watch a.png what? --model model --mode twice", ("--mode", "twice", "coarse_fine")),
    Case("watch a.png what? --model model --attention a.mp4", ("--attention", ".gif")),
    Case("serve --checkpoint modle --port 0", ("modle",)),
    Case("serve --image-folder no --port 0", ("--image-folder", "no")),
    Case("serve --host 256.0.0.1", ("--host", "256.0.0.1")),
    Case("serve --port 70000", ("--port", "70000", "65535")),
    Case("serve --batch-size 0", ("--batch-size", "0")),
    Case("demo --port 70000", ("--port", "70000", "65535")),
    Case("demo --largest-file 0", ("--largest-file", "0", "1")),
    Case("demo --device tpu", ("--device", "tpu", "cuda")),
    Case("convert model out", ("model", "nothing to convert")),
    Case("convert original original", ("original", "new folder")),
    Case("convert original no/out", ("no/out",)),
    Case("convert original out --kernel-taps 0", ("--kernel-taps", "1")),
    Case("convert original out --decoder nowhere", ("--decoder", "nowhere")),
    Case("convert orignal out", ("orignal", "did you mean original?")),
    Case("eval", ("command",)),
    *(Case(*case) for case in eval_messages.CASES),
    Case("eval tiny --checkpoint folder", ("folder", "config.json")),
    Case("bench kernels --op glue", ("--op", "glue", "film")),
    Case("bench kernels --dtype int8", ("--dtype", "int8")),
    Case("bench kernels --out a.png", ("--out", "a.png")),
    Case("bench answer --only nobody", ("--only", "nobody")),
    Case("bench compile --target sm_1", ("--target", "sm_1", "sm_90")),
    Case("bench compile --out a.txt", ("--out", "a.txt", ".md")),
    Case("bench predict --chip b200", ("--chip", "b200", "h100")),
    Case("bench host --op glue", ("--op", "glue", "film")),
    Case("bench emulate --target gfx942", ("--target", "gfx942", "sm_90")),
    Case("bench emulate --out a.txt", ("--out", "a.txt", ".md")),
    Case("data check no.jsonl", ("no.jsonl",)),
    Case("data check badrows.jsonl", ("badrows.jsonl",)),
    Case("data check rows.jsonl --max-length 5", ("--max-length", "--checkpoint")),
    Case("data check rows.jsonl --checkpoint folder", ("folder", "tokenizer")),
    Case("data convert nothing rows.jsonl out.jsonl", ("nothing", "cc3m")),
    Case("data convert llava-cot no.jsonl out.jsonl", ("no.jsonl",)),
    Case("data convert mmpr rows.jsonl out.jsonl", ("rows.jsonl",)),
    Case("data convert llava-cot rows.jsonl out.jsonl --pattern x", ("--pattern", "cc3m")),
    Case("train nothing", ("nothing", "stage1")),
    Case("train no.toml", ("no.toml",)),
    Case("train deep.toml", ("deep.toml",)),
    Case("train run.toml lr=fast --out out", ("lr", "fast", "number")),
    Case("train run.toml learning_rate=1 --out out", ("learning_rate",)),
    Case("train run.toml model=modle --out out", ("model", "modle")),
    Case("train run.toml data=no.jsonl --out out", ("no.jsonl",)),
    Case("train run.toml data=badrows.jsonl --out out", ("badrows.jsonl",)),
    Case("train stage1 --out out", ("data",)),
    Case("train run.toml precision=int4 --out out", ("precision", "int4", "bf16")),
    Case("train run.toml --out a.png", ("out", "a.png")),
    Case("ablate nothing --out out", ("nothing", "ssm")),
    Case("ablate --out a.png", ("--out", "a.png")),
]


def provoke(case: Case, world: Path) -> Said:
    """Run a command in a copy of the world, and return what it says."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(world, work)
        case.prepare(work)
        before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
        os.chdir(work)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.run(case.line.split())
        finally:
            os.chdir(before)
    return Said(case.line, code, out.getvalue().strip(), err.getvalue().strip(), problem(case, code, err.getvalue()))


def problem(case: Case, code: int, err: str) -> str:
    if code == 0:
        return "exit code 0"
    if "Traceback" in err:
        return "a traceback"
    if "unexpected" in err:
        return "unexpected"
    if other := next((words for words in OTHER_FORMS if words in err), None):
        return f"{other.strip()!r} is not in the form `argument is VALUE; expected WHAT`"
    missing = [word for word in case.words if word not in err]
    return f"{missing[0]} is not named" if missing else ""


def provoke_all(cases: list[Case] = CASES) -> Iterator[Said]:
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        for case in cases:
            yield provoke(case, Path(folder))


def main() -> None:
    page, bad = ["# What the commands say where they cannot go on", ""], 0
    for said in provoke_all():
        page += [f"    firebolt {said.line}", f"    -> {said.code}", ""]
        page += [f"> {line}" for line in said.err.splitlines()[-3:]] + [""]
        if said.problem:
            bad += 1
            page += [f"**PROBLEM: {said.problem}**", ""]
    text = "\n".join(page)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text)
    print(f"{len(CASES)} messages, {bad} with a problem", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
