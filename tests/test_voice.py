"""One voice: errors have one form, and docstrings begin with a verb or a noun."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from voice import FRAGMENT, OTHER_FORMS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "cmm", "model", "files", "views", "evaluate", "train", "bench", "firebolt_vl")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def trees(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """The Python files of a folder, parsed."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string of a file that is no docstring: messages are put together in many ways before they are raised."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def other_forms(tree: ast.Module) -> list[tuple[int, str]]:
    return [(line, text) for line, text in texts(tree) if any(form in text for form in OTHER_FORMS)]


def fragments(tree: ast.Module) -> list[tuple[str, str]]:
    """The names and first lines of docstrings that begin with none of a verb and a noun."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            first = text.splitlines()[0]
            if FRAGMENT.match(first):
                found.append((getattr(node, "name", "module"), first))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_say_what_an_argument_is_and_what_is_expected(folder):
    assert [(file, *found) for file, tree in trees(folder) for found in other_forms(tree)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_verb_or_a_noun(folder):
    assert [(file, *found) for file, tree in trees(folder) for found in fragments(tree)] == []


def test_other_forms_and_fragments_are_seen():
    source = '''
def check(op):
    """Whether it can be."""
    if op:
        raise ValueError(f"{op!r} came, one of a, b is wanted")
    raise ValueError("op: is 1; expected 2")
'''
    tree = ast.parse(source)
    assert other_forms(tree) == [(5, " came, one of a, b is wanted")]
    assert fragments(tree) == [("check", "Whether it can be.")]
