"""Generated pages of docs/ are current, and every public name and key has words of its own."""

import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API, CONFIGURATION = script("api"), script("configuration")
PUBLIC = [(package, name) for package in API.PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize("writer", [API, CONFIGURATION], ids=["api", "configuration"])
def test_page_is_what_the_script_writes(writer):
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run `make docs`"


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package}.{name}" for package, name in PUBLIC])
def test_public_name_has_a_docstring(package, name):
    value = getattr(importlib.import_module(package), name)
    if isinstance(value, str):
        return
    assert inspect.cleandoc(value.__doc__ or "")
    assert f"\n### {name}\n" in API.page()


def test_every_key_has_a_meaning():
    assert CONFIGURATION.names_without_meaning() == []


def test_pages_hold_no_addresses_and_no_paths():
    for writer in (API, CONFIGURATION):
        for sign in (" at 0x", "<function", "<class", str(DOCS.parent)):
            assert sign not in writer.page()


def test_both_forms_of_docstring_are_read():
    class Columns:
        """Sizes.

        first, second    two of them,
                         on two lines
        third            one

        Not a key.
        """

    class Arguments:
        """Sizes.

        Args:
            first: one of them,
                on two lines.
            second: another: with a colon.

        Raises:
            ValueError: never.
        """

    both = "two of them, on two lines"
    assert CONFIGURATION.meanings(Columns) == {"first": both, "second": both, "third": "one"}
    assert CONFIGURATION.meanings(Arguments) == {
        "first": "one of them, on two lines.",
        "second": "another: with a colon.",
    }
