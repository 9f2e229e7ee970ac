"""Before a model generates for the first time with a version of transformers or torch: is its cache exact there?

What generation rests on is only partly promised by transformers. A version that renames an argument or moves a hook
can make a cached answer another one than an uncached, without any error. The check runs a miniature of the model, with
random weights in float64, on a padded batch with and without a cache, and compares the logits. It takes about a tenth
of a second, once for each version and kind of model: what passed is kept in a file of the user's cache folder.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

from .versions import TESTED, restore_stock

NEW_TOKENS = 3
# Of the largest logit. Norms compute in float32: exact caches are 1e-7 to 1e-6 off, a forgotten or doubled position
# 1e-2 and more (tests/model/compat/test_self_check.py).
TOLERANCE = 1e-4

ADVICE = (
    f"firebolt-vl was tested with transformers {', '.join(TESTED)}: install one of these, or generate with "
    "use_cache=False, which is slow"
)

_passed: set[str] = set()


class Generating(Protocol):
    """A model that generates: the name of its kind, and a small one of it with a batch."""

    def kind(self) -> str: ...

    def miniature(self) -> tuple[Any, dict[str, Tensor]]: ...


def check_generation(model: Generating) -> None:
    """Compare cached with uncached generation of `model.miniature()`, unless its kind has passed with these versions.

    Raises RuntimeError where the two differ, or where one of them fails.
    """
    key = _key(model)
    if key in _passed:
        return
    _passed.add(key)  # the miniature generates too
    if key in _kept():
        return
    try:
        difference = _difference(model)
    except Exception as error:
        _passed.discard(key)
        raise RuntimeError(f"{_versions()}: generation fails ({type(error).__name__}: {error}). {ADVICE}") from error
    if not difference <= TOLERANCE:
        _passed.discard(key)
        raise RuntimeError(
            f"{_versions()}: generation with a cache is another function than without one (logits differ by "
            f"{difference:.0e} of the largest, at most {TOLERANCE:.0e} is right), so answers would be wrong. {ADVICE}"
        )
    _keep(key)


@torch.no_grad()
def _difference(model: Generating) -> float:
    """The largest difference of a logit between cached and uncached generation, of the largest logit."""
    with _undisturbed():
        small, inputs = model.miniature()
        small = small.double().eval()
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        cached = _logits(small, inputs, use_cache=True)
        restore_stock(small)
        plain = _logits(small, inputs, use_cache=False)
    difference = (cached - plain).abs().max() / plain.abs().max()
    return difference.item()


def _logits(small: Any, inputs: dict[str, Tensor], use_cache: bool) -> Tensor:
    """Logits [NEW_TOKENS,B,V] of a greedy answer."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(small.generate(**inputs, generation_config=config).logits)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The same numbers in any process, whose generators, default device and autocast stay as they are."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            generator.manual_seed(0)
            yield
    finally:
        generator.set_state(state)


def _versions() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _key(model: Generating) -> str:
    return f"firebolt-vl {_own_version()}, {_versions()}, {model.kind()}"


@functools.cache
def _own_version() -> str:
    """Looked up once: it takes as long as a tenth of a small model's token."""
    try:
        return metadata.version("firebolt-vl")
    except metadata.PackageNotFoundError:
        return "unknown"


def record() -> Path:
    """Return the file that keeps what passed, a line each, in the folder `FIREBOLT_CACHE` (~/.cache/firebolt-vl)."""
    return Path(os.environ.get("FIREBOLT_CACHE", "~/.cache/firebolt-vl")).expanduser() / "generation-checks"


def _kept() -> list[str]:
    try:
        return record().read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return []


def _keep(key: str) -> None:
    """Remember, if this user has a folder to write to; else the next process checks again."""
    with contextlib.suppress(OSError, RuntimeError):
        file = record()
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        temporary.write_text("\n".join([*_kept(), key, ""]), encoding="utf-8")
        temporary.replace(file)
