"""Configuration keys that describe themselves: meaning, values, and the keys that they exclude or need, as data."""

import contextlib
import copy
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from .errors import ConfigError

MOST = 2**31 - 1
TYPES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a table of keys",
}


@dataclass(frozen=True)
class Key:
    """A key of a recipe, in words for a reader.

    excludes    conditions under which it cannot be given, each with the reason. "other": that key is given too;
                "other=value": that key has the value, or holds it where it is a list
    needs       likewise: conditions without which it cannot be given
    """

    name: str
    type: str
    default: Any
    meaning: str
    values: str
    excludes: Mapping[str, str]
    needs: Mapping[str, str]


def key(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    excludes: Mapping[str, str] = {},
    needs: Mapping[str, str] = {},
) -> Any:
    """Make the field of a dataclass for a key, with what `keys_of` tells of it and `check_values` holds it to.

    Each configuration has its own copy of `default`. `choices` are those of the items where the key is a list.
    """
    about = {
        "meaning": meaning,
        "choices": tuple(choices),
        "least": least,
        "most": most,
        "excludes": dict(excludes),
        "needs": dict(needs),
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=about)
    return field(default=default, metadata=about)


def keys_of(recipe: type) -> list[Key]:
    """The keys of a recipe in their order. That one key excludes another is told of both."""
    found = fields(recipe)
    excludes = {one.name: dict(one.metadata["excludes"]) for one in found}
    for one in found:
        for other, reason in one.metadata["excludes"].items():
            if other in excludes:
                excludes[other].setdefault(one.name, reason)
    return [
        Key(
            one.name,
            _type_words(one.type),
            _default(one),
            one.metadata["meaning"],
            _bounds_words(one),
            excludes[one.name],
            one.metadata["needs"],
        )
        for one in found
    ]


def check_values(config: Any) -> None:
    """Raise ConfigError for a value of another type or beyond its choices or bounds, and for keys that exclude others.

    Whole numbers become numbers where these are expected, a text a list of one. A key counts as given where its value
    is not the default.
    """
    for one in fields(config):
        value = typed(one.name, getattr(config, one.name), one.type)
        object.__setattr__(config, one.name, value)
        if value is None:
            continue
        if choices := one.metadata["choices"]:
            for item in value if isinstance(value, list) else [value]:
                check_choice(one.name, item, choices)
        check_bounds(one.name, value, one.metadata["least"], one.metadata["most"])
    for one in fields(config):
        if getattr(config, one.name) != _default(one):
            for condition, reason in one.metadata["excludes"].items():
                if _holds(config, condition):
                    raise ConfigError(f"{one.name} is given with {condition}; {reason}")
            for condition, reason in one.metadata["needs"].items():
                if not _holds(config, condition):
                    raise ConfigError(f"{one.name} is given without {condition}; {reason}")


def _holds(config: Any, condition: str) -> bool:
    name, sign, value = condition.partition("=")
    found = getattr(config, name)
    if not sign:
        return found != _default(next(one for one in fields(config) if one.name == name))
    return value in found if isinstance(found, list) else found == value


def _default(one: Field) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def check_bounds(name: str, value: Any, least: float | None, most: float | None = None) -> None:
    if most is not None and not least <= value <= most:
        kind = "a whole number" if isinstance(value, int) else "a share"
        raise ConfigError(f"{name} is {value}; expected {kind} in {least}..{most}")
    if least is not None and value < least:
        raise ConfigError(f"{name} is {value}; expected at least {least}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}{meant(value, choices)}")


def check_keys(name: str, table: dict, known: Sequence[str]) -> None:
    for one in table:
        if one not in known:
            raise ConfigError(f"{name}.{one} is unknown; the known keys are {', '.join(known)}{meant(one, known)}")


def meant(given: Any, known: Sequence[str]) -> str:
    """The end of a message that asks whether the nearest of the known names was meant; nothing where none is near."""
    near = difflib.get_close_matches(str(given), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value of a key as `kind`, a type as dataclasses annotate fields with it. Raises ConfigError."""
    if isinstance(kind, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        items = [value] if isinstance(value, str) and inner is str else value
        if not isinstance(items, list):
            raise ConfigError(f"{name} is {value!r}; expected a list")
        return [typed(name, item, inner) for item in items]
    if isinstance(value, str) and kind is float:
        # YAML takes 1e-4 for text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {_shown(value)}; expected {TYPES[kind]}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; expected a finite number")
    if kind is int and name != "seed" and value > MOST:
        raise ConfigError(f"{name} is {_shown(value)}; expected at most {MOST}")
    if kind is str and not value:
        raise ConfigError(f"{name} is empty; give it a value, or leave the key out")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_words(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return {str: "a list of texts", float: "a list of numbers"}[inner]
    return TYPES[kind]


def _bounds_words(one: Field) -> str:
    least, most = one.metadata["least"], one.metadata["most"]
    if one.metadata["choices"]:
        return ", ".join(one.metadata["choices"])
    if most is not None:
        return f"{least} to {most}"
    return "" if least is None else f"at least {least}"
