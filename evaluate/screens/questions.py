"""Questions about screens: wordings, some of them held out, and answers that stand on the screen or count it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..wordings import as_typed, expand
from .scenes import Scene, Text, picture_box

CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
# kind -> what it is about -> patterns; {key} is a text of the screen, {corner} one of CORNERS, and "(a|b)" either.
PATTERNS: dict[str, dict[str, tuple[str, ...]]] = {
    "line": {"": ("what is written( here|)?", "what does it say( here|)?", "read the text.", "what is the text?")},
    "field": {
        "origin": ("what is the origin?", "where does it (start|come from)?", "tell me the origin."),
        "destination": ("what is the destination?", "where does it go( to|)?", "tell me the destination."),
        "date": ("what is the date?", "(what|which) day is it?", "tell me the date."),
        "time": ("what is the time?", "when does it (leave|start)?", "tell me the time."),
        "seat": ("what is the seat?", "(what|which) seat is it?", "tell me the seat."),
        "price": ("what is the price?", "how much is it?", "tell me the price."),
        "name": ("what is the name?", "who is it( for|)?", "tell me the name."),
        "platform": ("what is the platform?", "(what|which) platform is it?", "tell me the platform."),
        "city": ("what is the city?", "(what|which) city is it?", "tell me the city."),
        "phone": ("what is the phone number?", "(what|which) phone number is it?", "tell me the phone number."),
        "code": ("what is the code?", "(what|which) code is it?", "tell me the code."),
        "amount": ("what is the amount?", "(what|which) amount is it?", "tell me the amount."),
    },
    "cell": {
        "destination time": ("when does the train to {key} leave?", "when does it (leave for|go to) {key}?"),
        "destination platform": ("which platform is for {key}?", "where does the train to {key} leave?"),
        "item price": ("how much is the {key}?", "how much does the {key} cost?", "what is the price of {key}?"),
        "name message": ("what does {key} (say|write)?", "read the message of {key}."),
        "name amount": ("how high is {key}?", "what is the amount of {key}?", "how much is {key}?"),
    },
    "reverse": {
        "time destination": ("where does the {key} train go?", "which train (leaves|starts) at {key}?"),
        "price item": ("which item costs {key}?", "what costs {key}?", "what is the item for {key}?"),
        "message name": ("who (says|writes) {key}?", "whose message is {key}?"),
        "amount name": ("which bar is at {key}?", "which bar has the amount {key}?"),
    },
    "corner": {"": ("what is written at the {corner}?", "read the text at the {corner}.", "what is at the {corner}?")},
    "most": {
        "chart": ("which bar is (the |)highest?", "what is the name of the highest bar?"),
        "prices": ("which item costs (the |)most?", "what costs the most?"),
    },
    "least": {
        "chart": ("which bar is (the |)lowest?", "what is the name of the lowest bar?"),
        "prices": ("which item costs (the |)least?", "what costs the least?"),
    },
    "count": {
        "chart": ("how many bars are there?", "count the bars."),
        "prices": ("how many items are there?", "count the items."),
        "board": ("how many trains are there?", "count the trains."),
        "chat": ("how many messages are there?", "count the messages."),
    },
    "below": {
        "item": ("what is below {key}?", "which item is below {key}?"),
        "destination": ("what is below {key}?", "which train is below {key}?"),
    },
}
# Known words in an order, or in company, that training does not have.
HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "line": {"": ("what does the text say?", "read it.")},
    "field": {
        "origin": ("where is the origin?",),
        "destination": ("where is the destination?", "what is the name of the destination?"),
        "date": ("read the date.",),
        "time": ("at what time does it leave?", "read the time."),
        "seat": ("where is the seat?", "read the seat."),
        "price": ("how much does it cost?", "read the price."),
        "name": ("whose name is it?", "read the name."),
        "platform": ("where is the platform?", "read the platform."),
        "city": ("what is the name of the city?", "read the city."),
        "phone": ("read the phone number.",),
        "code": ("read the code.",),
        "amount": ("how much is the amount?", "read the amount."),
    },
    "cell": {
        "destination time": ("what is the time of the train to {key}?",),
        "destination platform": ("what is the platform for {key}?",),
        "item price": ("what does the {key} cost?", "tell me the price of the {key}."),
        "name message": ("what is the message of {key}?",),
        "name amount": ("how high is the bar of {key}?",),
    },
    "reverse": {
        "time destination": ("what is the destination at {key}?",),
        "price item": ("which item is it for {key}?",),
        "message name": ("whose message says {key}?",),
        "amount name": ("what is the name of the bar at {key}?",),
    },
    "corner": {"": ("what does it say at the {corner}?", "tell me what is written at the {corner}.")},
    "most": {"chart": ("what is the highest bar?",), "prices": ("tell me which item costs the most.",)},
    "least": {"chart": ("what is the lowest bar?",), "prices": ("tell me which item costs the least.",)},
    "count": {
        "chart": ("tell me how many bars there are.",),
        "prices": ("tell me how many items there are.",),
        "board": ("tell me how many trains there are.",),
        "chat": ("tell me how many messages there are.",),
    },
    "below": {"item": ("tell me what is below {key}.",), "destination": ("tell me what is below {key}.",)},
}
KINDS = tuple(PATTERNS)
# How much nearer to a corner its text has to be than any other, in sides of the screen.
CLEAR = 0.08


@dataclass(frozen=True)
class Question:
    """A question about a scene, and its one answer.

    topic       what a kind of question is about: a field, a column and what it is looked up by, a kind of scene
    held_out    whether the wording is never trained on
    target      the number of the text of the scene that is the answer; None for an answer that is counted
    named       the number of the text of the scene that the question names, and where it begins in the question
    """

    kind: str
    topic: str
    text: str
    answer: str
    held_out: bool
    target: int | None
    named: tuple[int, int] | None = None

    def box(self, scene: Scene) -> tuple[float, float, float, float] | None:
        """Return the box of the answer on the picture, (y0, x0, y1, x1) in pixels; None where it is counted."""
        return None if self.target is None else picture_box(scene, scene.texts[self.target].box)


@cache
def wordings(kind: str, topic: str, held_out: bool) -> tuple[tuple[str, ...], ...]:
    """Return the wordings of a topic, a tuple for each pattern, so that many alternatives are not asked more often."""
    return tuple(tuple(expand(pattern)) for pattern in (HELD_OUT if held_out else PATTERNS)[kind][topic])


def question_words() -> list[str]:
    """Return every word of the wordings that are trained on, sorted."""
    texts = (
        text
        for kind in PATTERNS
        for topic in PATTERNS[kind]
        for group in wordings(kind, topic, False)
        for text in group
    )
    bare = " ".join(re.sub(r"\{\w+\}", " ", text) for text in (*texts, *CORNERS))
    return sorted(set(re.findall(r"[a-z]+", bare)))


@dataclass(frozen=True)
class Known:
    """Something that can be asked about a scene: its topic, what stands in the wording, the answer and its text, and
    the number of the text that is the wording's key."""

    topic: str
    words: dict[str, str]
    answer: str
    target: int | None
    key: int | None = None


def sample_question(
    rng: np.random.Generator, scene: Scene, kind: str, held_out: bool = False, plain: bool = False
) -> Question | None:
    """Return a random question of a kind about a scene, None where the scene allows none; `plain`: not `as_typed`.

    Raises ValueError for an unknown kind.
    """
    if kind not in PATTERNS:
        raise ValueError(f"sample_question: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    known = list(_ASKED[kind](scene))
    if not known:
        return None
    one = known[rng.integers(len(known))]
    groups = wordings(kind, one.topic, held_out)
    group = groups[rng.integers(len(groups))]
    wording = group[rng.integers(len(group))]
    text = wording.format(**one.words)
    named = None if one.key is None else (one.key, wording.index("{key}"))
    return Question(kind, one.topic, text if plain else as_typed(rng, text), one.answer, held_out, one.target, named)


def _about(scene: Scene, topic: str, text: Text, key: Text | None = None, **words: str) -> Known:
    if key is None:
        return Known(topic, words, text.text, scene.texts.index(text))
    return Known(topic, {**words, "key": key.text}, text.text, scene.texts.index(text), scene.texts.index(key))


def _line(scene: Scene) -> Iterator[Known]:
    if scene.kind == "line":
        yield from (_about(scene, "", text) for text in scene.values("line"))


def _field(scene: Scene) -> Iterator[Known]:
    """Values of a record, each of which has its label."""
    if scene.kind in ("ticket", "form", "app"):
        yield from (_about(scene, text.field, text) for text in scene.values())


def _pairs(scene: Scene, topics: dict[str, tuple[str, ...]]) -> Iterator[Known]:
    """Values of a row by another of its values."""
    for topic in topics:
        by, wanted = topic.split()
        for key in scene.values(by):
            for text in scene.values(wanted, key.row):
                yield _about(scene, topic, text, key)


def _cell(scene: Scene) -> Iterator[Known]:
    if scene.kind in ("board", "prices", "chat", "chart"):
        yield from _pairs(scene, PATTERNS["cell"])


def _reverse(scene: Scene) -> Iterator[Known]:
    if scene.kind in ("board", "prices", "chat", "chart"):
        yield from _pairs(scene, PATTERNS["reverse"])


def _corner(scene: Scene) -> Iterator[Known]:
    """The text nearest to a corner of the picture, where no other is nearly as near."""
    if scene.kind == "line" or len(scene.texts) < 2:
        return
    boxes = np.array([picture_box(scene, text.box) for text in scene.texts]) / scene.side
    for name, (bottom, right) in CORNERS.items():
        down = 1 - boxes[:, 2] if bottom else boxes[:, 0]
        across = 1 - boxes[:, 3] if right else boxes[:, 1]
        distance = np.hypot(down, across)
        first, second = distance.argsort()[:2]
        if distance[second] - distance[first] >= CLEAR:
            yield _about(scene, "", scene.texts[first], corner=name)


def _extreme(scene: Scene, sign: int) -> Iterator[Known]:
    by, wanted = {"chart": ("amount", "name"), "prices": ("price", "item")}.get(scene.kind, ("", ""))
    pairs = (
        [(float(key.text), text) for key in scene.values(by) for text in scene.values(wanted, key.row)] if by else []
    )
    if len(pairs) < 2 or len(pairs) < scene.rows:
        return
    ordered = sorted(pairs, key=lambda pair: sign * pair[0])
    if ordered[0][0] != ordered[1][0]:
        yield _about(scene, scene.kind, ordered[0][1])


def _most(scene: Scene) -> Iterator[Known]:
    yield from _extreme(scene, -1)


def _least(scene: Scene) -> Iterator[Known]:
    yield from _extreme(scene, 1)


def _count(scene: Scene) -> Iterator[Known]:
    every_row_is_there = len({text.row for text in scene.values()}) == scene.rows
    if scene.kind in PATTERNS["count"] and every_row_is_there:
        yield Known(scene.kind, {}, str(scene.rows), None)


def _below(scene: Scene) -> Iterator[Known]:
    for topic in PATTERNS["below"] if scene.kind in ("board", "prices") else ():
        for key in scene.values(topic):
            for text in scene.values(topic, key.row + 1):
                yield _about(scene, topic, text, key)


_ASKED = {
    "line": _line,
    "field": _field,
    "cell": _cell,
    "reverse": _reverse,
    "corner": _corner,
    "most": _most,
    "least": _least,
    "count": _count,
    "below": _below,
}
