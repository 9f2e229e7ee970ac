"""Words that are not in the project's voice: of messages in another form, of docstrings that do not stand alone."""

import re

OTHER_FORMS = (
    " came,",
    " came;",
    " is wanted",
    " are wanted",
    " wanted,",
    " wanted;",
    "; wanted ",
    "there is no such",
    "no such key",
    "known are",
)
"""Of messages that are not `where: argument is VALUE; expected WHAT`."""

FRAGMENT = re.compile(
    "(As|At|Beside|Between|By|For|From|How|If|In|Into|Of|On|Raises|So|That|To|Under|Up|What|When|Where|Whether|Which|Who|"
    r"Whose|Why|With|Within|Without)\b"
)
"""The beginning of a docstring that has neither a verb nor a noun at its head."""
