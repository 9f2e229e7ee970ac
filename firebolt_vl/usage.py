"""Complaints of the command line's parser in this package's form: `argument is VALUE; expected WHAT`."""

import re
from collections.abc import Sequence

from typer.exceptions import TyperException

# The words of the parser -> ours; \1 and \2 are groups. The value of an option, which it may leave out, follows later.
FORMS = (
    (r"Invalid value for '(\S+)': '.*' is not one of (.*)", r"\1 is {value}; expected one of \2"),
    (r"Invalid value for '(\S+)': Input should be ([^,]*).*", r"\1 is {value}; expected \2"),
    (r"Invalid value for '(\S+)': (.*)", r"\1 is {value}; \2"),
    (r"Missing (?:argument|option) '(\S+)'", r"\1 is missing"),
    (r"Missing command", "the command is missing"),
    (r"No such command '(.*?)'(?:\. Did you mean '(.*)'\?)?", r"\1 is not a command; did you mean \2?"),
    (r"No such option: (\S+)(?: \(Possible options: (.*)\))?", r"\1 is not an option; did you mean \2?"),
    (r"Option '(\S+)' requires an argument", r"\1 has no value; expected one"),
    (r"Option '(\S+)' does not take a value", r"\1 has a value; expected none"),
    (r"Got unexpected extra arguments?\(?s?\)? \((.*)\)", r"\1 is one argument too many; leave it out"),
)


def complaint(error: TyperException, arguments: Sequence[str]) -> str:
    """Say what is wrong with a command line, and where to look it up."""
    said = error.format_message().rstrip(".").replace("Value error, ", "")
    command = getattr(getattr(error, "ctx", None), "command_path", "firebolt")
    return f"{_in_our_form(said, arguments)}; see {command} --help"


def _in_our_form(said: str, arguments: Sequence[str]) -> str:
    for pattern, form in FORMS:
        if found := re.fullmatch(pattern, said):
            text = found.expand(form).replace("; did you mean ?", "").replace("'", "")
            return text.replace("{value}", _value_of(found[1], arguments)) if "{value}" in form else text
    return said


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """The value that an option was given, as `--option VALUE` or `--option=VALUE`."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return "another"
