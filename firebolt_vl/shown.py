"""Lines that commands print for people: answers with the facts below them, and notes."""

import sys


def note(text: str) -> None:
    """Tell what a user should know beside the answer, on stderr."""
    print(f"firebolt: {text}", file=sys.stderr, flush=True)


def new_console():
    from rich.console import Console

    return Console(soft_wrap=True)


def show_facts(reply, facts: list[str], picture: str | None, console) -> None:
    """Print what is below an answer."""
    from rich.text import Text

    if not reply.complete:
        console.print(Text(f"(cut short after {reply.answer_tokens} tokens)", "dim"))
    console.print(Text(" · ".join(facts), "dim"))
    if picture is not None:
        console.print(Text(picture, "dim"))


def in_words(seconds: float) -> str:
    """Write a duration in seconds or milliseconds."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def percent(share: float) -> str:
    """Write a probability as a percentage that never claims to be certain."""
    return f"{100 * share:.0f} %" if share < 0.995 else "over 99 %"
