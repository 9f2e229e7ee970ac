"""The study of trainings by trl: it runs, keeps what is finished, and tells means and spreads."""

import json

from firebolt_vl.train.post.study.__main__ import TITLES, table
from firebolt_vl.train.post.study.rows import quarter
from firebolt_vl.train.post.study.runs import LAST, VARIANTS, Sizes, read_results


def test_every_variant_has_a_title():
    assert {"start", *VARIANTS} == set(TITLES)
    assert LAST in VARIANTS


def test_the_table_tells_means_and_spreads(tmp_path):
    keys = ("accuracy", "harder", "wordings", "occlusion", "weights")
    (tmp_path / "results").mkdir()
    (tmp_path / "start.json").write_text(json.dumps(dict.fromkeys(keys, 0.5)))
    for seed, value in enumerate((0.25, 0.75)):
        (tmp_path / "results" / f"sft-{seed}.json").write_text(json.dumps(dict.fromkeys(keys, value)))
    lines = table(read_results(tmp_path)).splitlines()
    assert lines[2] == "| start model | 1 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |"
    assert lines[3].startswith("| SFT, as many further steps (control) | 2 | 50.0 (25.0 to 75.0) |")
    assert len(lines) == 4


def test_quarters_are_boxes_in_pixels():
    assert [quarter(tile) for tile in range(4)] == [
        [0, 0, 64, 64],
        [64, 0, 128, 64],
        [0, 64, 64, 128],
        [64, 64, 128, 128],
    ]


def test_the_least_of_it_is_small():
    least = Sizes.quick()
    assert all(getattr(least, name) <= getattr(Sizes(), name) for name in vars(least))
