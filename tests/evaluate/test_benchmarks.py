"""Rows in the true columns of each benchmark: what a model is asked, and scores worked out by hand."""

import pytest

from firebolt_vl.evaluate.benchmarks import BENCHMARKS
from firebolt_vl.evaluate.items import Marked
from firebolt_vl.files.problems import BadRow

IMAGE = object()


def scores(name: str, rows: list[dict], answers: list[str]) -> dict:
    benchmark = BENCHMARKS[name]
    items = [benchmark.read(row) for row in rows]
    return benchmark.scores(
        [
            Marked(item.id, item.wanted, item.about, got, benchmark.mark(got, item.wanted, item.about))
            for item, got in zip(items, answers, strict=True)
        ]
    )


def vqa(answers: list[str], **other) -> dict:
    rows = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]
    return {"image": IMAGE, "question": "what colour is it?", "question_id": 7, "answers": rows, **other}


def test_vqav2():
    rows = [
        vqa(["red"] * 10, answer_type="other"),
        vqa(["2"] * 8 + ["two", "three"], answer_type="number"),
        vqa(["yes"] * 2 + ["no"] * 8, answer_type="yes/no"),
        vqa(["cat"] * 9 + ["cats"], answer_type="other"),
        vqa(["dog"] * 9 + ["a dog"], answer_type="other"),
    ]
    found = scores("vqav2", rows, ["Red", "two", "yes", "cats", "The dog."])
    third = (2 * 1 / 3 + 8 * 2 / 3) / 10
    cats = (9 * 1 / 3 + 0) / 10
    assert found["score"] == pytest.approx((0 + 1 + third + cats + 1) / 5)
    assert found["harness_score"] == pytest.approx((1 + 1 + third + cats + 1) / 5)
    assert found["answer_types"] == pytest.approx({"other": (0 + cats + 1) / 3, "number": 1, "yes/no": third})
    asked = BENCHMARKS["vqav2"].read(rows[0])
    assert asked.question == "what colour is it?\nAnswer the question using a single word or phrase."
    assert (asked.id, asked.images) == (7, (IMAGE,))


def test_the_test_split_of_vqav2_has_no_scores():
    row = {"image": IMAGE, "question": "what?", "question_id": 1, "answers": None}
    assert scores("vqav2", [row], ["red"]) == {}


def pope(answer: str, category: str, number: int) -> dict:
    return {"image": IMAGE, "question": "Is there a cat?", "answer": answer, "category": category, "id": number}


def test_pope():
    kinds = ["adversarial", "adversarial", "popular", "popular", "random", "random"]
    rows = [pope(answer, kind, i) for i, (answer, kind) in enumerate(zip(["yes", "no"] * 3, kinds))]
    found = scores("pope", rows, ["Yes", "yes", "Yes, there is.", "No", "no", "NO"])
    whole = {"accuracy": 3 / 6, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes_ratio": 2 / 6}
    categories = found.pop("categories")
    assert found == pytest.approx(whole)
    assert categories["adversarial"] == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 1}
    )
    assert categories["popular"]["accuracy"] == 0.5
    assert categories["random"] == pytest.approx(
        {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    )


def test_questions_of_pope_that_only_count_in_their_category_get_ids_of_their_own():
    rows = [{**pope("yes", category, 0), "question_id": 1} for category in ("popular", "random")]
    for row in rows:
        del row["id"]
    assert [BENCHMARKS["pope"].read(row).id for row in rows] == ["popular/1", "random/1"]


def mme(image: str, category: str, answer: str, question: str) -> dict:
    text = f"{question} Please answer yes or no."
    return {"question_id": image, "image": IMAGE, "question": text, "answer": answer, "category": category}


def test_mme():
    rows = [
        mme("count/1.png", "count", "Yes", "Are there two dogs?"),
        mme("count/1.png", "count", "No", "Are there three dogs?"),
        mme("count/2.png", "count", "Yes", "Is there one cat?"),
        mme("count/2.png", "count", "No", "Are there two cats?"),
        mme("t/1.png", "text_translation", "Yes", "Does it mean water?"),
        mme("t/1.png", "text_translation", "No", "Does it mean fire?"),
    ]
    found = scores("mme", rows, ["Yes, two", "No.", "yes", "Not at all? yes", "I think yes", "n"])
    # The fourth begins with "no", the fifth says nothing in four characters.
    assert found["categories"] == pytest.approx({"count": 100 * (4 / 4) + 100, "text_translation": 50})
    assert (found["perception"], found["cognition"], found["score"]) == (200, 50, 250)
    asked = BENCHMARKS["mme"].read(rows[0])
    assert asked.question == "Are there two dogs?\nAnswer the question using a single word or phrase."
    assert len({BENCHMARKS["mme"].read(row).id for row in rows}) == len(rows)


def mmmu(number: int, subject: str, answer, options: str = "[]", kind: str = "multiple-choice") -> dict:
    row = {"id": f"validation_{subject}_{number}", "question": "Which is <image 1>?", "options": options}
    images = {f"image_{i}": IMAGE if i == 1 else None for i in range(1, 8)}
    return {**row, **images, "question_type": kind, "answer": answer}


def test_mmmu():
    fruits = "['an apple', 'a pear', 'it\\'s a plum']"
    rows = [
        mmmu(1, "Art_Theory", "B", fruits),
        mmmu(2, "Art_Theory", "C", fruits),
        mmmu(1, "Math", "12.5", kind="open"),
        mmmu(2, "Math", "['5', 'five']", kind="open"),
        mmmu(3, "Math", "A", fruits),
    ]
    found = scores("mmmu", rows, ["(B)", "What one can see in the picture: it's a plum", "x = 12.50", "six", "(B)"])
    assert found["score"] == pytest.approx(3 / 5)
    assert found["subjects"] == pytest.approx({"Art_Theory": 1, "Math": 1 / 3})
    assert found["disciplines"] == pytest.approx({"Art and Design": 1, "Science": 1 / 3})
    asked = BENCHMARKS["mmmu"].read(rows[0])
    assert asked.question.startswith("Which is image 1?\nA. an apple\nB. a pear\nC. it's a plum\n\nAnswer with")
    assert asked.images == (IMAGE,)


def test_mmmu_shows_the_images_that_are_named_in_their_order():
    row = mmmu(1, "Math", "A", "['<image 2>', '<image 3>']") | {"image_2": "two", "image_3": "three", "image_4": "four"}
    assert BENCHMARKS["mmmu"].read(row).images == (IMAGE, "two", "three")
    with pytest.raises(BadRow, match="no image"):
        BENCHMARKS["mmmu"].read(row | {"image_3": None})


def test_an_answer_to_mmmu_that_names_no_option_is_guessed_and_counted():
    benchmark = BENCHMARKS["mmmu"]
    rows = [mmmu(i, "Math", "A", "['x', 'y']") | {"question": f"{i} <image 1>"} for i in range(40)]
    marks = [benchmark.mark("hm", item.wanted, item.about) for item in map(benchmark.read, rows)]
    assert all(mark.parsed is None for mark in marks)
    assert 5 < sum(mark.score for mark in marks) < 35


def test_ai2d():
    rows = [{"image": IMAGE, "question": "Which eats?", "options": ["cat", "dog"], "answer": "1"} for _ in range(5)]
    found = scores("ai2d", rows, ["B", "(b).", "B. dog", "dog", "A"])
    assert found == {"score": 3 / 5}
    asked = BENCHMARKS["ai2d"].read(rows[0])
    assert asked.question == (
        "Which eats?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )
    assert (asked.wanted, asked.id) == ("B", None)


def test_scienceqa():
    row = {"image": IMAGE, "hint": "", "question": "Which?", "choices": ["sun", "moon", "star"], "answer": 1}
    rows = [{**row, "subject": subject} for subject in ("natural science", "natural science", "social science")]
    rows += [{**row, "hint": "It is night."}, row]
    found = scores("scienceqa", rows, ["B", "B. moon", "b. moon", "(B)", "b"])
    assert found == {"score": 3 / 5, "subjects": {"natural science": 1, "social science": 0}}
    assert BENCHMARKS["scienceqa"].read(rows[3]).question.startswith("Context: It is night.\nWhich?\nA. sun\n")


def mmbench(index: int, answer: str, *options: str, category: str = "ocr") -> dict:
    cells = dict(zip("ABCD", [*options, float("nan"), float("nan")]))
    about = {"category": category, "L2-category": "perception", "hint": float("nan")}
    return {"index": index, "image": IMAGE, "question": "Which?", "answer": answer, **cells, **about}


def test_mmbench():
    rows = [
        mmbench(1, "A", "sun", "moon"),
        mmbench(1_000_001, "B", "moon", "sun"),
        mmbench(2, "B", "cat", "dog"),
        mmbench(1_000_002, "A", "dog", "cat"),
        mmbench(3, "A", "red", "blue", category="colour"),
    ]
    found = scores("mmbench", rows, ["A", "the sun", "B", "B", "green"])
    assert found == {
        "score": pytest.approx(1 / 3),
        "vanilla": pytest.approx(2 / 3),
        "questions": 3,
        "categories": {"ocr": 0.5, "colour": 0},
        "l2_categories": {"perception": pytest.approx(1 / 3)},
    }
    assert (
        BENCHMARKS["mmbench"]
        .read(rows[0])
        .question.startswith("Which? There are several options:\nA. sun\nB. moon\nAnswer")
    )


def test_mvbench():
    row = {"video": "1.mp4", "question": "What falls?", "candidates": ["a cup", "a ball"], "answer": "a ball"}
    rows = [{**row, "task": task} for task in ("moving_count", "moving_count", "object_shuffle")]
    found = scores("mvbench", [*rows, row, row], ["(B)", "B. a ball", "a ball", "it is b", "none"])
    # "a ball": the article is taken for the letter A.
    assert found == {"score": 3 / 5, "tasks": {"moving_count": 1, "object_shuffle": 0}}
    asked = BENCHMARKS["mvbench"].read(rows[0])
    assert asked.question.startswith("Question:What falls?\nOption:\n(A) a cup\n(B) a ball\n")
    assert (asked.video, asked.options) == ("1.mp4", ("a cup", "a ball"))


def test_video_mme():
    row = {"question_id": "1-1", "videoID": "x7", "question": "Who?", "options": ["A. a cat", "B. a dog"]}
    rows = [{**row, "answer": "B", "duration": kind} for kind in ("short", "short", "long", "long", "long")]
    found = scores("video-mme", rows, ["B", "The best answer is B.", "(B) it is", "a dog", "A"])
    assert found == {"score": 3 / 5, "durations": {"short": 1, "long": pytest.approx(1 / 3)}}
    asked = BENCHMARKS["video-mme"].read(rows[0])
    assert (asked.video, asked.options) == ("x7.mp4", ("a cat", "a dog"))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("pope", pope("perhaps", "random", 1), "answer is not yes or no: it is 'perhaps'"),
        ("pope", pope("yes", "random", 1) | {"image": None}, "no image: it is None"),
        ("pope", pope("yes", "random", 1) | {"question": " "}, "question is no text"),
        ("pope", pope("yes", "random", True), "id is no id: it is True"),
        ("vqav2", vqa([]), "answers are no list"),
        ("mmmu", mmmu(1, "Math", "A", "['x'"), "options are no list"),
        ("mmmu", mmmu(1, "Math", "A", "[1]"), "options are no texts"),
        ("ai2d", {"image": IMAGE, "question": "q", "options": ["x"], "answer": 1}, "answer is no option"),
        ("ai2d", {"image": IMAGE, "question": "q", "options": ["x"], "answer": 0.5}, "answer is no number"),
        ("scienceqa", {"image": IMAGE, "question": "q", "choices": [], "answer": 0}, "choices are no texts"),
        ("mmbench", mmbench(1, "C", "sun", "moon"), "answer is no option"),
        ("mvbench", {"video": "v", "question": "q", "candidates": ["x"], "answer": "y"}, "answer is no option"),
    ],
)
def test_bad_rows_say_what_is_wrong(name, row, message):
    with pytest.raises(BadRow) as found:
        BENCHMARKS[name].read(row)
    assert str(found.value).startswith(message)
