"""What a stranger may put into a checkpoint's folder: code that leaves a mark if it runs, and sizes without end."""

import json
import os
import pickle
import zipfile
from pathlib import Path

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")
# Every name that code is looked for under by some version of transformers, accelerate, peft, datasets or PyTorch.
CODE = (
    *("configuration_firebolt.py", "modeling_firebolt.py", "processing_firebolt.py", "tokenization_firebolt.py"),
    *("image_processing_firebolt.py", "evil.py", "__init__.py", "setup.py", "conftest.py", "sitecustomize.py"),
    *("custom_generate/generate.py", "handler.py", "pipeline.py", "usercustomize.py", "hubconf.py", "metric.py"),
)
PICKLES = (
    *("pytorch_model.bin", "adapter_model.bin", "model.pt", "best.pt", "latest.pt", "stage.pt", "task.pt", "vocab.pkl"),
    *("optimizer.bin", "scheduler.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "training_args.bin"),
    *("tokenizer.pkl", "consolidated.00.pth", "step_0001000.pt"),
)
TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.popen('touch MARK') }}",
    "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c }}{% endfor %}{{ ''.__class__.__mro__ }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ ''['__class__'] }}{{ lipsum.__globals__['os'].system('touch MARK') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
)
LOOPING_TEMPLATES = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10**10 * 10**10**10 * '9'|int ** 99999 }}",
    "{% set x = namespace(y='aa') %}{% for i in range(60) %}{% set x.y = x.y ~ x.y %}{% endfor %}{{ x.y }}",
    "{% set x = namespace(y=['a']) %}{% for i in range(60) %}{% set x.y = [x.y, x.y] %}{% endfor %}{{ x.y }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ lipsum(n=10**7) }}",
    "{% set x = 'a' * 1000 %}{% set y = x.replace('a', x) %}{{ y.replace('a', y) }}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 90_000 + "{% endfor %}{% endset %}{{ x }}",
    "{% set x = range(99999)|list %}{% for i in x %}{% if 'q' in x %}{% endif %}{% endfor %}",
    "{% for x in [[1]] recursive %}{{ loop([[1], [2]]) }}{{ loop([[1], [2]]) }}{% endfor %}",
    "{{ messages|map('center', 10**9)|list }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "x" * 200_000,
)


class Payload:
    """Unpickling it makes the file that it names."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


def plant_pickles(folder: Path, mark: Path, names=PICKLES) -> None:
    """In PyTorch's format, a zip file, and as plain pickles in turn."""
    for number, name in enumerate(names):
        data = pickle.dumps({"model_state_dict": Payload(mark)})
        if number % 2:
            (folder / name).write_bytes(data)
        else:
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("archive/data.pkl", data)
                archive.writestr("archive/version", "3\n")


def plant_code(folder: Path, mark: Path) -> None:
    """Python files, and every JSON file of the folder names their classes."""
    code = f"open({str(mark)!r}, 'w')\nclass Evil:\n    def __init__(self, *a, **k): pass\n    from_pretrained = None\n"
    for name in CODE:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code + "def generate(*a, **k): pass\n")
    named = dict.fromkeys(CLASSES, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"):
        change_json(folder / name, auto_map=named, custom_pipelines={"x": {"impl": "evil.Evil"}})


def change_json(file: Path, **changes) -> None:
    """Lay `changes` over a JSON file's object; a dotted key goes into it, "a__b" too."""
    content = json.loads(file.read_text()) if file.exists() else {}
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = content
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    file.write_text(json.dumps(content))


def make_special(file: Path, kind: str) -> None:
    """A thing in the place of a file that must not be opened, or cannot be."""
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "dangling":
        file.symlink_to("nowhere")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "huge":  # a hole: takes no room on the disk
        with file.open("wb") as hole:
            hole.truncate(10**9)
    elif kind == "deep":
        file.write_text("[" * 100_000)
    else:
        raise ValueError(kind)


def header_of(file: Path, header: dict, data: bytes = b"") -> None:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
