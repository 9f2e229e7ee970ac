"""`make test-versions`: what it installs, and what it makes of what pytest says."""

import subprocess
import sys
from pathlib import Path

import pytest
import versions
from packaging.specifiers import SpecifierSet

ROW = versions.Row("newest", dict.fromkeys(versions.VARIED, "1.2.3"), passed=7, failed=0, skipped=1, seconds=9)


def test_every_varied_package_has_bounds_on_both_sides():
    text = (versions.ROOT / "setup.py").read_text(encoding="utf-8")
    for name, oldest in versions.lower_bounds().items():
        assert f'"{name}>={oldest},<' in text


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [("5.23", "5.23.4", "5.24.0"), ("11", "11.0.0", "11.1.0"), ("2.12.1", "2.12.9", "2.13")],
)
def test_the_oldest_environment_has_the_newest_patch_of_a_bound(bound, inside, outside):
    allowed = SpecifierSet(versions.pinned(bound))
    assert inside in allowed
    assert outside not in allowed


def test_an_environment_in_which_no_test_ran_is_not_good():
    assert ROW.is_good
    assert not ROW._replace(passed=0).is_good
    assert not ROW._replace(failed=1).is_good


def test_the_table_names_versions_counts_and_command():
    table = versions.markdown([ROW], ["tests/model"])
    (header, rule, cells) = table[table.index(versions.BEGIN) :].splitlines()[1:]
    assert header.count("|") == rule.count("|") == cells.count("|")
    assert "1.2.3" in cells
    assert "make test-versions" in table


def test_an_unknown_environment_is_refused():
    script = Path(versions.__file__)
    done = subprocess.run([sys.executable, script, "latest"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "latest; expected oldest or newest" in done.stderr
