"""Jinja's sandbox with a budget, which knows only what chat templates use."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from . import filters
from .budget import MOST_BITS, STEP, VALUE, ChatTemplateError, charge, checked_size, current
from .metering import FILTERS_OF_CHATS, WORDS, Metered

METHODS_OF_CHATS = frozenset(
    WORDS.findall("""
        capitalize copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit islower isnumeric
        isspace istitle isupper items join keys lower lstrip partition removeprefix removesuffix replace rfind rindex
        rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values
    """)
)
STABLE_DATES = re.compile(r"(%[aAbBdejmyY%]|[^%])*")
WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Sandbox in which each call, operator and string is charged to the current budget."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            optimized=False,
            finalize=filters.shown,
        )
        self.filters = {name: FILTERS[name] for name in FILTERS_OF_CHATS}
        own = (filters.tojson, filters.replace, filters.join, filters.indent)
        self.filters |= {rule.__name__: rule for rule in own}
        self.filters |= {f"_{rule.__name__}": rule for rule in filters.COUNTING}
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = strftime_now

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        pieces = list(pieces)
        total = sum(map(len, pieces))
        if (budget := current.get(None)) is not None:
            budget.check_length(total)
            budget.charge(STEP + total)
        return "".join(pieces)

    def _parse(self, source, name, filename):
        return Metered().visit(super()._parse(source, name, filename))

    def call_binop(self, context, operator, left, right):
        _check_operator(operator, left, right)
        return filters.built(context, super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):
        # Positional names as in Jinja: a keyword of a template may be called self.
        charge(STEP)
        if isinstance(__obj, LoopContext):
            args = [list(filters.counted(__context, argument)) for argument in args]
        _check_call(__obj, args, kwargs)
        return filters.built(__context, super().call(__context, __obj, *args, **kwargs))


class Generation(Extension):
    """Tag of transformers around what the model says; here its content alone."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(lineno)

    def _content(self, caller):
        return caller()


def _check_operator(operator: str, left, right) -> None:
    budget = current.get()
    budget.charge(STEP)
    if operator == "%" and isinstance(left, str):
        if WIDE.search(left):
            raise ChatTemplateError("it formats a text to a width of thousands, and is stopped")
        budget.check_length(len(left) + left.count("%") * checked_size(right)[1])
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                budget.check_length(len(sequence) * max(0, times))
    elif operator == "+" and isinstance(left, list | tuple | str):
        budget.check_length(len(left) + len(right) if isinstance(right, list | tuple | str) else 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (abs(right) if operator == "**" else 1)
        if bits > MOST_BITS or (operator != "**" and right.bit_length() > MOST_BITS):
            raise ChatTemplateError("it computes a number of thousands of digits, and is stopped")


def _check_call(called, args, kwargs) -> None:
    if called in (dict, Namespace, safe_range, raise_exception, strftime_now):
        return
    if isinstance(called, Macro | LoopContext | BlockReference | Undefined):
        return
    called = getattr(called, "__wrapped__", called)  # Jinja's own around str.format
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if isinstance(owner, LoopContext) or (isinstance(owner, Generation) and name == "_content"):
        return
    if not isinstance(owner, str | Mapping | list | tuple) or name not in METHODS_OF_CHATS:
        raise ChatTemplateError(f"it calls {name or type(called).__name__!r}, which no chat template needs")
    count, length = checked_size((owner, args, kwargs))
    charge(STEP + VALUE * count + length // 16)
    if not isinstance(owner, str):
        return
    if name == "format":
        if WIDE.search(owner):
            raise ChatTemplateError("it formats a text to a width of thousands, and is stopped")
        current.get().check_length(len(owner) + owner.count("{") * length)
    elif name == "replace" and len(args) >= 2:
        filters.check_replace(owner, args[0], args[1])
    elif name == "join" and args:
        filters.check_join(args[0], owner)


def raise_exception(message):
    raise JinjaError(str(message)[:200])


def strftime_now(format):
    if not STABLE_DATES.fullmatch(format) or len(format) > 100:
        raise ChatTemplateError(f"its date has the format {format[:40]!r}; expected one without a time of day")
    return datetime.now().strftime(format)
