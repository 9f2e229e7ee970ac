"""How many parameters the functions of the kernels have: what belongs together travels as one value."""

import ast
from pathlib import Path

import pytest
from counts import MOST_OF_A_FUNCTION, MOST_OF_A_KERNEL

from firebolt_vl import kernels

FOLDER = Path(kernels.__file__).resolve().parent


def is_compiled(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def is_promised(node: ast.FunctionDef) -> bool:
    """Whether it has the signature of a public op, or of one of its implementations."""
    return node.name in kernels.__all__


def functions():
    for file in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield file.relative_to(FOLDER).as_posix(), node


def parameters(node: ast.FunctionDef) -> int:
    arguments = node.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def test_no_function_has_many_parameters():
    found = {
        f"{file}: {node.name}": parameters(node)
        for file, node in functions()
        if not is_promised(node)
        and parameters(node)
        > (MOST_OF_A_KERNEL if is_compiled(node) and node.name.endswith("_kernel") else MOST_OF_A_FUNCTION)
    }
    assert not found


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: file.relative_to(FOLDER).as_posix())
def test_no_file_is_formatted_by_hand(file):
    assert "fmt: skip" not in file.read_text(encoding="utf-8")
