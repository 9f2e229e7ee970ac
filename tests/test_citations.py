"""Pages, sections and equations that the code cites are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "cmm", "files", "views", "model", "evaluate", "train", "bench", "firebolt_vl", "tests", "docs")
# mathematics.md, section 2a / mathematics.md, 2.11
PLACE = re.compile(r"mathematics\.md,\s+(?:section\s+(?P<section>\d+[a-z]?)|(?P<equation>\d+\.\d+))")


def texts():
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".md", ".toml") and file != Path(__file__).resolve():
                yield file, file.read_text(encoding="utf-8")


def test_every_page_that_is_named_exists():
    for file, text in texts():
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} names {name}"


def test_every_section_and_equation_that_is_cited_exists():
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^##+ (\d+[a-z]?)\. ", page, flags=re.MULTILINE))
    equations = re.findall(r"\((\d+\.\d+)\)", page)
    cited = [(file, match) for file, text in texts() for match in PLACE.finditer(text)]
    assert len(cited) >= 5
    for file, match in cited:
        known = sections if match["section"] else equations
        assert (match["section"] or match["equation"]) in known, f"{file.relative_to(ROOT)}: {match[0]}"


@pytest.mark.parametrize(
    "path", re.findall(r"`([\w/]+(?:\.py)?)`", (ROOT / "docs" / "mathematics.md").read_text("utf-8"))
)
def test_every_file_that_the_page_names_exists(path):
    if "/" in path:
        assert (ROOT / path).exists()
