"""Counts that say how readable the code is, of one checkout or of several side by side.

python tests/support/counts.py [--root CHECKOUT ...] [--no-types]
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from firebolt_vl.files.tables import markdown_table

FOLDERS = ("kernels", "cmm", "files", "views", "model", "evaluate", "train", "bench", "firebolt_vl")
BLOCK = 6
SHOWN = 3
# Parameters beyond which a signature no longer reads as a formula.
MOST_OF_A_KERNEL, MOST_OF_A_FUNCTION = 18, 12
UNRESOLVED = ("reportMissingImports", "reportMissingModuleSource")


class Function(NamedTuple):
    name: str
    parameters: int
    lines: int
    kind: str
    """"kernel" (a Triton function that is launched), "helper" (one that kernels call) or "function"."""


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """The files of code, with their text; links to folders are not followed."""
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root), file.read_text(encoding="utf-8")


def functions(files: Iterable[tuple[Path, str]]) -> list[Function]:
    """Every function and method. A Triton function that no Triton function calls is a kernel."""
    found = []
    called = set()
    for path, text in files:
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            jit = any("jit" in ast.unparse(decorator).split("(")[0].split(".") for decorator in node.decorator_list)
            if jit:
                called.update(_called(node))
            found.append((path, node, jit))
    return [
        Function(
            f"{path}: {node.name}",
            _parameters(node),
            node.end_lineno - node.lineno + 1,
            "function" if not jit else "helper" if node.name in called else "kernel",
        )
        for path, node, jit in found
    ]


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + bool(node.args.vararg) + bool(node.args.kwarg)


def _called(node: ast.AST) -> Iterator[str]:
    """Names of what a function calls, methods by their last name."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            yield ast.unparse(call.func).split(".")[-1]


def repeated(files: Iterable[tuple[Path, str]]) -> tuple[int, int]:
    """(blocks, lines) that stand in more than one place: runs of six lines and more, whatever their indentation.

    Empty lines, comments, imports and lines without a word are passed over.
    """
    windows = defaultdict(list)
    for path, text in files:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if re.search(r"\w", line) and not re.match(r"#|import |from .* import", line)]
        for start in range(len(lines) - BLOCK + 1):
            windows[tuple(lines[start : start + BLOCK])].append((path, start))
    places = sorted({place for found in windows.values() if len(found) > 1 for place in found})
    covered = {(path, start + i) for path, start in places for i in range(BLOCK)}
    return sum((path, line - 1) not in covered for path, line in covered), len(covered)


def types(root: Path) -> Counter | None:
    """Errors of basedpyright in its standard mode, by (folder, rule); None where it is not installed."""
    command = Path(sys.executable).with_name("basedpyright")
    if not command.exists():
        return None
    with tempfile.TemporaryDirectory() as name:  # settings of its own, so that two checkouts are held to the same
        copy = Path(name)
        for folder in (*FOLDERS, "tests", "typings"):
            if (root / folder).is_dir():
                shutil.copytree(root / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("*.pyc"))
        settings = {"typeCheckingMode": "standard", "extraPaths": ["tests/support"]}
        (copy / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
        checked = subprocess.run(
            [command, "--outputjson", "--pythonpath", sys.executable], cwd=copy, capture_output=True, text=True
        )
        problems = json.loads(checked.stdout)["generalDiagnostics"]
        return Counter(
            # `resolve`: a file that is reached through a link in firebolt_vl/ counts for the folder that has it
            (Path(problem["file"]).resolve().relative_to(copy.resolve()).parts[0], problem.get("rule", ""))
            for problem in problems
            if problem["severity"] == "error" or problem.get("rule") in UNRESOLVED
        )


def counts(root: Path, with_types: bool = True) -> dict[str, str]:
    """What is counted of a checkout, in words and figures."""
    files = list(sources(root))
    found = functions(files)
    table = {"files of code": f"{len(files)}", "lines of code": f"{sum(text.count(chr(10)) for _, text in files):,}"}
    for kind, most in (
        ("kernel", MOST_OF_A_KERNEL),
        ("helper", MOST_OF_A_FUNCTION),
        ("function", MOST_OF_A_FUNCTION),
    ):
        those = [function for function in found if function.kind == kind]
        parameters = sorted((function.parameters for function in those), reverse=True)
        name = {"kernel": "kernels (Triton, launched)", "helper": "helpers of kernels", "function": "other functions"}
        table[name[kind]] = f"{len(those)}"
        table[f"{name[kind]}: most parameters"] = ", ".join(str(count) for count in parameters[:SHOWN]) or "-"
        table[f"{name[kind]}: over {most} parameters"] = f"{sum(count > most for count in parameters)}"
        longest = sorted(those, key=lambda function: (-function.lines, function.name))[:SHOWN]
        table[f"{name[kind]}: longest"] = "; ".join(f"{one.name} ({one.lines})" for one in longest) or "-"
    blocks, lines = repeated(files)
    table[f"repeated blocks of {BLOCK} lines and more"] = f"{blocks} ({lines:,} lines)"
    table["longest files"] = "; ".join(
        f"{path} ({text.count(chr(10))})" for path, text in sorted(files, key=lambda f: -f[1].count("\n"))[:SHOWN]
    )
    table["lines of README"] = f"{(root / 'README.md').read_text(encoding='utf-8').count(chr(10))}"
    if with_types:
        table |= _type_counts(types(root))
    return table


def _type_counts(problems: Counter | None) -> dict[str, str]:
    names = ("unresolved imports, tests too", "type errors in kernels, cmm, model", "type errors in all code")
    if problems is None:
        return dict.fromkeys(names, "basedpyright is not installed")
    errors = {key: count for key, count in problems.items() if key[1] not in UNRESOLVED}
    figures = (
        sum(count for (_, rule), count in problems.items() if rule in UNRESOLVED),
        sum(count for (folder, _), count in errors.items() if folder in ("kernels", "cmm", "model")),
        sum(count for (folder, _), count in errors.items() if folder != "tests"),
    )
    return {name: str(figure) for name, figure in zip(names, figures)}


def markdown(tables: Sequence[dict[str, str]], names: Sequence[str]) -> str:
    """Counts of checkouts beside each other, a column for each."""
    return markdown_table(["", *names], [[row, *(table[row] for table in tables)] for row in tables[0]])


def main() -> None:
    here = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(prog="python tests/support/counts.py", description="Count what a reader meets.")
    parser.add_argument("--root", action="append", type=Path, help="a checkout; given again, another column")
    parser.add_argument("--no-types", action="store_true", help="leave the type checker out")
    options = parser.parse_args()
    roots = options.root or [here]
    print(markdown([counts(root, not options.no_types) for root in roots], [root.resolve().name for root in roots]))


if __name__ == "__main__":
    main()
