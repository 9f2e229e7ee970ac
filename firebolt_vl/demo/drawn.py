"""HTML of the page: what is shown, and what was said about it, each word with what it looked at.

The page's script lights up the picture: a word carries its weights, one byte for each grid, and its turn their boxes.
Whatever a visitor or a model wrote is escaped, also what a template in the browser might read.
"""

import base64
import html
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..shown import percent
from .talk import Effect, Marked, Talk, Turn

if TYPE_CHECKING:
    from PIL import Image

    from ..watch import Source

FOLDER = Path(__file__).parent
ALONE, AMONG_MANY = 960, 320
# An effect smaller than this, in nats, is noise.
LEAST_EFFECT = 0.1
UNSURE = 0.5
# Parts with a number each have room on a picture; more have colours alone.
MOST_NUMBERS = 70
NOTHING_YET = "What you ask about is shown here. Drop a file on the left, or take one of the examples."


def escaped(text: str) -> str:
    """Escape a text for HTML, and the signs that begin an expression in a browser's template."""
    text = html.escape(text)
    for sign in "$`{}":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def picture_urls(source: "Source") -> tuple[list[str], list[str]]:
    """The pictures of what is shown, as `data:` URLs of a size for a page, and a caption for each."""
    longest = ALONE if len(source.frames) == 1 else AMONG_MANY
    captions = [""] * len(source.frames) if source.times is None else [f"{time:.1f} s" for time in source.times]
    return [_data_url(frame, longest) for frame in source.frames], captions


def view(talk: Talk, effects: Sequence[Effect] = ()) -> str:
    """Draw what is shown; with `effects` it tells what the last answer rests on."""
    if not talk.pictures:
        return f'<div id="fb-view" class="fb-empty">{NOTHING_YET}</div>'
    pictures, captions = talk.pictures, talk.captions
    if talk.looks is not None and len(pictures) == 1 < len(talk.looks):
        pictures, captions = pictures * len(talk.looks), [f"look {number + 1}" for number in range(len(talk.looks))]
    scale = max([LEAST_EFFECT, *(abs(effect.nats) for effect in effects)])
    cells = []
    for number, (url, caption) in enumerate(zip(pictures, captions)):
        look = "" if talk.looks is None else f" {_look(talk.looks[number])}"
        of_this = [effect for effect in effects if effect.frame == number]
        parts = [_effect(effect, scale, len(of_this) == 1, len(effects) <= MOST_NUMBERS) for effect in of_this]
        told = caption or "what is asked about"
        cells.append(
            f'<figure><div class="fb-picture" tabindex="0"{look}><img src="{url}" alt="{told}">'
            f'{"".join(parts)}<div class="fb-light"></div></div><figcaption>{caption}</figcaption></figure>'
        )
    kind = "fb-many" if len(cells) > 1 else "fb-one"
    return (
        f'<div id="fb-view"><div class="{kind}">{"".join(cells)}</div>'
        f'<div class="fb-legend" aria-live="polite">{_legend(talk, effects)}</div></div>'
    )


def turns(talk: Talk) -> str:
    """Draw all that was said, the last first."""
    return "".join(map(_turn, reversed(talk.turns)))


def speaking(question: str, said: str) -> str:
    """A question whose answer is being made."""
    return (
        f'<div class="fb-turn"><div class="fb-question">{escaped(question)}</div>'
        f'<div class="fb-answer">{escaped(said)}<span class="fb-cursor"></span></div></div>'
    )


def notice(text: str) -> str:
    """Draw what could not be done, and why."""
    return f'<div class="fb-notice" role="alert">{escaped(text)}</div>'


def _turn(turn: Turn) -> str:
    boxes = escaped(json.dumps([[round(side, 4) for side in box] for box in turn.boxes]))
    doubts = "".join(f'<div class="fb-doubt">a guess: {escaped(doubt)}</div>' for doubt in turn.doubts)
    facts = [*turn.facts, *([] if turn.complete else ["cut short (Settings: longest answer)"])]
    answer = (
        _words(turn.answer, turn.answer_words) if turn.answer else '<span class="fb-nothing">(an empty answer)</span>'
    )
    return (
        f'<div class="fb-turn" data-boxes="{boxes}">'
        f'<div class="fb-question">{_words(turn.question, turn.question_words)}</div>'
        f'<div class="fb-answer">{answer}</div>'
        f'{doubts}<div class="fb-facts">{escaped(" · ".join(facts))}</div></div>'
    )


def _words(text: str, words: Sequence[Marked]) -> str:
    """A text in which each word carries what is known of it."""
    parts, done = [], 0
    for word in words:
        known = "" if word.weights is None else f" {_weights(word.weights)}"
        titled = "" if word.probability is None else f' title="probability {percent(word.probability)}"'
        unsure = " fb-unsure" if word.probability is not None and word.probability < UNSURE else ""
        parts.append(
            f'{escaped(text[done : word.start])}<span class="fb-word{unsure}" tabindex="0"{known}{titled}>'
            f"{escaped(text[word.start : word.end])}</span>"
        )
        done = word.end
    return "".join([*parts, escaped(text[done:])])


def _weights(weights: Sequence[float]) -> str:
    """Weights as attributes: a byte for each, in parts of the largest."""
    top = max([*weights, 1e-9])
    levels = bytes(round(255 * max(0.0, weight) / top) for weight in weights)
    return f'data-w="{base64.b64encode(levels).decode()}" data-top="{top:.4f}"'


def _look(shares: Sequence[Sequence[float]]) -> str:
    flat = [share for row in shares for share in row]
    return f'{_weights(flat)} data-rows="{len(shares)}"'


def _effect(effect: Effect, scale: float, alone: bool, numbered: bool) -> str:
    """A coloured box with its effect; that of a whole picture, where it is not `alone`, is a number in a corner."""
    y0, x0, y1, x1 = (100 * side for side in effect.box)
    strength, side = abs(effect.nats) / scale, "for" if effect.nats >= 0 else "against"
    whole = " fb-whole" if not alone and (y1 - y0) * (x1 - x0) > 9990 else ""
    number = f"<b>{_signed(effect.nats)}</b>" if numbered else ""
    return (
        f'<div class="fb-effect fb-{side}{whole}" style="top:{y0:.2f}%;left:{x0:.2f}%;height:{y1 - y0:.2f}%;'
        f'width:{x1 - x0:.2f}%;--strength:{strength:.3f}">{number}</div>'
    )


def _legend(talk: Talk, effects: Sequence[Effect]) -> str:
    if effects:
        if max(abs(effect.nats) for effect in effects) < LEAST_EFFECT:
            return "Hiding any one part changes nothing: no single part of it matters to the answer."
        return (
            'What the last answer rests on. <span class="fb-key fb-for"></span> Without this part it is less likely '
            '(+1: 2.7 times, +2: 7 times; in nats); <span class="fb-key fb-against"></span> without it, more likely.'
        )
    if talk.looks is not None:
        return "Point at a picture: bright is where the model looked in it."
    return ""


def _signed(nats: float) -> str:
    text = f"{nats:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def _data_url(image: "Image.Image", longest: int) -> str:
    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    data = BytesIO()
    small.save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
