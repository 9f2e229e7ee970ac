"""Own questions: rows, baselines, and how a grounding fits a box."""

from types import SimpleNamespace

import pytest

from firebolt_vl.evaluate.items import Item, Marked
from firebolt_vl.evaluate.metrics.grounding import fit
from firebolt_vl.evaluate.own import OWN, grounding_scores, with_other_images
from firebolt_vl.files.problems import BadRow

TILES = [(0, 0, 10, 20), (0, 0, 5, 10), (0, 10, 5, 20), (5, 0, 10, 10), (5, 10, 10, 20)]


def marked(*rows: tuple[dict, str]) -> list[Marked]:
    found = []
    for i, (row, got) in enumerate(rows):
        item = OWN.read(row)
        found.append(Marked(i, item.wanted, item.about, got, OWN.mark(got, item.wanted, item.about)))
    return found


def test_scores_and_baselines_of_each_kind():
    colour = {"question": "Which colour?", "kind": "colour", "answer": "red"}
    count = {"question": "How many?", "kind": "count", "answers": ["2", "two"]}
    rows = [(colour, "Red."), (colour, "dark red"), ({**colour, "answer": "blue"}, "green"), (count, "Two")]
    found = OWN.scores(marked(*rows, ({**count, "answer": None, "answers": ["3"]}, "")))
    assert found["score"] == pytest.approx(2 / 5)
    assert found["word_f1"] == pytest.approx((1 + 2 / 3 + 0 + 1 + 0) / 5)
    # "red" is right twice of three; of the counts "2" is right once of two.
    assert found["majority"] == pytest.approx(3 / 5)
    assert found["kinds"]["colour"]["score"] == pytest.approx(1 / 3)
    assert found["kinds"]["colour"]["majority"] == pytest.approx(2 / 3)
    assert found["kinds"]["count"]["rows"] == 2
    assert "vqa_accuracy" not in found


def test_three_answers_or_more_have_vqa_accuracy():
    row = {"question": "Which?", "answers": ["cat", "cat", "cat", "dog"]}
    found = OWN.scores(marked((row, "cat")))
    assert found["vqa_accuracy"] == pytest.approx((3 * 2 / 3 + 1) / 4)
    assert "kinds" not in found


def test_rows_as_training_has_them():
    turns = [{"from": "human", "value": "Which?"}, {"from": "assistant", "value": "a cat"}]
    item = OWN.read({"id": 3, "image": "x", "conversations": turns, "box": [1, 2, 3, 4]})
    assert (item.id, item.question, item.wanted, item.images) == (3, "Which?", ["a cat"], ("x",))
    assert item.about == {"kind": "none", "box": [2, 1, 4, 3]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "no column answer: the columns are question"),
        ({"question": "q", "answer": " "}, "no answer: answer is ' '"),
        ({"question": "", "answer": "a"}, "question is no text"),
        ({"question": "q", "answer": "a", "id": 1.5}, "id is no id"),
        ({"question": "q", "answer": "a", "box": [0, 0, 1, 1]}, "box without an image"),
        ({"question": "q", "answer": "a", "image": "x", "box": [0, 0, 1]}, "box is no box"),
        ({"question": "q", "answer": "a", "image": "x", "box": [5, 0, 1, 1]}, "box is no box"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "no question and answer"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(BadRow) as found:
        OWN.read(row)
    assert str(found.value).startswith(message)


def test_each_question_gets_an_image_that_is_not_its_own():
    def item(image: str | None) -> Item:
        cells = (SimpleNamespace(key=image),) if image else ()
        return Item(None, "q", cells, ["a"], {})

    items = list(enumerate(map(item, ["a", "a", None, "b", "c", "c"]), 1))
    found = {number: one.images[0].key for number, one in with_other_images(items)}
    assert found == {1: "b", 2: "b", 4: "c", 5: "a", 6: "a"}
    assert list(with_other_images(items[:2])) == []


def test_a_grounding_in_the_right_tile_fits_and_one_elsewhere_does_not():
    box = (0, 0, 5, 10)  # the first tile
    right = fit(TILES, [0, 3, 0, 0, -2], box)
    assert (right.pointing, right.inside, right.chance) == (1, 1, 50 / 200)
    assert right.iou == {0.25: 1, 0.5: 1, 0.75: 1}
    wrong = fit(TILES, [0, 0, 0, 0, 1], box)
    assert (wrong.pointing, wrong.inside, wrong.iou[0.5]) == (0, 0, 0)
    nothing = fit(TILES, [0, -1, 0, 0, 0], box)
    assert (nothing.pointing, nothing.inside, nothing.iou[0.5]) == (0, 0, 0)


def test_an_even_heat_has_the_share_of_the_box_inside():
    found = fit(TILES, [1, 0, 0, 0, 0], (0, 0, 2, 5))
    assert (found.pointing, found.chance) == (1, 1)
    assert found.inside == pytest.approx(10 / 200)
    assert found.iou[0.75] == pytest.approx(10 / 200)
    # The global view and a tile: densities 1/200 and 1/50; at a quarter of 1/40 only the tile is left.
    both = fit(TILES, [1, 1, 0, 0, 0], (0, 0, 5, 20))
    assert both.inside == pytest.approx((0.5 + 1) / 2)
    assert both.iou[0.25] == pytest.approx(50 / 100)
    means = grounding_scores([found, both])
    assert means["questions"] == 2
    assert means["inside"] == pytest.approx((0.05 + 0.75) / 2)


def test_boxes_without_an_area_are_refused():
    with pytest.raises(ValueError, match="without an area"):
        fit([(0, 0, 0, 5)], [1], (0, 0, 1, 1))
    with pytest.raises(ValueError, match="2 and 1"):
        fit(TILES[:2], [1], (0, 0, 1, 1))
