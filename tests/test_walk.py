"""docs/walk.md leads from images to a measured model: its code and its commands run in their order, with few steps."""

import re
import shlex
from pathlib import Path

from firebolt_vl.cli import run

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "walk.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
STEPS = "max_steps=150"


def test_the_walk_can_be_walked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "walk"}
    assert PAGE.count(STEPS) == 1
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "walk.md", "exec"), names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line.replace(STEPS, "max_steps=2"))
            assert command == "firebolt"
            assert run(arguments) == 0, f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "mine" / "grounding.png").is_file()
    told = capsys.readouterr().out
    assert all(
        words in told for words in ("score, colour", "majority, shape", "pointing by occlusion", "another image")
    )
    assert (tmp_path / "mine" / "measured" / "own.worst.png").is_file()
