"""Write docs/configuration.md, every configuration key with its default and meaning: python docs/configuration.py"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from firebolt_vl.cmm import CMMConfig, RoutedConfig
from firebolt_vl.files.tables import markdown_table
from firebolt_vl.model import ConvolutionalTowerConfig, FireboltConfig, FoveatedVLMConfig
from firebolt_vl.train.config import FoveatedConfig, RowsConfig, TinyConfig, TrainConfig
from firebolt_vl.train.keys import Key, keys_of
from firebolt_vl.train.post.config import DpoConfig, GrpoConfig, PostConfig
from firebolt_vl.train.run_config import RunConfig
from firebolt_vl.train.screens.config import ScreensConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration keys

Every key of a training and of a model: its default, what it means, and what it excludes or needs. Written by
`make docs` from the dataclasses, which is where to mend it. How to run a training: [training.md](training.md).
"""
TRAININGS = (
    (RunConfig, "Every training on rows of data files", ""),
    (
        RowsConfig,
        "Where such a training starts",
        "Beside those above, but in the trainings by trl: `recipe` is `conversations` or `foveated`.",
    ),
    (
        TrainConfig,
        "Training on conversations",
        'Beside those above: `recipe = "conversations"`, the default (`stage1`, `stage2`, `lora`).',
    ),
    (
        FoveatedConfig,
        "Training of the foveated model",
        'Beside those above, or in their place: `recipe = "foveated"` (`foveated-stage1`, `-stage2`, `-stage3`).',
    ),
    (
        PostConfig,
        "Every training by trl",
        "Beside those of every training on rows, or in their place: `recipe` is `sft`, which has no others, `dpo` or "
        "`grpo`. What they do: [post-training.md](post-training.md).",
    ),
    (DpoConfig, "Training on preferences by trl", 'Beside those above, or in their place: `recipe = "dpo"`.'),
    (GrpoConfig, "Training on rewards by trl", 'Beside those of every training by trl: `recipe = "grpo"`.'),
    (TinyConfig, "Training of the embedded model", 'These alone: `recipe = "tiny"` (`tiny`).'),
    (ScreensConfig, "Training of the model that reads", 'These alone: `recipe = "screens"` (`screens`).'),
)
MODELS = (
    (CMMConfig, "`CMMConfig`, the layer", "As `cmm_config` of a model, and as `cmm` of a training."),
    (
        RoutedConfig,
        '`RoutedConfig`, the connector "routed"',
        "In the place of `CMMConfig`, whose other keys it has too.",
    ),
    (FireboltConfig, "`FireboltConfig`, the model", ""),
    (
        ConvolutionalTowerConfig,
        "`ConvolutionalTowerConfig`, a vision tower",
        'As `vision_config` of a model, with `model_type` "firebolt_convolutional_tower".',
    ),
    (FoveatedVLMConfig, "`FoveatedVLMConfig`, the foveated model", ""),
)


def page() -> str:
    """The text of docs/configuration.md."""
    lines = [HEAD]
    for recipe, title, about in TRAININGS:
        lines += [f"## {title}", "", *([about, ""] if about else []), _training_table(own_keys(recipe)), ""]
    for config, title, about in MODELS:
        lines += [f"## {title}", "", *([about, ""] if about else []), _model_table(config), ""]
    return "\n".join(lines)


def own_keys(recipe: type) -> list[Key]:
    """The keys of a recipe without those that it has from another one on the page as they are."""
    told = [one for one, *_ in TRAININGS if one is not recipe and issubclass(recipe, one)]
    shared = {_core(key) for one in told for key in keys_of(one)}
    return [key for key in keys_of(recipe) if _core(key) not in shared]


def _core(key: Key) -> tuple:
    return key.name, repr(key.default), key.meaning, key.values


def names_without_meaning() -> list[str]:
    """Keys, as Class.key, that the page could tell nothing of."""
    without = []
    for recipe, *_ in TRAININGS:
        without += [f"{recipe.__name__}.{key.name}" for key in keys_of(recipe) if not key.meaning]
    for config, *_ in MODELS:
        without += [f"{config.__name__}.{name}" for name in _own_fields(config) if name not in meanings(config)]
    return without


def meanings(config: type) -> dict[str, str]:
    """What the docstring of a model's configuration says of each key.

    Both forms are read: `names    meaning` in columns, and an `Args:` section of `name: meaning`.
    """
    text = inspect.getdoc(config)
    if "Args:\n" in text:
        text = inspect.cleandoc("\n" + text.partition("Args:\n")[2].partition("\n\n")[0])
        entry = re.compile(r"^(\w+(?:, \w+)*): (.+)$")
    else:
        entry = re.compile(r"^(\w+(?:, \w+)*) {2,}(.+)$")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if match := entry.match(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2].strip())
        elif names and line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _training_table(keys: Iterable[Key]) -> str:
    rows = [[f"`{key.name}`", _shown(key.default), _told(key), _conditions(key)] for key in keys]
    return _table(["key", "default", "meaning", "excludes or needs"], rows)


def _told(key: Key) -> str:
    return f"{key.meaning} ({key.type}{': ' + key.values if key.values else ''})"


def _conditions(key: Key) -> str:
    return "; ".join([*_grouped("not with", key.excludes), *_grouped("only with", key.needs)])


def _grouped(words: str, conditions: Mapping[str, str]) -> list[str]:
    """Conditions with the same reason told together."""
    names = defaultdict(list)
    for condition, reason in conditions.items():
        names[reason].append(f"`{condition}`")
    return [f"{words} {', '.join(found)}: {reason}" for reason, found in names.items()]


def _own_fields(config: type) -> dict[str, Any]:
    """The keys of a model's configuration and their defaults, without those that transformers adds."""
    own = inspect.get_annotations(config)
    return {one.name: one.default for one in fields(config) if one.name in own and one.name != "tie_word_embeddings"}


def _model_table(config: type) -> str:
    told = meanings(config)
    rows = [[f"`{name}`", _shown(default), told.get(name, "")] for name, default in _own_fields(config).items()]
    return _table(["key", "default", "meaning"], rows)


def _shown(default: Any) -> str:
    if default is None or default in ([], {}):
        return ""
    if type(default).__name__ == "_MISSING_TYPE":
        return "*required*"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return markdown_table(columns, cells, left=len(columns))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
