"""The embedded model says so where a question or an image is unlike what it was trained on, else keeps quiet."""

import json

import numpy as np
import pytest
from PIL import Image

import firebolt_vl
from firebolt_vl.evaluate import familiar_exam
from firebolt_vl.evaluate.digits import draw
from firebolt_vl.evaluate.exam import pose
from firebolt_vl.evaluate.familiar import FILE, STATISTICS, read_familiar, statistics


@pytest.fixture(scope="module")
def known():
    return read_familiar(firebolt_vl.embedded_checkpoint())


def test_false_alarms_on_its_own_exam_are_rare(known):
    """All layouts and both kinds of wordings; `python -m firebolt_vl.evaluate.familiar_exam` takes many more."""
    drawn, asked = pose(200, 3, "held-out")
    assert not [one.question.text for one in asked if known.doubts_of_question(one.question.text)]
    assert np.mean([bool(known.doubts_of_image(draw(scene, 128))) for scene in drawn]) < 0.02


def test_photographs_are_unlike_it(known):
    photographs = list(familiar_exam.photographs(crops=30))
    assert all(known.doubts_of_image(image) for image in photographs)


@pytest.mark.parametrize("kind", ["white", "black", "noise", "gradient", "grey text"])
def test_other_images_are_unlike_it(known, kind):
    rng = np.random.default_rng(0)
    images = {
        "white": Image.new("RGB", (99, 99), "white"),
        "black": Image.new("1", (99, 99)),
        "noise": Image.fromarray(rng.integers(0, 256, (99, 99, 3), dtype=np.uint8)),
        "gradient": Image.radial_gradient("L"),
        "grey text": Image.fromarray(np.where(rng.random((20, 99)) < 0.2, 0, 255).astype(np.uint8)),
    }
    assert known.doubts_of_image(images[kind])


@pytest.mark.parametrize("question", familiar_exam.OTHER_QUESTIONS)
def test_other_questions_are_unlike_it(known, question):
    assert known.doubts_of_question(question)


def test_statistics_are_shares_of_what_they_are_called():
    image = Image.new("RGB", (64, 64), (240, 240, 240))
    image.paste((255, 0, 0), (8, 40, 24, 56))
    image.paste((0, 0, 0), (40, 8, 56, 24))
    found = statistics(image)
    assert tuple(found) == STATISTICS
    assert found["strokes"] == pytest.approx(1 / 8, abs=0.01)
    assert found["paper"] == pytest.approx(7 / 8, abs=0.01)
    assert found["colour"] == pytest.approx(0.5, abs=0.01)


def test_the_kept_words_are_those_of_the_recipe(known):
    words, things = familiar_exam.known()
    assert (sorted(known.words), sorted(known.things)) == (words, things)
    assert known.knows == familiar_exam.KNOWS


def test_a_file_that_says_nothing_is_no_knowledge(tmp_path):
    assert read_familiar(tmp_path) is None
    for content in ("", "[]", "{}", json.dumps({"knows": "x", "words": [], "things": [], "image": {}})):
        (tmp_path / FILE).write_text(content)
        assert read_familiar(tmp_path) is None
