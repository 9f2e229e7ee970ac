"""Every script of examples/ runs as it stands, and what it shows is so."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from numerics import assert_within_budget

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
