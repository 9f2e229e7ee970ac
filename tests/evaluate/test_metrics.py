"""Metrics against scores worked out by hand, with the traps of each benchmark's rules."""

import random

import pytest

from firebolt_vl.evaluate import anls, exact_match, mmbench, mme, mmmu, pope, vqa_accuracy, word_f1
from firebolt_vl.evaluate.metrics.letters import (
    ai2d_letter,
    mmbench_letter,
    mvbench_letter,
    scienceqa_letter,
    video_mme_letter,
)
from firebolt_vl.evaluate.metrics.mmbench import Judged as Rotation
from firebolt_vl.evaluate.metrics.mmmu import Judged as Exercise
from firebolt_vl.evaluate.metrics.mmmu import choice_of, guessed, open_answers, open_is_right, subject_of
from firebolt_vl.evaluate.metrics.text import edit_distance
from firebolt_vl.evaluate.metrics.vqa import normalise
from firebolt_vl.evaluate.metrics.yes_no import Judged as Seen
from firebolt_vl.evaluate.metrics.yes_no import verdict


@pytest.mark.parametrize(
    ("answer", "answers", "score"),
    [
        ("red", ["red"] * 10, 1),
        # All agree: nothing is normalised, and "Red" is another answer.
        ("Red", ["red"] * 10, 0),
        ("Red.", ["red"] * 9 + ["crimson"], 1),
        # Two gave it: each of them has one other, 1/3; each of the eight others has two, 2/3.
        ("blue", ["blue"] * 2 + ["green"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        # Three: 2/3 for each of them, 1 for the seven others.
        ("blue", ["blue"] * 3 + ["green"] * 7, (3 * 2 / 3 + 7) / 10),
        ("2", ["two"] * 5 + ["2"] * 4 + ["three"], 1),
        ("the dog", ["dog"] * 9 + ["cat"], 1),
        ("dogs", ["dog"] * 9 + ["cat"], 0),
        ("dont know", ["don't know"] * 9 + ["cat"], 1),
        ("none", ["0"] * 9 + ["1"], 1),
        # A space beside the sign takes it away, else a space takes its place.
        ("t-shirt", ["t shirt"] * 9 + ["coat"], 1),
        ("black, white", ["black white"] * 9 + ["grey"], 1),
        ("1,000", ["1000"] * 9 + ["100"], 1),
        ("2.5", ["2.5"] * 9 + ["25"], 1),
        ("u.s.", ["us"] * 9 + ["uk"], 1),
    ],
)
def test_vqa_accuracy(answer, answers, score):
    assert vqa_accuracy(answer, answers) == pytest.approx(score, abs=1e-12)


def test_the_harness_normalises_even_where_annotators_agree():
    assert vqa_accuracy("Red", ["red"] * 10, rule="harness") == 1
    assert vqa_accuracy("Red", ["red"] * 10, rule="official") == 0
    assert vqa_accuracy("red 1", ["the red one"] * 10, rule="harness") == 1


def test_contractions_are_known_without_one_apostrophe():
    assert normalise("couldnt've couldn'tve ow's'at maam") == "couldn't've couldn't've 'ow's'at ma'am"
    assert normalise("somebody'd") == "somebodyd"


def test_vqa_accuracy_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="answers is empty"):
        vqa_accuracy("a", [])
    with pytest.raises(ValueError, match="rule is 'mine'; expected one of official, harness"):
        vqa_accuracy("a", ["a"], rule="mine")


def test_pope():
    wanted = ["yes", "yes", "yes", "no", "no", "no"]
    # A true yes, a sentence that is neither, a missed yes; a true no, a false yes, a true no.
    found = pope(["Yes", "Yes, there is.", "no", " no ", "yes", "No"], wanted)
    assert found == pytest.approx(
        {"accuracy": 3 / 6, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes_ratio": 2 / 6}
    )
    nothing = pope(["maybe"], ["no"])
    assert nothing == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    with pytest.raises(ValueError, match="have 1 and 2"):
        pope(["yes"], wanted[:2])
    with pytest.raises(ValueError, match="wanted has 'maybe'"):
        pope(["yes"], ["maybe"])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Yes.", "yes"),
        ("y", "yes"),
        ("N", "no"),
        ("No, it is not", "no"),
        ("a no", "no"),
        ("I say yes", None),
        ("Not sure", "no"),  # "not " begins with "no"
        ("eyes", "yes"),
        ("", None),
    ],
)
def test_the_verdict_stands_in_the_first_four_characters(answer, found):
    assert verdict(answer) == found


def test_mme_adds_accuracy_and_pairs():
    judged = [Seen("1", "existence", True), Seen("1", "existence", True)]
    judged += [Seen("2", "existence", True), Seen("2", "existence", False)]
    judged += [Seen("1", "code_reasoning", False), Seen("1", "code_reasoning", True)]
    found = mme(judged)
    assert found["categories"] == pytest.approx({"existence": 75 + 50, "code_reasoning": 50 + 0})
    assert (found["perception"], found["cognition"], found["score"]) == (125, 50, 175)
    with pytest.raises(ValueError, match="image 3 of color has 1 questions; expected 2"):
        mme([Seen("3", "color", True)])
    with pytest.raises(ValueError, match="category is 'colour'"):
        mme([Seen("3", "colour", True)])


OPTIONS = ["a red apple", "a pear", "cherries", "plums"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("B", "B"),
        ("(B) a pear", "B"),
        ("Not (A) but (C)", "C"),  # the last of several
        ("(A) or B", "A"),  # brackets come first
        ("A B", "B"),
        ("Answer: C.", "C"),
        ("The fruit that one sees there is a pear", "B"),
        ("a pear", None),  # fewer than six words: the texts are not looked for
        ("I see a red apple and then also plums", "D"),
        ("none of these", None),
        ("I think it is A.", "A"),
    ],
)
def test_choices_of_mmmu(answer, found):
    assert choice_of(answer, OPTIONS) == found


def test_a_guess_is_the_same_each_time():
    letters = {guessed(f"question {i}", OPTIONS) for i in range(40)}
    assert letters == set("ABCD")
    assert guessed("q", OPTIONS) == guessed("q", OPTIONS)


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("The answer is 3.14", "3.14", True),
        ("x = 1,234.5", "1234.50", True),
        ("about 12", "12.004", True),  # two decimals
        ("12", "12.01", False),
        ("It is Paris", ["London", "paris"], True),
        ("Parisian", "paris", True),  # part of the text
        ("so the result is 1e3", "1000", True),
        ("abc", "c", False),  # one letter has to stand beside a space
        ("it is of type c here", "c", True),
        ("", "3", False),
    ],
)
def test_open_answers_of_mmmu(answer, wanted, right):
    assert open_is_right(answer, wanted) is right


def test_the_shortest_end_of_each_line_counts():
    assert open_answers("so it is\nthe final answer is 7") == {"it is", 7.0}


def test_mmmu_is_averaged_over_questions():
    judged = [Exercise("Art_Theory", True), Exercise("Math", False), Exercise("Math", True), Exercise(None, False)]
    found = mmmu(judged)
    assert found["score"] == 0.5
    assert found["subjects"] == {"Art_Theory": 1, "Math": 0.5}
    assert found["disciplines"] == {"Art and Design": 1, "Science": 0.5}
    assert subject_of("validation_Art_Theory_3") == "Art_Theory"
    assert subject_of("7") is None


def test_mmbench_needs_every_rotation():
    judged = [Rotation(1, "ocr", "perception", True), Rotation(1_000_001, "ocr", "perception", True)]
    judged += [Rotation(2, "ocr", "perception", True), Rotation(1_000_002, "ocr", "perception", False)]
    judged += [Rotation(3, "logic", "reasoning", False), Rotation(2_000_003, "logic", "reasoning", True)]
    found = mmbench(judged)
    assert (found["score"], found["vanilla"], found["questions"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert found["categories"] == {"ocr": 0.5, "logic": 0}
    assert found["l2_categories"] == {"perception": 0.5, "reasoning": 0}
    with pytest.raises(ValueError, match="no index below 1,000,000"):
        mmbench([Rotation(1_000_001, None, None, True)])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("B", "B"),
        ("A", "A"),
        ("A cat sits on it", None),  # an article among more than three words
        ("Answer: B.", "B"),
        ("(C)", "C"),
        ("B or C", None),
        ("the moon, of course", "D"),
        ("sun and moon", None),  # two options
        ("", None),
    ],
)
def test_letters_of_mmbench(answer, found):
    assert mmbench_letter(answer, {"A": "star", "B": "sun", "C": "cloud", "D": "moon"}) == found


@pytest.mark.parametrize(
    ("parse", "answer", "found"),
    [
        (ai2d_letter, "b.", "B"),
        (ai2d_letter, "(B)", "B"),
        (ai2d_letter, "B. larva", "B"),
        (ai2d_letter, "b. larva", "B LARVA"),
        (scienceqa_letter, "B", "B"),
        (scienceqa_letter, "B. the moon", "B"),
        (scienceqa_letter, " b\n", "B"),
        (scienceqa_letter, "b. the moon", None),
        (scienceqa_letter, "(B)", None),
        (scienceqa_letter, "", None),
        (mvbench_letter, "B. it falls", "B"),
        (mvbench_letter, "(c)", "C"),
        (mvbench_letter, "The option is D", "D"),
        (mvbench_letter, "a cat", "A"),
        (mvbench_letter, "it falls", None),
        (video_mme_letter, "The best answer is C", "C"),
        (video_mme_letter, "Best answer: C", "C"),
        (video_mme_letter, "B, not A", "B"),
        (video_mme_letter, "Best of all", "B"),
        (video_mme_letter, "(A) or (C) maybe", "C"),
        (video_mme_letter, "(A) or C. maybe", "A"),
        (video_mme_letter, "I pick B over A here", "A"),
        (video_mme_letter, "none", None),
    ],
)
def test_letters_by_the_rule_of_each_benchmark(parse, answer, found):
    assert parse(answer) == found


def test_scores_of_text():
    assert exact_match(" Two  dogs.", ["two dogs", "2"]) == 1
    assert exact_match("dogs", "dog") == 0
    assert word_f1("the red, red car", "a red car") == pytest.approx(2 * 2 / (3 + 2))
    assert word_f1("the", "a") == 1
    assert word_f1("", "car") == 0
    assert anls("Hallo", "hello") == pytest.approx(0.8)
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abc", "xyz") == 0
    assert anls("", "") == 1
    with pytest.raises(ValueError, match="wanted has no answer"):
        exact_match("a", [])


def test_edit_distance_is_a_metric():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(30)]
    for one in texts:
        for other in texts:
            distance = edit_distance(one, other)
            assert distance == edit_distance(other, one)
            assert (distance == 0) == (one == other)
            assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
            assert all(distance <= edit_distance(one, third) + edit_distance(third, other) for third in texts[:5])
