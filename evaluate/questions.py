"""Questions about scenes of digits, their answers, and what in them names a place."""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from .digits import COLOURS, POSITIONS, Digit, Scene
from .wordings import as_typed, expand

NOTHING = "nothing"

# kind -> patterns; "(a|b)" is one or the other. {one} is a digit that the scene holds once: "7" or "blue digit".
# {any} is what is asked for: "4", "blue digit". Articles and plurals are put right afterwards.
PATTERNS = {
    "digit at": (
        "(what|which) (digit|number) is (at|in) the {position}( corner|)?",
        "(what|which) (digit|number) (can|do) you see (at|in) the {position}?",
        "(name|read|tell me) the (digit|number) (at|in) the {position}( corner|).",
        "what is (at|in) the {position}( corner|)?",
        "the {position} (digit|number)?",
    ),
    "colour at": (
        "(what|which) (colour|color) is the (digit|number) (at|in) the {position}( corner|)?",
        "(what|which) (colour|color) is (at|in) the {position}( corner|)?",
        "(name|tell me) the (colour|color) of the (digit|number) (at|in) the {position}.",
        "(what|which) (colour|color) does the {position} (digit|number) have?",
    ),
    "colour of": (
        "(what|which) (colour|color) is the ((digit|number) |){digit}?",
        "(what|which) (colour|color) does the {digit} have?",
        "(name|tell me) the (colour|color) of the {digit}.",
    ),
    "where is": (
        "where is the {one}?",
        "where (can|do) you see the {one}?",
        "(in |)(what|which) corner is the {one}( in|)?",
        "(find|locate) the {one}.",
        "tell me where the {one} is.",
    ),
    "is there": (
        "is there a {any}( here| in the image| in the picture|)?",
        "(can|do) you see a {any}( here| in the image| in the picture|)?",
        "is a {any} in the (image|picture)?",
        "does the (image|picture) (have|show) a {any}?",
        "tell me if there is a {any}.",
    ),
    "how many": (
        "how many {any}s are there( in the image| in the picture|)?",
        "how many {any}s (can|do) you see( here|)?",
        "count the {any}s.",
        "how many {any}s does the (image|picture) have?",
        "tell me how many {any}s there are.",
    ),
}
KINDS = tuple(PATTERNS)
GROUNDED_KINDS = ("digit at", "colour at")

# Wordings that are never trained on: known words in an order, or in company, that training does not have.
HELD_OUT = {
    "digit at": (
        r"(what|which) number do you see (at|in) the \S+ \S+\?",
        r"read the number (at|in) the .*",
        r"which digit is in the \S+ \S+ corner\?",
    ),
    "colour at": (r"which colou?r is the number (at|in) .*", r"tell me the color of the digit .*"),
    "colour of": (r"tell me the colour of the .*", r"which color does the .*"),
    "where is": (r"where do you see the .*", r"which corner is the .* in\?"),
    "is there": (r"can you see a .* in the image\?", r"does the picture show a .*"),
    "how many": (r"how many \S+( digit)?s can you see here\?", r"how many .* are there in the image\?"),
}


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str
    held_out: bool
    """Whether the wording is one of HELD_OUT."""
    tiles: tuple[int, ...] = ()
    """The quarters that the question names: by position, or by the digit or colour of what they hold."""
    phrase: tuple[int, int] | None = None
    """Start and end, in characters of the text, of the words that name them."""


SAMPLES = {"position": "top left", "digit": "7", "one": "blue digit", "any": "4"}


@cache
def wordings(kind: str, held_out: bool) -> tuple[tuple[str, ...], ...]:
    """The wordings of a kind, with {position}, {digit}, {one} or {any} in the place of what is asked about.

    One tuple for each of PATTERNS that has any, so that a pattern with many alternatives is not asked more often.
    """
    groups = [
        tuple(
            wording
            for wording in dict.fromkeys(expand(pattern))
            if held_out == any(re.fullmatch(rule, wording.format(**SAMPLES)) for rule in HELD_OUT[kind])
        )
        for pattern in PATTERNS[kind]
    ]
    return tuple(group for group in groups if group)


def sample_question(
    rng: np.random.Generator, scene: Scene, kind: str, held_out: bool = False, plain: bool = False
) -> Question | None:
    """A random question of a kind about a scene, None where the scene allows none (nothing in it is unique).

    As people type, a third begin with a capital letter and a quarter end without a mark; `plain` ones do not.
    """
    if kind not in PATTERNS:
        raise ValueError(f"sample_question: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    asked = _SAMPLERS[kind](rng, scene)
    if asked is None:
        return None
    words, answer, tiles, phrase = asked
    groups = wordings(kind, held_out)
    group = groups[rng.integers(len(groups))]
    text = _put_right(group[rng.integers(len(group))].format(**words))
    if not plain:
        text = as_typed(rng, text)
    span = None
    if phrase is not None:
        start = re.search(rf"\b{phrase}(?=s?\b)", text, re.IGNORECASE).start()
        span = (start, start + len(phrase))
    return Question(kind, text, answer, held_out, tiles, span)


def _put_right(text: str) -> str:
    return re.sub(r"\ba (?=8\b)", "an ", text)


def _unique(scene: Scene, key) -> list[Digit]:
    """The digits whose label or colour no other digit of the scene has."""
    found = [key(digit) for digit in scene.digits]
    return [digit for digit, value in zip(scene.digits, found) if found.count(value) == 1]


def _label(digit: Digit) -> str:
    return str(digit.label)


def _colour(digit: Digit) -> str:
    return digit.colour


def _noun(rng: np.random.Generator) -> str:
    return "digit" if rng.random() < 0.7 else "number"


def _at_position(rng: np.random.Generator, scene: Scene, property_of):
    # An empty quarter is asked about too, half as often as it comes up.
    tile = int(rng.integers(4))
    if scene.at(tile) is None and rng.random() < 0.5:
        tile = scene.digits[rng.integers(len(scene.digits))].tile
    digit = scene.at(tile)
    answer = NOTHING if digit is None else property_of(digit)
    return {"position": POSITIONS[tile]}, answer, (tile,), POSITIONS[tile]


def _digit_at(rng, scene):
    return _at_position(rng, scene, _label)


def _colour_at(rng, scene):
    return _at_position(rng, scene, _colour)


def _colour_of(rng, scene):
    if not (choices := _unique(scene, _label)):
        return None
    digit = choices[rng.integers(len(choices))]
    return {"digit": _label(digit)}, digit.colour, (digit.tile,), _label(digit)


def _where_is(rng, scene):
    by_colour = rng.random() < 0.6
    if not (choices := _unique(scene, _colour if by_colour else _label)):
        return None
    digit = choices[rng.integers(len(choices))]
    one = f"{digit.colour} {_noun(rng)}" if by_colour else _label(digit)
    return {"one": one}, POSITIONS[digit.tile], (digit.tile,), digit.colour if by_colour else _label(digit)


def _things(rng, by_colour: bool, scene: Scene) -> tuple[list[str], list[str]]:
    """List what is there, with repetition, and everything that could be: labels or colours."""
    if by_colour:
        return [digit.colour for digit in scene.digits], list(COLOURS)
    return [_label(digit) for digit in scene.digits], [str(label) for label in range(10)]


def _thing(rng, by_colour: bool, name: str) -> str:
    return f"{name} {_noun(rng)}" if by_colour else name


def _tiles_of(scene: Scene, name: str) -> tuple[int, ...]:
    return tuple(sorted(digit.tile for digit in scene.digits if name in (digit.colour, _label(digit))))


def _is_there(rng, scene):
    by_colour = rng.random() < 0.3
    there, all_of_them = _things(rng, by_colour, scene)
    yes = rng.random() < 0.5
    choices = sorted(set(there)) if yes else [name for name in all_of_them if name not in there]
    name = choices[rng.integers(len(choices))]
    return {"any": _thing(rng, by_colour, name)}, "yes" if yes else "no", _tiles_of(scene, name), name


def _how_many(rng, scene):
    kind = rng.random()
    if kind < 0.1:
        return {"any": _noun(rng)}, str(len(scene.digits)), (), None
    by_colour = kind < 0.35
    there, all_of_them = _things(rng, by_colour, scene)
    # Each count that the scene offers is asked for equally often; "0" half as often.
    counts = sorted({there.count(name) for name in all_of_them})
    chances = np.array([1.0 if count else 0.5 for count in counts])
    count = counts[rng.choice(len(counts), p=chances / chances.sum())]
    choices = [name for name in all_of_them if there.count(name) == count]
    name = choices[rng.integers(len(choices))]
    return {"any": _thing(rng, by_colour, name)}, str(count), _tiles_of(scene, name), name


_SAMPLERS = {
    "digit at": _digit_at,
    "colour at": _colour_at,
    "colour of": _colour_of,
    "where is": _where_is,
    "is there": _is_there,
    "how many": _how_many,
}
