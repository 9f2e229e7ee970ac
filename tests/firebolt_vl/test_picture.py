"""The grounding picture can be drawn of whatever may come."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from firebolt_vl import fonts, picture

WORDS = ["what", "digit", "is", "at", "the", "top", "left"]


def drawn(image, words, weights, boxes, effects, question="what?", answer="7", patches=0) -> np.ndarray:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw(image, words, weights, boxes, effects, question, answer, buffer, patches=patches)
    return np.array(Image.open(buffer).convert("RGB")).astype(int)


def tiles(height, width, rows, columns):
    y, x = np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1)
    parts = [(y[i], x[j], y[i + 1], x[j + 1]) for i in range(rows) for j in range(columns)]
    return np.array([(0, 0, height, width), *parts])


def weights_of(words, grids):
    return np.random.default_rng(0).dirichlet(np.ones(grids), len(words))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(64, 64, 2, 2), (10, 20000, 1, 4), (20000, 10, 4, 1), (1, 1, 1, 1), (40, 60, 5, 7), (40, 60, 0, 0)],
)
def test_any_shape_and_number_of_tiles(height, width, rows, columns):
    boxes = tiles(height, width, rows, columns) if rows else np.array([(0, 0, height, width)])
    effects = np.random.default_rng(1).normal(size=len(boxes))
    page = drawn(Image.new("RGB", (width, height), "navy"), WORDS, weights_of(WORDS, len(boxes)), boxes, effects)
    assert page.shape[0] < 2000
    assert page.shape[1] < 2500
    assert page.std() > 10


@pytest.mark.parametrize(
    "words", [[], ["a"], ["longer than any label " * 9] * 90, ["$x_{2}$", "数", "🙂", "\t", "</b>"]]
)
def test_any_words(words):
    drawn(Image.new("RGB", (32, 32)), words, weights_of(words, 5), tiles(32, 32, 2, 2), np.zeros(5))


@pytest.mark.parametrize(
    ("question", "answer"), [("q " * 5000, "a " * 5000), ("$\\frac{1}{2$", ""), ("\n\t?", "\x00\x1b[31m")]
)
def test_any_text(question, answer):
    drawn(Image.new("RGB", (32, 32)), WORDS, weights_of(WORDS, 5), tiles(32, 32, 2, 2), np.zeros(5), question, answer)


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 16), (10, 20000, 4), (20000, 10, 1), (40, 60, 32)])
@pytest.mark.parametrize("views", [0, 5])
def test_patches_are_a_heat_map(height, width, side, views):
    patches = tiles(height, width, side, side)[1:]
    boxes = np.concatenate([tiles(height, width, 2, 2)[:views], patches])
    effects = np.zeros(len(boxes))
    effects[views + side // 2] = 3.0
    image = Image.new("RGB", (width, height), "white")
    page = drawn(image, WORDS * 3, weights_of(WORDS * 3, len(boxes)), boxes, effects, patches=side * side)
    plain = drawn(image, WORDS * 3, weights_of(WORDS * 3, len(boxes)), boxes, 0 * effects, patches=side * side)
    assert page.shape == plain.shape
    assert (page != plain).any()
    assert drawn(image, [], None, boxes, effects, patches=side * side).std() > 1


def test_the_patch_that_matters_is_where_it_is_coloured():
    patches, image = tiles(64, 64, 2, 2)[1:], Image.new("RGB", (64, 64), "white")
    pages = [drawn(image, [], None, patches, np.eye(4)[n], patches=4) for n in range(4)]

    def between(one, other):
        """The middle of where two pages differ."""
        return np.argwhere(np.abs(pages[one] - pages[other]).sum(-1) > 60).mean(0)

    assert between(0, 1)[0] < between(2, 3)[0]
    assert between(0, 2)[1] < between(1, 3)[1]


def test_without_weights_only_the_left_half_is_drawn():
    boxes = tiles(32, 32, 2, 2)
    image = Image.new("RGB", (32, 32))
    both = drawn(image, WORDS, weights_of(WORDS, 5), boxes, np.ones(5))
    left = drawn(image, [], None, boxes, np.ones(5))
    assert left.shape[1] < 0.6 * both.shape[1]


def orange(page: np.ndarray) -> np.ndarray:
    """Where the frame's colour is."""
    return (np.abs(page - np.array(picture.EFFECTS(0.95)[:3]) * 255) < 8).all(-1)


@pytest.mark.parametrize("strongest", [0, 1, 2, 3, 4])
def test_the_view_that_the_answer_rests_on_is_framed(strongest):
    boxes, effects = tiles(64, 64, 2, 2), np.full(5, -0.3)
    effects[strongest] = 2.0
    image = Image.new("RGB", (64, 64), "black")
    framed = orange(drawn(image, [], None, boxes, effects))
    effects[strongest] = 0.05  # nothing to speak of: no frame
    plain = orange(drawn(image, [], None, boxes, np.where(effects > 0, effects, -0.01)))
    ys, xs = np.nonzero(framed & ~plain)
    inches = np.array([ys.mean(), xs.mean()]) / 160
    side = picture.LEFT
    centre = boxes[strongest].reshape(2, 2).mean(0) / 64 * side + (picture.TOP, picture.MARGIN)
    if strongest == 0:
        assert inches[0] > picture.TOP + side  # the thumbnail below the image
        assert inches[1] < picture.MARGIN + 1
    else:
        assert np.abs(inches - centre).max() < 0.2 * side


def page_texts(monkeypatch, **given) -> list[str]:
    """Everything that is written on the page."""
    said = []
    monkeypatch.setattr(picture, "_write", lambda figure, x, y, text, **style: said.append(str(text)))
    drawn(Image.new("RGB", (32, 32)), given.pop("words", WORDS), None, tiles(32, 32, 2, 2), **given)
    return said


def test_no_tile_matters_is_said_where_it_is_so(monkeypatch):
    said = page_texts(monkeypatch, effects=np.array([-0.001, 0.02, -0.004, 0.0, 0.0]))
    assert "no tile matters" in said
    assert "0.00" in said
    assert not any(text in ("−0.00", "+0.00") for text in said)
    assert "no tile matters" not in page_texts(monkeypatch, effects=np.array([0.0, 1.0, 0.0, 0.0, 0.0]))


def test_letters_that_no_font_has_are_told(monkeypatch):
    """The 5-digit code point is one of a private use area, which no font is made for."""
    said = page_texts(monkeypatch, effects=np.ones(5), question="где \U000f1234?", answer="α")
    assert "где \ufffd?" in said
    assert any("\ufffd: no font on this machine has U+F1234" in text for text in said)
    assert not any("no font" in text for text in page_texts(monkeypatch, effects=np.ones(5), question="où, где?"))


def test_each_letter_is_drawn_by_a_font_that_has_it():
    families, missing = fonts.fonts_for(["abc где α", "\u200d\ufe0f\t"])
    assert (families, missing) == (["DejaVu Sans"], "")
    assert fonts.UNKNOWN in fonts._letters("DejaVu Sans")
    for family in fonts._installed():
        assert not family.startswith("Last Resort")
