"""The README says what is: its snippets run as they stand, its tables are those of kept results."""

import json
import re
from pathlib import Path

import pytest

import firebolt_vl
from firebolt_vl.bench import answer, efficiency, measured
from firebolt_vl.bench.kernels import from_csv
from firebolt_vl.evaluate.tiny import markdown

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("code", SNIPPETS, ids=[f"snippet{i}" for i in range(len(SNIPPETS))])
def test_snippet_runs(code, tmp_path, monkeypatch):
    examples = README.parent / "examples"
    (tmp_path / "examples").symlink_to(examples, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__readme__"})


def test_tables_are_those_of_the_shipped_results():
    """They come from `python -m firebolt_vl.evaluate.tiny`."""
    results = json.loads((firebolt_vl.embedded_checkpoint() / "results.json").read_text(encoding="utf-8"))
    assert markdown(results) in README.read_text(encoding="utf-8")


def test_measured_times_are_the_kept_ones():
    """They come from `firebolt bench kernels --op cmm --op vandermonde` and `python -m firebolt_vl.bench.measured`."""
    assert measured.markdown(from_csv(measured.KEPT.read_text(encoding="utf-8"))) in README.read_text(encoding="utf-8")


def test_efficiency_is_the_kept_one():
    """It comes from `firebolt bench answer` and `python -m firebolt_vl.bench.efficiency README.md`."""
    readme = README.read_text(encoding="utf-8")
    assert readme.count(efficiency.BEGIN) == readme.count(efficiency.END) == 1
    if efficiency.KEPT.exists():
        rows = answer.from_csv(efficiency.KEPT.read_text(encoding="utf-8"))
        assert efficiency.written(readme, rows) == readme
    else:  # nothing is told that was not kept
        assert f"{efficiency.BEGIN}\n{efficiency.END}" in readme


def test_pictures_and_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).is_file(), target
