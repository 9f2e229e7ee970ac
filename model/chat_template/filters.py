"""Filters that charge the budget: those around each operation of a template, and Jinja's that could grow unchecked."""

import json
from collections.abc import Iterator

from jinja2 import Undefined, pass_context
from jinja2.filters import FILTERS

from .budget import MOST_BITS, STEP, VALUE, ChatTemplateError, charge, checked_size, current


@pass_context
def counted(context, values) -> Iterator:
    """Yield values, a step charged for each."""
    for value in values:
        charge(STEP)
        yield value


@pass_context
def weighed(context, value):
    """Charge for a value that is looked at as a whole, which is a list where it was a generator."""
    if isinstance(value, Iterator):
        value = list(counted(context, value))
    count, length = checked_size(printable(value))
    charge(STEP + 2 * VALUE * count + length // 16)
    return value


@pass_context
def measured(context, value):
    """Charge for each character of a value that was made."""
    if isinstance(value, Iterator):
        return counted(context, value)
    count, length = checked_size(value)
    charge(STEP + VALUE * count + length)
    return value


@pass_context
def built(context, value):
    """Charge for a value made of others: for a text's characters, or for a container's own places."""
    if isinstance(value, str):
        return measured(context, value)
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ChatTemplateError("it computes a number of thousands of digits, and is stopped")
    charge(STEP + VALUE * checked_size(value)[0])
    return value


@pass_context
def joined(context, values: list) -> str:
    """Join values into a text, its characters charged."""
    _, length = checked_size(values)
    charge(STEP + length)
    return "".join(str(printable(value)) for value in values)


@pass_context
def shown(context, value):
    """Charge for a value that is printed."""
    if isinstance(value, Iterator):
        value = list(counted(context, value))
    return value if isinstance(value, Undefined) else measured(context, printable(value))


def printable(value):
    """Return a value. Raises ChatTemplateError for a function, which as a text tells one sandbox from the other."""
    if callable(value) and not isinstance(value, Undefined):
        raise ChatTemplateError(f"it prints a {type(value).__name__}, which is no text")
    return value


COUNTING = (counted, weighed, measured, built, joined)
"""The filters that `metering` puts in, each under its name with an underscore before it, which no template may use."""


@pass_context
def replace(context, text, old, new, count=None):
    check_replace(str(text), old, new)
    return FILTERS["replace"](context.eval_ctx, text, old, new, count)


def check_replace(text: str, old: str, new: str) -> None:
    current.get().check_length(len(text) + (len(text) // max(1, len(str(old))) + 1) * len(str(new)))


@pass_context
def join(context, values, d="", attribute=None):
    values = list(counted(context, values))
    check_join(values, str(d))
    return FILTERS["join"](context.eval_ctx, values, d, attribute)


def check_join(values, between: str) -> None:
    count, length = checked_size(values)
    current.get().check_length(length + count * len(between))


def indent(text, width=4, first=False, blank=False):
    between = width if isinstance(width, str) else " " * min(width, 10_000)
    current.get().check_length(len(text) + (text.count("\n") + 1) * len(between))
    return FILTERS["indent"](text, width if isinstance(width, str) else min(width, 10_000), first, blank)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    if isinstance(indent, int) and indent > 16:
        raise ChatTemplateError("it indents JSON by more than 16, and is stopped")
    how = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(printable(value), **how)
