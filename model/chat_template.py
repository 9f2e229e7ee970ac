"""A stranger's chat template, rendered within limits before transformers renders it without.

transformers renders templates in Jinja's sandbox, which keeps them from Python's insides but not from looping or
growing without end. `check_template` runs the same template on the same conversation first, in a sandbox that charges
each loop, call, operator and string to a budget, checks what could grow by more than its operands before it does, and
knows only the filters and methods that chat templates use. What passes here ends there too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 100_000
# Steps of one rendering (some 30 ns each): an operation takes STEP, a value that is looked at VALUE, a character that
# is made one. There are more where the conversation itself is long.
BUDGET, STEP, VALUE, STEPS_OF_A_CHARACTER = 20_000_000, 25, 8, 200
# No value is longer than this in characters, or than so many conversations.
LONGEST_VALUE, LONGEST_OF_INPUT = 1_000_000, 20
MOST_BITS = 4096
WORDS = re.compile(r"\w+")
FILTERS_OF_CHATS = frozenset(
    WORDS.findall("""
        abs capitalize count d default dictsort e escape first float groupby indent int items join last length list
        lower map max min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim
        truncate unique upper urlencode
    """)
)
METHODS_OF_CHATS = frozenset(
    WORDS.findall("""
        capitalize copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit islower isnumeric
        isspace istitle isupper items join keys lower lstrip partition removeprefix removesuffix replace rfind rindex
        rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values
    """)
)
# What would tell this sandbox from that of transformers, or the first rendering from the second.
FORBIDDEN_NAMES = frozenset({"lipsum", "cycler", "joiner"})
STABLE_DATES = re.compile(r"(%[aAbBdejmyY%]|[^%])*")
WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")
ADVICE = "; use a checkpoint with another template, or mend its chat_template.jinja"

_left: ContextVar["_Budget"] = ContextVar("_left")


class ChatTemplateError(ValueError):
    """A chat template that cannot be rendered, or not within limits."""


class _Budget:
    def __init__(self, size: int):
        self.steps = BUDGET + STEPS_OF_A_CHARACTER * size
        self.longest = LONGEST_VALUE + LONGEST_OF_INPUT * size

    def charge(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ChatTemplateError("it does more work than a chat template has to do, and is stopped")

    def check_length(self, length: int) -> None:
        if length > self.longest:
            raise ChatTemplateError(f"it makes a text of {length:,} characters, and is stopped")


def _charge(steps: int) -> None:
    _left.get().charge(steps)


def check_template(template: str, messages: Any, variables: Mapping[str, Any]) -> None:
    """Raise ChatTemplateError where `template` cannot be rendered for this conversation within limits.

    `variables` are all others that the template is given: special tokens, add_generation_prompt, tools and so on.
    """
    try:
        compiled = _compiled(template)
        budget = _Budget(_size((messages, dict(variables)), 100_000_000)[1])
        token = _left.set(budget)
        try:
            made = 0
            for piece in compiled.generate(messages=messages, **variables):
                made += len(piece)
                budget.charge(STEP + len(piece))
                budget.check_length(made)
        finally:
            _left.reset(token)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"chat_template: {error}{ADVICE}") from None
    except (RecursionError, MemoryError):
        raise ChatTemplateError(f"chat_template: it is nested, or calls itself, too deeply{ADVICE}") from None
    except (JinjaError, TypeError, ValueError, KeyError, OverflowError, SyntaxError, ArithmeticError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ChatTemplateError(f"chat_template: it cannot be rendered ({text}){ADVICE}") from None


@lru_cache(maxsize=16)
def _compiled(template: str):
    if len(template) > LONGEST_TEMPLATE:
        raise ChatTemplateError(f"it is {len(template):,} characters long; expected at most {LONGEST_TEMPLATE:,}")
    return _Limited().from_string(template)


class _Limited(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=_shown,
        )
        self.filters = {name: FILTERS[name] for name in FILTERS_OF_CHATS}
        self.filters |= {"tojson": _tojson, "replace": _replace, "join": _join, "indent": _indent}
        self.filters |= {rule.__name__: rule for rule in (_counted, _weighed, _measured, _built, _joined)}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        pieces = list(pieces)
        total = sum(map(len, pieces))
        if (budget := _left.get(None)) is not None:
            budget.check_length(total)
            budget.charge(STEP + total)
        return "".join(pieces)

    def _parse(self, source, name, filename):
        return _Metered().visit(super()._parse(source, name, filename))

    def call_binop(self, context, operator, left, right):
        _check_operator(operator, left, right)
        return _built(context, super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):
        # Positional names as in Jinja: a keyword of a template may be called self.
        _charge(STEP)
        if isinstance(__obj, LoopContext):
            args = [list(_counted(__context, argument)) for argument in args]
        _check_call(__obj, args, kwargs)
        return _built(__context, super().call(__context, __obj, *args, **kwargs))


class _Metered(NodeTransformer):
    """Puts the filters that count around everything that loops, copies, compares or builds."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.items else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_measured") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_weighed")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_weighed")
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in FILTERS_OF_CHATS:
            raise TemplateSyntaxError(f"it uses the filter {node.name!r}, which no chat template needs", node.lineno)
        if node.name == "map" and node.args:
            [named, *_] = node.args
            if not isinstance(named, nodes.Const) or named.value not in FILTERS_OF_CHATS - {"map"}:
                raise TemplateSyntaxError("it maps by a filter that no chat template needs", node.lineno)
        self.generic_visit(node)
        if node.node is None:  # of a block, whose text is counted already
            return node
        node.node = _filtered(node.node, "_weighed")
        return _filtered(node, "_measured")

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.name in FORBIDDEN_NAMES:
            raise TemplateSyntaxError(f"it uses {node.name!r}, which no chat template needs", node.lineno)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """transformers' tag around what the model says; here its content alone."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(lineno)

    def _content(self, caller):
        return caller()


def _size(value: Any, most: int) -> tuple[int, int]:
    """How many values there are in `value`, itself among them, and of how many characters it is about as a text."""
    count = length = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, str):
            length += len(one)
        elif isinstance(one, bytes):
            length += 4 * len(one)
        elif isinstance(one, Mapping):
            waiting += one.keys()
            waiting += one.values()
            length += 4 * len(one)
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
            length += 2 * len(one)
        elif isinstance(one, Namespace):
            waiting.append(dict(object.__getattribute__(one, "_Namespace__attrs")))
        elif isinstance(one, int):
            length += 1 + one.bit_length() // 3
        else:
            length += 20
        if count > most or length > most:
            raise ChatTemplateError("it builds a value without end, and is stopped")
    return count, length


def _checked_size(value: Any) -> tuple[int, int]:
    return _size(value, _left.get().longest)


@pass_context
def _counted(context, values) -> Iterator:
    for value in values:
        _charge(STEP)
        yield value


@pass_context
def _weighed(context, value):
    """What is looked at as a whole: charged for the look, and a list where it was a generator."""
    if isinstance(value, Iterator):
        value = list(_counted(context, value))
    count, length = _checked_size(_data(value))
    _charge(STEP + 2 * VALUE * count + length // 16)
    return value


@pass_context
def _measured(context, value):
    """What was made: charged for each character."""
    if isinstance(value, Iterator):
        return _counted(context, value)
    count, length = _checked_size(value)
    _charge(STEP + VALUE * count + length)
    return value


@pass_context
def _built(context, value):
    """What was made of values that are there: charged for a text's characters, or for a container's own places."""
    if isinstance(value, str):
        return _measured(context, value)
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ChatTemplateError("it computes a number of thousands of digits, and is stopped")
    _charge(STEP + VALUE * _checked_size(value)[0])
    return value


@pass_context
def _joined(context, values: list) -> str:
    _, length = _checked_size(values)
    _charge(STEP + length)
    return "".join(str(_data(value)) for value in values)


@pass_context
def _shown(context, value):
    """What is printed."""
    if isinstance(value, Iterator):
        value = list(_counted(context, value))
    return value if isinstance(value, Undefined) else _measured(context, _data(value))


def _data(value):
    """No function: as a text it would tell one sandbox from the other."""
    if callable(value) and not isinstance(value, Undefined):
        raise ChatTemplateError(f"it prints a {type(value).__name__}, which is no text")
    return value


def _check_operator(operator: str, left, right) -> None:
    budget = _left.get()
    budget.charge(STEP)
    if operator == "%" and isinstance(left, str):
        if WIDE.search(left):
            raise ChatTemplateError("it formats a text to a width of thousands, and is stopped")
        budget.check_length(len(left) + left.count("%") * _checked_size(right)[1])
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
    if called in (dict, Namespace, safe_range, _raise_exception, _strftime_now):
        return
    if isinstance(called, Macro | LoopContext | BlockReference | Undefined):
        return
    called = getattr(called, "__wrapped__", called)  # Jinja's own around str.format
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if isinstance(owner, LoopContext) or (isinstance(owner, _Generation) and name == "_content"):
        return
    if not isinstance(owner, str | Mapping | list | tuple) or name not in METHODS_OF_CHATS:
        raise ChatTemplateError(f"it calls {name or type(called).__name__!r}, which no chat template needs")
    count, length = _checked_size((owner, args, kwargs))
    _charge(STEP + VALUE * count + length // 16)
    if not isinstance(owner, str):
        return
    if name == "format":
        if WIDE.search(owner):
            raise ChatTemplateError("it formats a text to a width of thousands, and is stopped")
        _left.get().check_length(len(owner) + owner.count("{") * length)
    elif name == "replace" and len(args) >= 2:
        _check_replace(owner, args[0], args[1])
    elif name == "join" and args:
        _check_join(args[0], owner)


def _check_replace(text: str, old: str, new: str) -> None:
    _left.get().check_length(len(text) + (len(text) // max(1, len(str(old))) + 1) * len(str(new)))


def _check_join(values, between: str) -> None:
    count, length = _checked_size(values)
    _left.get().check_length(length + count * len(between))


@pass_context
def _replace(context, text, old, new, count=None):
    _check_replace(str(text), old, new)
    return FILTERS["replace"](context.eval_ctx, text, old, new, count)


@pass_context
def _join(context, values, d="", attribute=None):
    values = list(_counted(context, values))
    _check_join(values, str(d))
    return FILTERS["join"](context.eval_ctx, values, d, attribute)


def _indent(text, width=4, first=False, blank=False):
    between = width if isinstance(width, str) else " " * min(width, 10_000)
    _left.get().check_length(len(text) + (text.count("\n") + 1) * len(between))
    return FILTERS["indent"](text, width if isinstance(width, str) else min(width, 10_000), first, blank)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    if isinstance(indent, int) and indent > 16:
        raise ChatTemplateError("it indents JSON by more than 16, and is stopped")
    how = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(_data(value), **how)


def _raise_exception(message):
    raise JinjaError(str(message)[:200])


def _strftime_now(format):
    if not STABLE_DATES.fullmatch(format) or len(format) > 100:
        raise ChatTemplateError(f"its date has the format {format[:40]!r}; expected one without a time of day")
    return datetime.now().strftime(format)


__all__ = ["ChatTemplateError", "check_template"]
