"""The tokenizer of the model that reads: words of questions are tokens, all else is spelled, byte by byte."""

from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ...evaluate.screens.questions import question_words
from ..tiny.tokenizer import END, PAD, ROLES, START, TURN, byte_level, with_roles

# They begin a question, where no space is before them; no answer begins with one.
FIRST = ("what", "where", "which", "when", "who", "whose", "how", "read", "tell", "count")
SPACE = "\u0120"
"""A space in byte-level tokens."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer without merges: a word of the questions after a space is one token, any other text its bytes.

    So an answer, of which no word is one of a question's, is spelled, and a model reads it letter by letter.
    """
    words = [*ROLES, *FIRST, *(word.capitalize() for word in FIRST), *(SPACE + word for word in question_words())]
    special = [PAD, START, TURN, END]
    vocabulary = {token: number for number, token in enumerate([*special, *_alphabet(), *words])}
    return with_roles(byte_level(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True)))


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
