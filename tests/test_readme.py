"""README and docs say what is: their snippets run as they stand, their tables are those of kept results."""

import json
import re
from pathlib import Path

import pytest

import firebolt_vl
from firebolt_vl.bench import answer, efficiency, measured
from firebolt_vl.bench.kernels import from_csv
from firebolt_vl.evaluate.tiny import markdown

ROOT = Path(__file__).resolve().parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", README, *sorted(DOCS.rglob("*.md"))]
WALK = DOCS / "walk.md"  # its blocks are one story, which tests/test_walk.py runs
MOST_LINES = 218


def snippets():
    for page in PAGES:
        if page == WALK:
            continue
        found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for number, code in enumerate(found):
            yield pytest.param(code, id=f"{page.stem}{number}")


def links(page: Path) -> list[tuple[str, str]]:
    """(path, heading) of each link of a page that stays in the repository; "" for what it does not name."""
    return re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))


def headings(page: Path) -> set[str]:
    """The names by which links lead to the headings of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_there_are_snippets():
    assert len(list(snippets())) >= 6


@pytest.mark.parametrize("code", list(snippets()))
def test_snippet_runs(code, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {"__name__": "__snippet__"})


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_tables_are_those_of_the_shipped_results():
    """They come from `python -m firebolt_vl.evaluate.tiny`."""
    results = json.loads((firebolt_vl.embedded_checkpoint() / "results.json").read_text(encoding="utf-8"))
    assert markdown(results) in (DOCS / "embedded-model.md").read_text(encoding="utf-8")


def test_measured_times_are_the_kept_ones():
    """They come from `firebolt bench kernels --op cmm --op vandermonde` and `python -m firebolt_vl.bench.measured`."""
    kept = from_csv(measured.KEPT.read_text(encoding="utf-8"))
    assert measured.markdown(kept) in (DOCS / "kernels.md").read_text(encoding="utf-8")


def test_efficiency_is_the_kept_one():
    """It comes from `firebolt bench answer` and `python -m firebolt_vl.bench.efficiency docs/generation.md`."""
    page = (DOCS / "generation.md").read_text(encoding="utf-8")
    rows = answer.from_csv(efficiency.KEPT.read_text(encoding="utf-8"))
    assert efficiency.written(page, rows) == page


def test_the_readmes_table_is_a_part_of_that():
    page = (DOCS / "generation.md").read_text(encoding="utf-8").splitlines()
    told = README.read_text(encoding="utf-8").partition("## How fast\n")[2].partition("\n## ")[0].splitlines()
    rows = [line for line in told if line.startswith(("|", "Medians"))]
    assert len(rows) > 3
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pictures_and_links_lead_somewhere(page):
    for path, heading in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in headings(target), heading
