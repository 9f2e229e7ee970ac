"""A stranger's chat template, rendered within limits before transformers renders it without.

transformers renders templates in Jinja's sandbox, which keeps them from Python's insides but not from looping or
growing without end. `check_template` runs the same template on the same conversation first, in a sandbox that charges
each loop, call, operator and string to a budget, checks what could grow by more than its operands before it does, and
knows only the filters and methods that chat templates use. What passes here ends there too.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError

from .budget import STEP, Budget, ChatTemplateError, current, size_of
from .sandbox import LimitedEnvironment

LONGEST_TEMPLATE = 100_000
ADVICE = "; use a checkpoint with another template, or mend its chat_template.jinja"


def check_template(template: str, messages: Any, variables: Mapping[str, Any]) -> None:
    """Raise ChatTemplateError where `template` cannot be rendered for this conversation within limits.

    `variables` are all others that the template is given: special tokens, add_generation_prompt, tools and so on.
    """
    try:
        compiled = _compiled(template)
        budget = Budget(size_of((messages, dict(variables)), 100_000_000)[1])
        token = current.set(budget)
        try:
            made = 0
            for piece in compiled.generate(messages=messages, **variables):
                made += len(piece)
                budget.charge(STEP + len(piece))
                budget.check_length(made)
        finally:
            current.reset(token)
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
    return LimitedEnvironment().from_string(template)


__all__ = ["ChatTemplateError", "check_template"]
