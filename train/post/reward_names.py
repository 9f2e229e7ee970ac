"""Names of rewards, and what each of them measures."""

MEANINGS = {
    "exact": "the answer is a solution, whatever the case, the spaces and a full stop at the end",
    "number": "the last number of the answer is the last number of a solution",
    "words": "F1 of the words of the answer and of a solution",
    "format": "the whole answer matches the regular expression `format`",
    "grounding": "the share of what the answer rests on, by occlusion, that lies inside the row's `box`",
    "box": "intersection over union of the box that the answer says and the row's `box`",
}
NAMES = tuple(MEANINGS)
NEED_SOLUTION = ("exact", "number", "words")
NEED_BOX = ("grounding", "box")
