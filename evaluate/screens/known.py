"""Words for what a model that reads screens knows: `firebolt ask` tells them, and compares questions and images."""

import numpy as np

from ..familiar import WORD, Familiar, fit
from .drawing import draw
from .layouts import SCREENS
from .questions import CORNERS, question_words
from .sampling import SPLITS, sample_scene

KNOWS = (
    "it reads Latin letters and digits of 11 to 16 pixels on simple screens (tickets, boards, price lists, forms, "
    "chats, bar charts), and knows questions about what stands where, beside what, and how many there are"
)
# Words that ask, and join; a question of them alone asks for nothing in particular.
JOINING = (
    *("a", "are", "at", "does", "for", "from", "how", "is", "it", "many", "me", "of", "tell", "the", "there", "to"),
    *("what", "when", "where", "which", "whose"),
)
SCENES = 200


def familiar(scenes: int = SCENES, seed: int = 1) -> Familiar:
    """Describe what a model is trained on: the words of its questions, and the statistics of so many screens."""
    words = sorted({*question_words(), *(word for corner in CORNERS for word in WORD.findall(corner))})
    things = [word for word in words if word not in JOINING]
    rng = np.random.default_rng((seed, 2))
    drawn = (draw(sample_scene(rng, SCREENS[i % len(SCREENS)], SPLITS["seen"])) for i in range(scenes))
    return Familiar(KNOWS, words, things, fit(drawn), names=True)
