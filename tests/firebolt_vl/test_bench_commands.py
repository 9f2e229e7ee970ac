"""What the reports of `firebolt bench` have in common: their files."""

import pytest

from firebolt_vl.bench_commands import give_report, report_file
from firebolt_vl.errors import Misuse


@pytest.mark.parametrize("name", ["report.md", "report.MD", "report.json"])
def test_a_report_is_written_again_over_its_own_and_over_nothing_else(tmp_path, name):
    path = tmp_path / name
    for number in range(2):
        file = report_file(str(path), "Counts\n", "rows", overwrite=False)
        give_report(file, {"rows": [number]}, lambda command: "# Counts\n", False, lambda: None)
    assert ('"rows": [' in path.read_text()) == (name == "report.json")
    with pytest.raises(Misuse, match="--out"):
        report_file(str(path), "Other\n", "others", overwrite=False)
    assert report_file(str(path), "Other\n", "others", overwrite=True) == path
