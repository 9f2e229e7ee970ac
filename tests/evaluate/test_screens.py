"""Scenes of screens: what they are drawn from, where their texts are, what is asked about them, how it is marked."""

import json
import re
import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from firebolt_vl.evaluate.items import Mark, Marked
from firebolt_vl.evaluate.screens import __main__ as shown
from firebolt_vl.evaluate.screens import fonts, layouts, questions, words
from firebolt_vl.evaluate.screens.drawing import draw
from firebolt_vl.evaluate.screens.engines import cut_out, open_engine
from firebolt_vl.evaluate.screens.exam import character_error_rate, other_scene, points_at, pose, scores
from firebolt_vl.evaluate.screens.fonts import Face
from firebolt_vl.evaluate.screens.known import familiar
from firebolt_vl.evaluate.screens.layouts import SCREENS
from firebolt_vl.evaluate.screens.questions import KINDS, PATTERNS, sample_question, wordings
from firebolt_vl.evaluate.screens.sampling import SPLITS, sample_scene
from firebolt_vl.evaluate.screens.scenes import Look, Scene, Text, letters_of, picture_box

ANY_SCENE = st.builds(
    lambda seed, kind, split: sample_scene(np.random.default_rng(seed), kind, SPLITS[split]),
    st.integers(0, 2**32),
    st.sampled_from(SCREENS),
    st.sampled_from(tuple(SPLITS)),
)


def test_a_scene_of_a_seed_is_the_same_again():
    for kind in SCREENS:
        first, again = (sample_scene(np.random.default_rng(5), kind, SPLITS["beyond"]) for _ in range(2))
        assert first == again
        assert draw(first).tobytes() == draw(again).tobytes()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'poster'; expected one of line, ticket"):
        sample_scene(np.random.default_rng(0), "poster", SPLITS["seen"])


@given(ANY_SCENE)
def test_the_ink_of_a_text_is_inside_its_box(scene):
    """Drawn with a text and without it, the pictures differ inside the box alone, and reach to its sides."""
    plain = replace(scene, look=replace(scene.look, blur=0.0, noise=0.0, quality=0), shapes=())
    for number in range(min(3, len(scene.texts))):
        text = scene.texts[number]
        alone = replace(plain, texts=(text,))
        ground = np.asarray(draw(replace(plain, texts=())), dtype=int)
        changed = np.abs(np.asarray(draw(alone), dtype=int) - ground).sum(-1) > 30
        y0, x0, y1, x1 = picture_box(scene, text.box)
        y, x = np.nonzero(changed)
        # Antialiasing and turning spread ink over a pixel more.
        assert y0 - 2 <= y.min()
        assert y.max() <= y1 + 1
        assert x0 - 2 <= x.min()
        assert x.max() <= x1 + 1
        if not scene.look.angle:
            assert x.max() - x.min() > 0.6 * (x1 - x0) - 2


@given(ANY_SCENE)
def test_texts_are_on_the_picture_and_values_say_what_their_field_is(scene):
    for text in scene.texts:
        _, x0, _, x1 = text.box
        assert -1 <= x0 < x1 <= scene.side + 1
        assert set(text.text) <= set(fonts.ALPHABET) | {" "}
    for text in scene.values("time"):
        assert re.fullmatch(r"\d\d:\d\d", text.text)
    for text in scene.values("price"):
        assert re.fullmatch(r"\d+\.\d\d", text.text)
    assert scene.values()


@given(ANY_SCENE)
def test_letters_stand_in_their_order_inside_the_box_of_their_text(scene):
    for letter in letters_of(scene):
        text = scene.texts[letter.text]
        assert text.text[letter.place] == letter.letter
        y0, x0, y1, x1 = picture_box(scene, text.box)
        assert y0 - 1 <= letter.y <= y1 + 1
        assert x0 - 2 <= letter.x <= x1 + 2


def test_splits_have_nothing_in_common():
    families = {name: {fonts.load(Face(file, 12)).getname()[0] for file in fonts.font_files(name)} for name in (0, 1)}
    assert not families[0] & families[1]
    assert not set(fonts.font_files(False)) & set(fonts.font_files(True))
    for kind in SCREENS:
        assert layouts.SEEN[kind]
        assert layouts.HELD_OUT[kind]
        assert not set(layouts.SEEN[kind]) & set(layouts.HELD_OUT[kind])
    for kind, topics in questions.PATTERNS.items():
        assert topics.keys() == questions.HELD_OUT[kind].keys()
        for topic in topics:
            known, held_out = (
                {text for group in questions.wordings(kind, topic, part) for text in group} for part in (False, True)
            )
            assert not known & held_out
    low, high = SPLITS["seen"].sizes[0]
    assert all(last < low or first > high for first, last in SPLITS["beyond"].sizes)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_from_its_own_fonts_layouts_and_sizes_alone(split):
    rng, files, names, sizes = np.random.default_rng(0), set(), set(), set()
    for number in range(64):
        scene = sample_scene(rng, SCREENS[number % len(SCREENS)], SPLITS[split])
        names.add(scene.layout)
        files |= {text.face.file for text in scene.texts}
        sizes |= {text.face.size for text in scene.texts}
    part = SPLITS[split]
    assert files <= set(fonts.font_files(part.fonts_held_out))
    chosen = layouts.HELD_OUT if part.layouts_held_out else layouts.SEEN
    assert names <= {layout.__name__ for known in chosen.values() for layout in known}
    assert all(any(low <= size <= high for low, high in part.sizes) for size in sizes)


def test_held_out_wordings_have_no_word_that_is_new():
    known = set(questions.question_words())
    for kind, topics in questions.HELD_OUT.items():
        for topic in topics:
            for text in (text for group in questions.wordings(kind, topic, True) for text in group):
                assert set(re.findall("[a-z]+", re.sub(r"\{\w+\}", " ", text))) <= known, text


def test_no_answer_has_a_word_of_a_question_after_a_space():
    """What a tokenizer that knows the words of questions spells letter by letter."""
    known = set(questions.question_words())
    assert not known & {word for words_ in (words.SAID, words.MONTHS) for word in words_}
    titles = {word for texts in layouts.TITLES.values() for text in texts for word in text.split()[1:]}
    assert not known & titles


def by_hand(scene: Scene, question) -> bool:
    """Whether an answer follows from the texts of a scene, worked out from their fields and rows."""
    rows = {}
    for text in scene.texts:
        if text.row >= 0 and not text.label:
            rows.setdefault(text.row, {})[text.field] = text.text
    told = question.text.rstrip("?.").casefold()
    if question.kind == "count":
        return question.answer == str(len(rows))
    target = scene.texts[question.target]
    if target.text != question.answer:
        return False
    if question.kind in ("cell", "reverse"):
        by, wanted = question.topic.split()
        found = [row[wanted] for row in rows.values() if wanted in row and row.get(by, "\0").casefold() in told]
        return question.answer in found
    if question.kind in ("most", "least"):
        by, wanted = {"chart": ("amount", "name"), "prices": ("price", "item")}[scene.kind]
        best = (max if question.kind == "most" else min)(rows.values(), key=lambda row: float(row[by]))
        return best[wanted] == question.answer
    if question.kind == "below":
        above = [row for row in rows.values() if row.get(question.topic, "\0").casefold() in told]
        places = [number for number, row in rows.items() if row in above]
        return any(rows.get(place + 1, {}).get(question.topic) == question.answer for place in places)
    if question.kind == "field":
        return target.field == question.topic
    return question.kind in ("line", "corner")


@given(ANY_SCENE, st.booleans(), st.integers(0, 2**32))
def test_answers_follow_from_what_the_scene_says(scene, held_out, seed):
    rng = np.random.default_rng(seed)
    asked = [question for kind in KINDS if (question := sample_question(rng, scene, kind, held_out))]
    assert asked
    for question in asked:
        assert by_hand(scene, question), question
        assert question.held_out == held_out


def test_the_text_at_a_corner_is_the_nearest_one():
    face = Face("DejaVuSans.ttf", 12)
    texts = tuple(
        Text(text, "item", row, False, y, x, face, (0, 0, 0))
        for row, (text, y, x) in enumerate([("aa", 20, 8), ("bb", 20, 150), ("cc", 170, 80)])
    )
    scene = Scene("prices", "plain", 192, (255, 255, 255), (), texts, Look())
    rng, found = np.random.default_rng(0), {}
    for _ in range(60):
        question = sample_question(rng, scene, "corner", plain=True)
        found[next(name for name in questions.CORNERS if name in question.text)] = question.answer
    assert found["top left"] == "aa"
    assert found["top right"] == "bb"
    assert found.get("bottom right", "cc") == "cc"


def marked(got: str, wanted: str, kind: str = "line") -> Marked:
    return Marked(0, [wanted], {"kind": kind}, got, Mark(got, float(got == wanted)))


def test_scores_by_hand():
    """Of four letters one is wrong, of two both are missing: 3 of 6."""
    some = [marked("abcx", "abcd"), marked("", "ab"), marked("tea", "tea", "cell")]
    assert character_error_rate(some[:2]) == 3 / 6
    found = scores(some)
    assert found["line"] == {"questions": 2, "exact": 0.0, "cer": 0.5}
    assert found["cell"]["exact"] == 1.0
    assert found["all"] == {"questions": 3, "exact": 1 / 3, "cer": 3 / 9}


def test_pointing_is_at_any_grid_of_the_box():
    boxes = np.array([[0, 0, 1, 1], [0, 1, 1, 2], [1, 0, 2, 1], [1, 1, 2, 2]], dtype=float)
    assert points_at(boxes, np.array([0.1, 0.5, 0.0, 0.0]), (0.2, 0.1, 0.8, 1.2)) == (1.0, 0.5)
    assert points_at(boxes, np.array([0.1, 0.0, 0.5, 0.0]), (0.2, 0.1, 0.8, 1.2)) == (0.0, 0.5)
    assert points_at(boxes, np.zeros(4), (0.2, 0.1, 0.8, 1.2))[0] == 0.0


def test_an_exam_asks_in_both_wordings_and_shows_others_of_the_same_kind():
    exam = pose(16, 0, "both", 192, SCREENS)
    assert {asked.question.held_out for asked in exam.asked} == {False, True}
    others = other_scene(exam)
    assert sorted(others) == list(range(16))
    for scene, other in enumerate(others):
        assert scene != other
        assert exam.scenes[scene].kind == exam.scenes[other].kind
    assert pose(16, 0, "both", 192, SCREENS).asked == exam.asked
    assert pose(16, 1, "both", 192, SCREENS).asked != exam.asked
    with pytest.raises(ValueError, match="scenes is 2; expected at least 8, one of each kind"):
        pose(2, 0, "both", 192, SCREENS)
    with pytest.raises(ValueError, match="split is 'test'; expected one of seen, fonts"):
        pose(16, 0, "test", 192, SCREENS)


def test_more_fonts_of_a_folder_are_those_with_all_letters_of_families_that_are_not_held_out(tmp_path):
    folder = fonts._folder()
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf", "cmsy10.ttf"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts.extra_fonts(tmp_path) == (str(tmp_path / "DejaVuSans.ttf"),)
    (tmp_path / "DejaVuSans.ttf").unlink()
    with pytest.raises(ValueError, match="expected font files with the letters"):
        fonts.extra_fonts(tmp_path)


def test_a_font_that_is_not_there_says_where_it_should_be():
    with pytest.raises(OSError, match=r"face is cmfoo10.ttf, which cannot be read .* pip install matplotlib"):
        fonts.load(Face("cmfoo10.ttf", 12))


def test_an_engine_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="apt install tesseract-ocr"):
        open_engine("tesseract")
    for name in ("rapidocr", "rapidocr_onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install rapidocr-onnxruntime"):
        open_engine("rapidocr")
    with pytest.raises(ValueError, match="name is 'abbyy'; expected one of tesseract, rapidocr"):
        open_engine("abbyy")


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for the program")
def test_tesseract_gets_an_image_and_its_answer_is_one_line(tmp_path, monkeypatch):
    program = tmp_path / "tesseract"
    program.write_text(
        f"#!{sys.executable}\nimport sys, json\nfrom PIL import Image\nimport io\n"
        "image = Image.open(io.BytesIO(sys.stdin.buffer.read()))\n"
        "print(json.dumps([*image.size, *sys.argv[1:]]), '\\n\\n')\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = open_engine("tesseract")(Image.new("RGB", (30, 20)))
    assert json.loads(said) == [30, 20, "stdin", "stdout", "--psm", "7"]


def test_rapidocr_of_either_version_is_understood(monkeypatch):
    class Found:
        txts = ("12:30",)

    for answer in (Found(), ([["12:30", 0.9]], 0.1)):
        module = type(sys)("rapidocr")
        module.RapidOCR = lambda answer=answer: lambda pixels, **_: answer
        monkeypatch.setitem(sys.modules, "rapidocr", module)
        assert open_engine("rapidocr")(Image.new("RGB", (30, 20))) == "12:30"


def test_a_cut_is_the_box_with_a_margin():
    image = Image.new("RGB", (100, 50), "white")
    image.paste((0, 0, 0), (20, 10, 40, 20))
    part = cut_out(image, (10, 20, 20, 40), scale=1)
    assert part.size == (29, 19)
    assert part.getpixel((5, 5)) == (0, 0, 0)
    assert cut_out(image, (-3, -3, 60, 120)).size == (300, 150)


def test_screens_of_all_kinds_and_splits_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shown, "TIMED", 8)
    shown.main([str(tmp_path / "all.png")])
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size == (192 * len(SCREENS), 192 * len(SPLITS))
    said = capsys.readouterr().out
    assert "seen, chart: " in said
    assert "scenes made up" in said


def test_what_a_reader_knows_fits_its_questions_and_screens_and_not_others():
    known = familiar(scenes=24)
    for kind, topics in PATTERNS.items():
        for topic in topics:
            for text in (text for group in wordings(kind, topic, False) for text in group):
                assert known.doubts_of_question(text.format(key="Qarlo", corner="top left")) == []
    for question in ("is there a dog?", "how old is the man?", "why?", "welche Ziffer ist das?"):
        assert known.doubts_of_question(question) == ["the question asks for nothing that this model was trained on"]
    rng = np.random.default_rng(7)
    assert known.doubts_of_image(draw(sample_scene(rng, "form", SPLITS["both"]))) == []
    noise = Image.fromarray(rng.integers(0, 256, (192, 192, 3), dtype=np.uint8))
    assert known.doubts_of_image(noise) == ["the image is unlike those that this model was trained on"]
