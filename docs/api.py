"""Write docs/api.md, the public names with their signatures and docstrings: python docs/api.py"""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedConfig

PAGE = Path(__file__).with_name("api.md")
PACKAGES = ("firebolt_vl", "firebolt_vl.kernels", "firebolt_vl.cmm", "firebolt_vl.model", "firebolt_vl.evaluate")
HEAD = """# Public names

Every name that the packages export, as `help()` tells it. Written by `make docs` from the docstrings, which is where to
mend it. Equations are in [mathematics.md](mathematics.md), keys of configurations in
[configuration.md](configuration.md).
"""


def page() -> str:
    """The text of docs/api.md."""
    return "\n".join([HEAD, *(line for name in PACKAGES for line in _package(importlib.import_module(name)))]) + "\n"


def public_methods(kind: type) -> dict[str, Any]:
    """Public methods and properties with a docstring, a class's own and those of its bases in this package."""
    own = {}
    for base in inspect.getmro(kind):
        for name, member in vars(base).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            function = inspect.unwrap(function) if callable(function) else function
            ours = inspect.isfunction(function) and function.__module__.startswith("firebolt_vl")
            if ours and not name.startswith("_") and function.__doc__:
                own.setdefault(name, function)
    return own


def _package(package: ModuleType) -> list[str]:
    lines = [f"## {package.__name__}", "", inspect.getdoc(package) or "", ""]
    for name in sorted(package.__all__, key=str.lower):
        lines += _entry(package.__name__, name, getattr(package, name))
    return lines[:-1] if package.__name__ == PACKAGES[-1] else lines


def _entry(package: str, name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        shown = _signature(value.__init__) if _writes_its_own_init(value) else "(...)"
        lines = [f"### {name}", "", *_code(f"class {package}.{name}{shown}"), *_doc(value)]
        for method, function in public_methods(value).items():
            lines += [f"#### {name}.{method}", "", *_code(f"{method}{_signature(function)}"), *_doc(function)]
        return lines
    if inspect.ismodule(value):
        return [f"### {name}", "", *_doc(value)]
    if callable(value):
        return [f"### {name}", "", *_code(f"{package}.{name}{_signature(value)}"), *_doc(value)]
    return [f"### {name}", "", f"A {type(value).__name__} of `{package}`.", ""]


def _writes_its_own_init(kind: type) -> bool:
    """Whether the arguments stand in this package: those that transformers makes change with its version."""
    return "__init__" in vars(kind) and not issubclass(kind, PreTrainedConfig)


def _signature(function: Any) -> str:
    """The names of the parameters and their defaults. Annotations are left to the docstring, which has the shapes."""
    signature = inspect.signature(inspect.unwrap(function))
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls")
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<(function|class|object) [^>]*>|<factory>", "...", text)


def _code(text: str) -> list[str]:
    return ["```text", text, "```", ""]


def _doc(value: Any) -> list[str]:
    text = inspect.cleandoc(value.__doc__)
    return ["```text", text, "```", ""] if "\n" in text else [text, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
