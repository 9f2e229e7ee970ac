"""Every script of examples/ runs as it stands, and what it shows is so."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from numerics import assert_within_budget

from firebolt_vl import embedded_checkpoint
from firebolt_vl.answer_files import Question
from firebolt_vl.errors import Failure

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py"))


def load(name: str):
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_layer_is_trained_in_a_decoder_and_decodes_by_steps():
    assert load("layer_in_a_decoder").main() > 0.8  # a guess is right in one of ten


def test_s4_learns_what_it_read_long_ago():
    assert load("s4_as_a_sequence_layer").main() < 0.5  # a guess leaves 1


def test_a_gentle_start_leaves_what_the_decoder_knows():
    """A decoder that guesses numbers has a loss of 2.3."""
    norm, identity = (losses[0] for losses in load("gentle_start").main(seeds=1).values())
    assert identity[0, 0] < 0.1 < 2 < norm[0, 0]  # counting, at the first step
    assert identity[:, 0].mean() < 0.1 * norm[:, 0].mean()
    for start in (norm, identity):
        assert start[-10:, 1].mean() < start[:10, 1].mean()  # the answer is learned


@pytest.mark.triton
def test_three_implementations_agree():
    exact, found = load("three_implementations").main()
    for key, value in exact.items():
        for name in ("pytorch", "triton"):
            assert_within_budget(found[name][key], found["reference"][key], value)


def test_grounding_is_drawn_where_the_question_asks(tmp_path):
    answer, weights, effects = load("grounding_drawn").main(tmp_path / "out" / "grounding.png")
    assert answer == "8"
    assert weights[1:].argmax() == effects[1:].argmax() == 0  # the tile at the top left
    assert (tmp_path / "out" / "grounding.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_around_own_backbones_learns_and_comes_back():
    before, after = load("own_backbones").main()
    assert after < before


def test_an_actor_of_the_pipeline_answers_as_the_command_does(tmp_path, monkeypatch):
    """Ray, which calls it, has a test of its own: tests/firebolt_vl/test_bulk_ray.py."""
    bulk = load("bulk_ray")
    rows = [{"image": "digits-1.png", "question": "the top left digit?"}, {"image": "gone.png", "question": "why?"}]
    asked = [Question(line, line, row["question"], [row["image"]]) for line, row in enumerate(rows, 1)]
    actor = bulk.Answerer(str(embedded_checkpoint()), str(FOLDER), 8, {"digest": "0"})
    found = actor({"row": [json.dumps(row) for row in asked]})
    assert found["key"] == ["1", "2"]
    answer = json.loads(found["row"][0])
    assert (answer["id"], answer["answer"], answer["by"]) == (1, "8", {"digest": "0", "dtype": "float32"})
    assert found["row"][1] == found["problem"][0] == ""
    assert json.loads(found["problem"][1])[:2] == [2, 2]
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0]) + "\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Failure, match="needs ray; pip install"):
        bulk.main(str(tmp_path / "q.jsonl"), str(tmp_path / "a.jsonl"), None, 1, 0, 8, 8)
    assert not (tmp_path / "a.jsonl").exists()


def test_every_script_has_a_test_and_a_row_in_the_list():
    tests = Path(__file__).read_text(encoding="utf-8")
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f'load("{name}")' in tests
        assert f"[{name}.py]({name}.py)" in listed


def test_a_script_runs_by_its_command(tmp_path):
    """From any folder, and with nothing of the tests."""
    file = FOLDER / "own_backbones.py"
    subprocess.run([sys.executable, str(file)], cwd=tmp_path, check=True, timeout=300)
