"""Versions of transformers that this package was tested with, and checks of the parts that ours replace."""

import inspect
import logging

import transformers
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from ...cmm.classes import change_classes

# The minor versions that the tests pass with; setup.py admits the same (tests/model/compat/test_versions.py).
TESTED = ("5.23", "5.24")
# What `forward` and `generate` call the cache: "past_key_values" up to 5.23, "cache" from 5.24 on.
CACHE_NAMES = ("cache", "past_key_values")


def parameters_of(owner: type, method: str) -> tuple[str, ...]:
    """Return the names of a method's parameters; none where there is no such method."""
    function = getattr(owner, method, None)
    return tuple(inspect.signature(function).parameters) if function is not None else ()


CACHE = next(
    (name for name in CACHE_NAMES if name in parameters_of(GenerationMixin, "prepare_inputs_for_generation")),
    CACHE_NAMES[0],
)

logger = logging.getLogger(__name__)
_told: set[str] = set()
_replaced: dict[type[nn.Module], type[nn.Module]] = {}


def is_tested() -> bool:
    """Return whether the installed transformers is one of the minor versions that the tests pass with."""
    return ".".join(transformers.__version__.split(".")[:2]) in TESTED


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache of a call, by whichever of its two names. Raises ValueError where both are given."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are both given; expected one of these two names of one argument")
    return cache if cache is not None else past_key_values


def can_replace(stock: type, method: str, parameters: tuple[str, ...]) -> bool:
    """Return whether `stock.method` takes these parameters, no others, in a version that was tested.

    Where it does not, `stock` itself is to run: one line in the log says so, once for each method.
    """
    if not is_tested():
        _tell(
            f"transformers {transformers.__version__} is none of the versions that firebolt-vl was tested with "
            f"({', '.join(TESTED)}): modules of transformers run in the place of firebolt-vl's faster ones"
        )
        return False
    found = parameters_of(stock, method)
    if found != parameters:
        _tell(
            f"{stock.__name__}.{method} of transformers {transformers.__version__} takes ({', '.join(found)}), not "
            f"({', '.join(parameters)}): it runs in the place of firebolt-vl's faster one"
        )
        return False
    return True


def replace_modules(module: nn.Module, ours: type[nn.Module], parameters: tuple[str, ...]) -> None:
    """Let every module in `module` whose class is the base of `ours` compute as `ours`, if `can_replace` its forward.

    Parameters and names stay as they are.
    """
    (stock,) = ours.__bases__
    _replaced[ours] = stock
    if can_replace(stock, "forward", parameters):
        change_classes(module, stock, ours)


def restore_stock(module: nn.Module) -> None:
    """Undo `replace_modules` in `module`, for all classes of ours."""
    for ours, stock in _replaced.items():
        change_classes(module, ours, stock)


def _tell(line: str) -> None:
    if line not in _told:
        _told.add(line)
        logger.warning(line)
