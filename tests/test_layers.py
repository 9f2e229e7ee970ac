"""The folders are layers: an import only ever points down, and the lower ones need little from outside."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("kernels", "cmm", "files", "views", "model", "evaluate", "train", "bench", "firebolt_vl")
OUTSIDE = {
    "kernels": {"torch", "triton"},
    "cmm": {"torch", "numpy", "safetensors"},
    "files": set(),
    "views": {"numpy", "PIL"},
}


def imports(layer: str):
    """(file, the layer or package that it imports, whether the import is relative) for every import of a folder."""
    for file in sorted((ROOT / layer).rglob("*.py")):
        depth = len(file.relative_to(ROOT).parts) - 1
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name.split(".")[0], False) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield file, node.module.split(".")[0], False
            elif isinstance(node, ast.ImportFrom) and node.level > depth:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                yield from ((file, name.split(".")[0], True) for name in names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer):
    allowed = set(LAYERS) if layer == "firebolt_vl" else set(LAYERS[: LAYERS.index(layer) + 1])
    for file, name, relative in imports(layer):
        if relative and layer != "firebolt_vl":
            assert name in allowed, f"{file.relative_to(ROOT)} imports {name}"
        assert relative or name not in LAYERS, f"{file.relative_to(ROOT)} imports {name}: not by a relative path"


def imports_within(layer: str) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """For each module of a layer, the modules of it that it imports, inside functions too."""
    modules = {}
    for file in sorted((ROOT / layer).rglob("*.py")):
        name = file.relative_to(ROOT).with_suffix("").parts
        modules[name[:-1] if name[-1] == "__init__" else name] = file
    found = {name: set() for name in modules}
    for name, file in modules.items():
        package = name if file.name == "__init__.py" else name[:-1]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                inner = node.module.split(".") if node.module else []
                place = (*package[: len(package) - node.level + 1], *inner)
                for alias in node.names:
                    target = (*place, alias.name) if (*place, alias.name) in modules else place
                    if target in modules and target != name:
                        found[name].add(target)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_no_modules_import_each_other(layer):
    """Each has an order in which all that it imports comes before it, whether it is imported at once or later."""
    order = {".".join(name): {".".join(one) for one in others} for name, others in imports_within(layer).items()}
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(reversed(error.args[1]))) from None


@pytest.mark.parametrize("layer", OUTSIDE)
def test_lower_layers_need_little(layer):
    outside = {name for _, name, relative in imports(layer) if not relative} - set(sys.stdlib_module_names)
    assert outside <= OUTSIDE[layer]


@pytest.mark.parametrize("code", ["import transformers, firebolt_vl", "import kernels"])
def test_the_root_on_the_path_does_no_harm(code):
    """`python` started in the repository finds ./kernels, and transformers looks for a package of that name."""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_tools_that_run_nothing_find_the_layers(layer):
    """An editor looks for firebolt_vl.kernels in firebolt_vl/kernels: a link, or its text without links."""
    link = ROOT / "firebolt_vl" / layer
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text(encoding="utf-8")
    assert target == f"../{layer}"


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (files("firebolt_vl") / "py.typed").is_file()


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_what_the_ops_share_is_theirs(layer):
    """Nothing above kernels/ imports kernels.common; what other layers need lies beside it."""
    for file in sorted((ROOT / layer).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                common = [name for name in imported if "kernels.common" in name]
                assert not common, f"{file.relative_to(ROOT)} imports {common[0]}"
