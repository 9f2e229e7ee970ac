"""Configurations from files, shipped names and `key=value`, and back to JSON."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..files.reading import read_text
from ..files.writing import words
from .config import EITHER, RECIPES, Config
from .errors import ConfigError
from .keys import check_choice, meant
from .post.config import POST

SHIPPED = Path(__file__).parent / "configs"


def shipped() -> list[str]:
    """The names of the configurations in the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a TOML or YAML file, or of a shipped name, with `key=value` after it laid over.

    A value is read as TOML where it can be (`max_steps=10`, `train=["connector"]`, `lora.rank=8`), else as text. After
    the name of a recipe by trl (sft, dpo, grpo) a file may come: its keys, in the place of those that ship.
    Raises ConfigError.
    """
    if name in POST and overrides and "=" not in overrides[0]:
        values = {"recipe": name, **_read(overrides[0])}
        if values["recipe"] != name:
            raise ConfigError(f"{overrides[0]} is of recipe {values['recipe']!r}; expected {name!r}, or no recipe")
        overrides = overrides[1:]
    else:
        values = _read(name)
    told = {override.partition("=")[0] for override in overrides}
    for one, other in (*EITHER, *(pair[::-1] for pair in EITHER)):
        if one in told and other not in told:
            values.pop(other, None)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"{override} has no =; expected key=value")
        place, *rest = key.split(".")
        inner = values
        for part in rest:
            if not isinstance(inner.setdefault(place, {}), dict):
                raise ConfigError(f"{override}: {place} is {inner[place]!r}; expected a table of keys")
            inner, place = inner[place], part
        inner[place] = _value(text)
    recipe = values.pop("recipe", "conversations")
    check_choice("recipe", recipe, tuple(RECIPES))
    return checked(RECIPES[recipe], values)


def _read(name: str) -> dict:
    file = Path(name)
    if not file.suffix:
        file = SHIPPED / f"{name}.toml"
        if not file.is_file():
            raise ConfigError(
                f"{name} is no configuration that ships; expected one of {', '.join(shipped())}, or a file"
                + meant(name, shipped())
            )
    if file.exists() and not file.is_file():
        raise ConfigError(f"{name} is not a file; expected a TOML or YAML file")
    try:
        text = read_text(file)
    except FileNotFoundError:
        raise ConfigError(f"{name} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read ({words(error)}); check the file") from None
    if file.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{name} is not valid TOML ({error})") from None
        except RecursionError:
            raise ConfigError(f"{name} is nested too deeply; expected a few keys and values") from None
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{name} ends in {file.suffix}; expected .toml, .yaml or .yml")
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply; expected a few keys and values") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} has no keys; expected keys and values")
    return values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text in ("null", "None") else text
    except RecursionError:
        raise ConfigError(f"{text[:20]}... is nested too deeply; expected a plain value") from None


def checked(recipe: type[Config], values: dict) -> Config:
    """The dataclass of these values. Raises ConfigError for an unknown key or a value of another type."""
    known = {one.name: one for one in fields(recipe)}
    for key in values:
        if key not in known:
            hint = meant(key, list(known)) or f"; the known keys are {', '.join(known)}"
            raise ConfigError(f"{key} is not a known key{hint}")
    return recipe(**values)


def to_json(config: Config) -> str:
    recipe = next(name for name, kind in RECIPES.items() if type(config) is kind)
    return json.dumps({"recipe": recipe, **asdict(config)}, indent=1) + "\n"
