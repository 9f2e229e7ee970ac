"""What the commands say where they cannot go on: the argument and what is wrong. All of it: make test-messages."""

import json

import messages
import pytest

COMMANDS = ("shout", "ask", "watch", "serve", "demo", "convert", "eval", "train")
PART = [case for case in messages.CASES if case.line.split()[0] in COMMANDS]


@pytest.fixture(scope="module")
def said():
    return list(messages.provoke_all(PART))


def test_every_message_names_what_is_wrong(said):
    assert [(one.line, one.problem, one.err) for one in said if one.problem] == []


def test_what_stands_on_stderr_ends_with_one_line_of_ours(said):
    for one in said:
        assert one.err.splitlines()[-1].startswith("firebolt: "), one


def test_a_disk_that_is_full_is_named(firebolt, checkpoint, image, monkeypatch):
    from firebolt_vl import ask

    def full(*_, **__):
        raise OSError(28, "No space left on device", "out/answers.jsonl")

    monkeypatch.setattr(ask, "load", full)
    result = firebolt("ask", image, "what?", "--checkpoint", checkpoint)
    assert result.code == 1
    assert "out/answers.jsonl: No space left on device; make room" in result.err


def test_the_page_fails_where_a_message_tells_nothing(tmp_path, monkeypatch):
    case = messages.Case("ask no.png what?", ("a word that is not said",))
    monkeypatch.setattr(messages.cli, "run", lambda arguments: 1)
    assert messages.problem(case, 1, "firebolt: no") == "a word that is not said is not named"
    assert messages.problem(case, 0, "") == "exit code 0"
    assert messages.problem(case, 1, "Traceback (most recent call last)") == "a traceback"
    assert messages.problem(case, 1, "firebolt: unexpected KeyError") == "unexpected"
    assert "'is wanted' is not in the form" in messages.problem(case, 1, "firebolt: --op is fft; another is wanted")


def test_keys_that_are_nearly_those_of_a_configuration_are_named(checkpoint, tmp_path):
    from firebolt_vl.model import FireboltConfig

    described = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(ValueError, match=r"conector.*did you mean connector"):
        FireboltConfig(**described, conector="cmm")
    assert FireboltConfig(**described, note="mine").note == "mine"
