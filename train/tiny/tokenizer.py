"""The tokenizer of the embedded model: byte-level BPE, so that any text has tokens and comes back as it was."""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ...evaluate.digits import COLOURS, POSITIONS
from ...evaluate.questions import KINDS, NOTHING, wordings
from ...model import CHAT_TEMPLATE

# The names that LFM2 gives them.
PAD, START, TURN, END = "<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"


DIGITS = tuple("0123456789")
ROLES = ("user", "assistant")
# So often, each answer and each role, that every one of them becomes a token.
REPEATS = 100


def _texts() -> Iterator[str]:
    """Every wording that is trained on with everything that can stand in it, and the answers."""
    things = (*DIGITS, *(f"{colour} {noun}" for colour in COLOURS for noun in ("digit", "number")), "digit", "number")
    fillers = {"position": POSITIONS, "digit": DIGITS, "one": things[:-2], "any": things}
    for kind in KINDS:
        for wording in (wording for group in wordings(kind, held_out=False) for wording in group):
            name = next(name for name in fillers if f"{{{name}}}" in wording)
            for filler in fillers[name]:
                text = wording.format(**{name: filler}).replace(" a 8", " an 8")
                yield text
                yield text[0].upper() + text[1:]
    yield from REPEATS * (*DIGITS, *COLOURS, *POSITIONS, *ROLES, NOTHING, "yes", "no")


def make_tokenizer(vocabulary: int = 448) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens beyond the 256 bytes are the words of the questions and answers.

    Text is split before each space (and between letters, digits and marks) first, so that no token holds two words.
    """
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return with_roles(tokenizer)


def byte_level(model: models.BPE) -> Tokenizer:
    """Make a tokenizer of bytes around a model of their merges."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def with_roles(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Make transformers' tokenizer of one that has LFM2's special tokens, with our chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
