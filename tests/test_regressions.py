"""Examples that a property test once failed, found by `make fuzz` and kept in tests/regressions, are run again."""

from pathlib import Path

from fuzz import replay

TESTS = Path(__file__).resolve().parent


def test_what_was_once_found_stays_mended():
    code, said = replay(TESTS)
    assert code == 0, said
