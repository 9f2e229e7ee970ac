"""Accuracy of VQAv2: agreement with ten annotators, after a normalisation of the answers.

Source: S. Antol et al., VQA (arXiv 1505.00468), section 3.3, and the steps of normalisation on the challenge's page
(visualqa.org/evaluation.html), with the habits of its published code, since scores are compared with those of others.
"""

import re
from collections.abc import Sequence

RULES = ("official", "harness")
ENOUGH = 3
"""Annotators that make an answer fully right."""
NUMBERS = {
    word: str(i)
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
NUMBERS["none"] = "0"
ARTICLES = ("a", "an", "the")
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
# What makes a number of digits with commas of a text, by each rule.
COMMAS = {"official": re.compile(r"\d,\d"), "harness": re.compile(r"\d,+\d")}
PERIOD = re.compile(r"\.(?!\d)")
# The published code hands a flag to the place of a count: of a text only so many periods go.
PERIODS = 32
# With their apostrophes; each is known without one of them too. "let's" and "she's" are known as they are.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _without_one(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the one that the published table turns the other way


def vqa_accuracy(answer: str, answers: Sequence[str], rule: str = "official") -> float:
    """Compute the mean over annotators of min(1, m / 3), m being how many of the others gave the answer.

    Arguments:
        answer: the model's.
        answers: one of each annotator, ten in VQAv2.
        rule: "official" normalises only where the annotators differ: if all agree, the answer has to be theirs letter
            by letter. "harness" (lmms-eval) normalises always.

    Raises ValueError for no answers and for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"vqa_accuracy: rule is {rule!r}; expected one of {', '.join(RULES)}")
    if not answers:
        raise ValueError("vqa_accuracy: answers is empty; expected one of each annotator")
    given, theirs = in_one_line(answer), [in_one_line(one) for one in answers]
    if rule == "harness" or len(set(theirs)) > 1:
        given, theirs = normalise(given, rule), [normalise(one, rule) for one in theirs]
    same = sum(one == given for one in theirs)
    return sum(min(1.0, (same - (one == given)) / ENOUGH) for one in theirs) / len(theirs)


def normalise(text: str, rule: str = "official") -> str:
    """Normalise an answer: punctuation, case, number words up to ten, articles, apostrophes of contractions."""
    words = [NUMBERS.get(word, word) for word in without_signs(text, rule).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def without_signs(text: str, rule: str = "official") -> str:
    """Remove punctuation, and periods that no digit follows.

    A sign goes where a space is beside any such sign, or where the text has a number with commas; else a space takes
    its place.
    """
    numbered, found = COMMAS[rule].search(text) is not None, text
    for sign in SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside or numbered else " ")
    return PERIOD.sub("", found, count=PERIODS)


def in_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
