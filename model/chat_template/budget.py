"""The budget of a rendering: steps and characters, charged for each value that is looked at or made."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.utils import Namespace

# Steps of one rendering (some 30 ns each): an operation takes STEP, a value that is looked at VALUE, a character that
# is made one. There are more where the conversation itself is long.
BUDGET, STEP, VALUE, STEPS_OF_A_CHARACTER = 20_000_000, 25, 8, 200
# No value is longer than this in characters, or than so many conversations.
LONGEST_VALUE, LONGEST_OF_INPUT = 1_000_000, 20
MOST_BITS = 4096

current: ContextVar["Budget"] = ContextVar("current")


class ChatTemplateError(ValueError, TemplateError):
    """A chat template that cannot be rendered, or not within limits; one of Jinja's errors, as trl expects them."""


class Budget:
    """Steps that one rendering may take, and its longest value, for a conversation of `size` characters."""

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


def charge(steps: int) -> None:
    """Take steps from the budget of the rendering that runs. Raises ChatTemplateError where none are left."""
    current.get().charge(steps)


def size_of(value: Any, most: int) -> tuple[int, int]:
    """Count the values in `value`, itself among them, and about how many characters it has as a text."""
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


def checked_size(value: Any) -> tuple[int, int]:
    """Count as `size_of`. Raises ChatTemplateError for a value longer than the budget's longest."""
    return size_of(value, current.get().longest)
