"""A fast start: what is left out is there once it is asked for, a command alone leaves it out, answers are the same."""

import gc
import json
import subprocess
import sys

import pytest

from firebolt_vl import cli, starting
from firebolt_vl.model.compat import TESTED

COMPILES_LATER = """
import sys, types
from firebolt_vl import starting
starting.begin_command()
starting.import_for_answers()
from firebolt_vl import model
import torch, transformers
package = sys.modules[starting.COMPILER]
assert "torch._dynamo.utils" not in sys.modules
assert transformers.utils.is_scipy_available.__name__ == "is_scipy_available"
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
x = torch.arange(3.0)
assert torch.equal(compiled(x), x.sin() + 1)
assert sys.modules[starting.COMPILER] is package is torch._dynamo
assert type(package) is types.ModuleType
assert "torch._dynamo.utils" in sys.modules
"""

IN_ANOTHER_PROCESS = """
import sys
from firebolt_vl import starting
starting.import_for_answers()
assert "torch" not in sys.modules
"""

WITH_ANOTHER_VERSION = """
import sys, torch, transformers
from firebolt_vl import starting
transformers.__version__ = "5.99.0"
starting.begin_command()
starting.import_for_answers()
assert starting.COMPILER not in sys.modules
assert torch.distributed.is_available.__module__ == "torch.distributed"
"""


def test_the_versions_are_those_that_the_models_were_tested_with():
    assert starting.TESTED == TESTED


@pytest.mark.parametrize("program", [COMPILES_LATER, IN_ANOTHER_PROCESS, WITH_ANOTHER_VERSION])
def test_a_process(program):
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_answer_with_its_picture_is_that_of_a_process_that_imports_all(checkpoint, image, tmp_path, capsys):
    asked = ["ask", str(image), "where is it?", "--checkpoint", str(checkpoint), "--max-new-tokens", "3", "--json"]
    pictures = [tmp_path / "whole.png", tmp_path / "fast.png"]
    whole, fast = ([*asked, "--quantize", "int8", "--grounding", str(picture)] for picture in pictures)
    assert cli.run(whole) == 0
    done = subprocess.run([sys.executable, "-m", "firebolt_vl", *fast], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    here, there = json.loads(capsys.readouterr().out), json.loads(done.stdout)
    for reply in (here, there):
        del reply["timing"], reply["grounding"]["picture"]
    assert there == here
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_objects_are_collected_again_after_the_region():
    with starting.uncollected():
        assert not gc.isenabled()
        with starting.uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_nothing_is_left_of_the_last_search_except_beside_triton(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setitem(sys.modules, "triton", None)
    starting.end_command()
    assert frozen == []
    monkeypatch.delitem(sys.modules, "triton")
    starting.end_command()
    assert frozen == [True]


@pytest.mark.parametrize(("marked", "options"), [(None, {"recursive": False}), (len, {}), (len, {"reason": "why"})])
def test_a_mark_changes_nothing(marked, options):
    made = starting._unmarked(marked, **options)
    assert (made(len) if marked is None else made) is len
