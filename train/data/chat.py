"""A conversation as tokens, with the answers marked: what the loss is about, and nothing else."""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ...files.problems import BadRow
from ...model.chat_template import check_template
from ...model.firebolt import CHAT_TEMPLATE, control_tokens
from .rows import ASSISTANT, Row, check_controls

IGNORED = -100
"""The label of a token that no loss is about."""


@dataclass(frozen=True)
class Tokens:
    ids: list[int]
    labels: list[int]
    """The ids of the answers, each with the token that ends it; IGNORED elsewhere."""

    @property
    def answer_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    def last_answer(self) -> "Tokens":
        """Keep the labels of the last answer alone."""
        begin = len(self.labels)
        while begin and self.labels[begin - 1] != IGNORED:
            begin -= 1
        return replace(self, labels=[IGNORED] * begin + self.labels[begin:])


class Chat:
    """Conversations in a tokenizer's chat template, piece by piece: a question ends where generation would begin.

    So an answer's tokens are those that the model has to say, whatever a tokenizer would make of the words on both
    sides of the border. `image_words` stand in front of the first question, once for each of its images, and for its
    video. Raises ValueError for a template whose conversations do not begin with the shorter ones.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, image_words: str = ""):
        self.tokenizer = tokenizer
        self.image_words = image_words
        self.max_length = max_length
        self.template = (tokenizer.chat_template or CHAT_TEMPLATE).removeprefix("\ufeff")  # a file's byte-order mark
        self.controls = tuple(control_tokens(tokenizer))
        begun = self._render([{"role": "user", "content": "q"}], True)
        if not self._render(_messages("q", "a"), False).startswith(begun + "a"):
            raise ValueError(
                "chat_template ends a prompt elsewhere than where the answer begins; expected both at one place"
            )
        # Text around the turns, in tokens: with the bytes of the turns a bound of the length.
        self.overhead = len(self._ids(self._render(_messages("q", "a"), False)))

    def check(self, row: Row) -> int:
        """A bound of the row's length in tokens. Raises BadRow for control tokens in a text, and for one too long."""
        check_controls(row, self.controls)
        bound = row.size + self.overhead * len(row.turns) + len(self.image_words) * row.pictures
        if self.max_length is None or bound <= self.max_length:
            return bound
        return len(self(row).ids)

    def __call__(self, row: Row) -> Tokens:
        """Tokenise a row. Raises BadRow for more than `max_length` tokens."""
        messages, ids, labels = [], [], []
        done = ""
        for turn in row.turns:
            if turn.role != ASSISTANT:
                before = "" if messages else self.image_words * row.pictures
                messages.append({"role": "user", "content": before + turn.text})
                continue
            begun = self._render(messages, True)
            messages.append({"role": "assistant", "content": turn.text})
            ended = self._render(messages, False)
            question, rest = self._ids(begun[len(done) :]), ended[len(begun) :]
            if self.tokenizer.eos_token and (end := rest.find(self.tokenizer.eos_token, len(turn.text))) >= 0:
                rest = rest[: end + len(self.tokenizer.eos_token)]
            answer = self._ids(rest)
            done = begun + rest
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
        if self.max_length is not None and len(ids) > self.max_length:
            raise BadRow("over-long text", f"it has {len(ids)} tokens; expected at most max_length={self.max_length}")
        return Tokens(ids, labels)

    def _render(self, messages: list[dict], generate: bool) -> str:
        check_template(
            self.template, messages, {**self.tokenizer.special_tokens_map, "add_generation_prompt": generate}
        )
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, add_generation_prompt=generate, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _messages(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
