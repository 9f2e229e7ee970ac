"""The second stage: connector and decoder learn to answer, from the grids of a tower that is left as it is.

As in the recipe of the paper's first stage the vision tower is frozen; so the grids of the whole pool are made once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...cmm import CrossModalModulator
from ...evaluate.questions import GROUNDED_KINDS, NOTHING, Question
from ...kernels import correlation_context
from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ..tensors import Wanted
from .optimizers import Optimizers
from .small_job import SmallJob

BATCH = 128
CAPTIONS_EVERY, CAPTIONS_UNTIL, CAPTION_BATCH = 3, 0.6, 64
EMBEDDING_STD = 0.3
QUERY_SCALE = 10.0
GRID_NOISE = 0.1
GRIDS_HIDDEN_ROWS = 0.3
GRIDS_HIDDEN = 0.3
PLACES_HIDDEN = 0.15
MARGIN = 0.1
TOKENIZED_AT_ONCE = 10_000


@dataclass
class Rows:
    """N questions with their answers, padded on the right: ids [N,T], masks [N,T] of text, answer and phrase, the
    scene's index [N], which quarters the phrase names [N,4], and whether by their place [N]."""

    ids: Tensor
    text: Tensor
    answer: Tensor
    phrase: Tensor
    scene: Tensor
    tiles: Tensor
    by_place: Tensor

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All of them, by name; `of_tensors` undoes it."""
        return {f"{prefix}.{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> "Rows":
        return cls(*(tensors[f"{prefix}.{name}"] for name in cls.__dataclass_fields__))

    @staticmethod
    def wanted(prefix: str) -> dict[str, Wanted]:
        """Return the dtypes and shapes that `check_tensors` holds them to."""
        text = dict.fromkeys(("text", "answer", "phrase"), (torch.bool, (prefix, f"length of {prefix}")))
        rest = {
            "tiles": (torch.bool, (prefix, 4)),
            "by_place": (torch.bool, (prefix,)),
            "scene": (torch.long, (prefix,)),
        }
        ids = {"ids": (torch.long, (prefix, f"length of {prefix}"))}
        return {f"{prefix}.{name}": form for name, form in {**ids, **text, **rest}.items()}

    def check(self, file: Path, prefix: str, scenes: int, vocabulary: int) -> None:
        """Check that indices are of scenes and tokens that exist. Raises ValueError, which names file and tensor."""
        for name, end in (("scene", scenes), ("ids", vocabulary)):
            values = getattr(self, name)
            if not len(values) or values.min() < 0 or values.max() >= end:
                raise ValueError(f"{file}: {prefix}.{name} is out of range; expected numbers in 0..{end - 1}")

    def __getitem__(self, chosen: Tensor) -> "Rows":
        rows = Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))
        longest = int(rows.text.sum(1).max())
        for name in ("ids", "text", "answer", "phrase"):
            setattr(rows, name, getattr(rows, name)[:, :longest])
        return rows


def tokenize(tokenizer: PreTrainedTokenizerBase, questions: Sequence[tuple[int, Question]]) -> Rows:
    """The questions as chats of one turn, each followed by its answer and the end token."""
    mark = "\x00"
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False
    )
    before, after = template.split(mark)
    prompts, answers, phrases = [], [], []
    for start in range(0, len(questions), TOKENIZED_AT_ONCE):
        part = [question for _, question in questions[start : start + TOKENIZED_AT_ONCE]]
        encoded = tokenizer([before + question.text + after for question in part])
        prompts.extend(encoded.input_ids)
        answers.extend(tokenizer([question.answer + tokenizer.eos_token for question in part]).input_ids)
        for row, question in enumerate(part):
            if question.phrase is None:
                phrases.append((0, 0))
                continue
            first, last = (len(before) + place for place in question.phrase)
            phrases.append((encoded.char_to_token(row, first), encoded.char_to_token(row, last - 1) + 1))
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers))
    ids = np.full((len(prompts), length), tokenizer.pad_token_id)
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        ids[row, : len(prompt) + len(answer)] = prompt + answer
    columns = np.arange(length)[None]
    asked = np.array([len(prompt) for prompt in prompts])[:, None]
    ended = asked + np.array([len(answer) for answer in answers])[:, None]
    named = np.array(phrases)
    masks = (
        columns < ended,
        (columns >= asked) & (columns < ended),
        (columns >= named[:, :1]) & (columns < named[:, 1:]),
    )
    tiles = np.array([[tile in question.tiles for tile in range(4)] for _, question in questions])
    scene = np.array([scene for scene, _ in questions])
    by_place = np.array([question.kind in GROUNDED_KINDS for _, question in questions])
    return Rows(*map(torch.from_numpy, (ids, *masks, scene, tiles, by_place)))


@dataclass
class Views:
    """The grids of S scenes: `features` [S,G,D_v]; `boxes` [G,4], None for the global view and 2 x 2 tiles; `shown`
    [S or 1,4,G] bool, which grids show each quarter (the global view shows none)."""

    features: Tensor
    boxes: Tensor | None
    shown: Tensor

    @classmethod
    def of_quarters(cls, features: Tensor) -> "Views":
        """Make views of grids [S,5,D_v]: the global view, then the four quarters."""
        return cls(features, None, F.pad(torch.eye(4, dtype=torch.bool), (1, 0))[None])

    def shown_of(self, rows: Rows) -> Tensor:
        """[N,4,G] of the scenes of rows."""
        return self.shown.expand(len(self.features), -1, -1)[rows.scene]


class Batches:
    """Batches without end, each row once before any comes again. Its place can be saved, as tensors."""

    def __init__(self, rows: Rows, size: int):
        self.rows, self.size = rows, size
        self.order, self.place = torch.empty(0, dtype=torch.long), 0

    def __next__(self) -> Rows:
        if self.place >= len(self.order):
            self.order, self.place = torch.randperm(len(self.rows.ids)), 0
        chosen = self.order[self.place : self.place + self.size]
        self.place += self.size
        return self.rows[chosen]

    def state_dict(self) -> dict:
        return {"order": self.order, "place": torch.tensor(self.place)}

    def load_state_dict(self, state: dict) -> None:
        """Go on at a place in these rows. Raises ValueError where it is none."""
        order, place = state["order"], state["place"]
        if order.dtype != torch.long or (
            len(order) and not torch.equal(order.sort().values, torch.arange(len(self.rows.ids)))
        ):
            raise ValueError(f"order is no permutation; expected one of {len(self.rows.ids)} rows")
        if place.dtype != torch.long or place.ndim or place < 0:
            raise ValueError(f"place is {place}; expected a number from 0")
        self.order, self.place = order, int(place)


class FusionJob(SmallJob):
    """The connector and the decoder of `model` learn, in place, from the grids of scenes, questions about them and
    captions.

    In the first part of the steps every third batch is one of captions. They say what lies where of all quarters at
    once, and so teach it in fewer steps than one answer at a time does.

    The loss is the cross-entropy of the answer tokens and `grounding_loss_weight` times `grounding_loss`. Grids are
    hidden as `hide` says, `nothing` being the token that answers for an empty quarter; noise on them makes up for a
    tower that has seen these very digits.
    """

    def __init__(
        self,
        model: FireboltForConditionalGeneration,
        processor: FireboltProcessor,
        views: Views,
        questions: Rows,
        captions: Rows,
        steps: int,
        grounding_loss_weight: float,
    ):
        self.model, self.processor, self.views, self.steps = model, processor, views, steps
        self.grounding_loss_weight = grounding_loss_weight
        self.nothing = processor.tokenizer.convert_tokens_to_ids(NOTHING)
        # Embeddings of the usual size (0.02) and queries of the usual scale make all scores alike: for long every token
        # sees the mean of all grids. These make each token of the vocabulary prefer some grids from the start.
        nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
        sharpen_queries(model.model.connector)
        model.model.vision_tower.requires_grad_(False)
        self.optimizers = Optimizers(
            model,
            steps,
            matrix_lr=0.01,
            lr=2e-3,
            weight_decay=0.01,
            decay=0.6,
            is_matrix=lambda name: ".kernel." not in name,
        )
        self.questions, self.captions = Batches(questions, BATCH), Batches(captions, CAPTION_BATCH)
        self.spread = views.features.std()

    def positions(self) -> Mapping[str, object]:
        return {"questions": self.questions, "captions": self.captions}

    def step(self, number: int) -> dict[str, float]:
        captioned = number % CAPTIONS_EVERY == 0 and number < CAPTIONS_UNTIL * self.steps
        rows = next(self.captions if captioned else self.questions)
        shown = self.views.shown_of(rows)
        rows, mask = hide(rows, (rows.tiles[:, :, None] & shown).any(1), self.nothing)
        grids = self.views.features[rows.scene]
        grids = grids + GRID_NOISE * self.spread * torch.randn_like(grids)
        answers = answer_loss(self.model, rows, grids, mask, self.views.boxes)
        loss = answers
        if self.grounding_loss_weight:
            grounded = grounding_loss(self.model, rows, shown, grids, mask, self.views.boxes)
            loss = loss + self.grounding_loss_weight * grounded
        done = self.optimizers.step(loss, number)
        measured = {"loss": answers.item(), "tokens": int(rows.text.sum())}
        return measured if done else {**measured, "skipped": True}

    def save(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)
        self.processor.save_pretrained(folder)


@torch.no_grad()
def sharpen_queries(connector: nn.Module) -> None:
    """Scale up the weights that queries are made by, QUERY_SCALE times for embeddings of deviation EMBEDDING_STD.

    A second layer that reads what the first has normed gets queries of the same size from inputs of deviation 1.
    """
    if hasattr(connector, "q_proj"):
        connector.q_proj.weight.mul_(QUERY_SCALE)
    if (second := getattr(connector, "second", None)) is not None:
        normed = second.config.start == "norm"
        second.q_proj.weight.mul_(QUERY_SCALE * EMBEDDING_STD if normed else QUERY_SCALE)


def hide(rows: Rows, named: Tensor, nothing: int) -> tuple[Rows, Tensor]:
    """A random grid mask [N,G], and the rows with the answers that are right under it; `named` [N,G] are the grids that
    show what the question names.

    In some rows each grid is hidden with some chance, the global view and the tiles that the question does not name:
    the answer stays and rests on what is left. Counting all digits names no tile and needs them all. Of the questions
    that name a quarter by its place some have that very tile hidden, and the answer, one token, becomes `nothing`.
    """
    hidden = torch.rand(named.shape) < GRIDS_HIDDEN * (torch.rand(len(named), 1) < GRIDS_HIDDEN_ROWS)
    hidden &= ~named & rows.phrase.any(1, keepdim=True)
    unseen = rows.by_place & (torch.rand(len(named)) < PLACES_HIDDEN)
    mask = ~(hidden | named & unseen[:, None])
    mask[:, 0] |= ~mask.any(1)
    ids = rows.ids.clone()
    ids[unseen, rows.answer[unseen].int().argmax(1)] = nothing
    return replace(rows, ids=ids), mask


def answer_loss(
    model: FireboltForConditionalGeneration, rows: Rows, grids: Tensor, grid_mask: Tensor, boxes: Tensor | None = None
) -> Tensor:
    """Compute the loss of `model(..., labels=...)`, with logits at the answers alone."""
    outputs = model.model(
        input_ids=rows.ids,
        attention_mask=rows.text,
        grids=grids,
        grid_mask=grid_mask,
        grid_boxes=boxes_of(boxes, grids),
        prompt_mask=prompt_of(rows),
        use_cache=False,
    )
    wanted = rows.answer[:, 1:]
    loss = F.cross_entropy(model.lm_head(outputs.last_hidden_state[:, :-1][wanted]), rows.ids[:, 1:][wanted])
    return loss if outputs.balance is None else loss + model.balance_weight * outputs.balance


def prompt_of(rows: Rows) -> Tensor:
    """The columns before the answer, [N,T]."""
    return rows.answer.long().cumsum(-1) == 0


def boxes_of(boxes: Tensor | None, grids: Tensor) -> Tensor | None:
    return None if boxes is None else boxes.expand(len(grids), -1, -1)


def grounding_loss(
    model: FireboltForConditionalGeneration,
    rows: Rows,
    shown: Tensor,
    grids: Tensor,
    grid_mask: Tensor,
    boxes: Tensor | None = None,
) -> Tensor:
    """Compute by how much the least weight of a named quarter fails to exceed all others by MARGIN, in the mean.

        relu(MARGIN - min over named w + max over others w)         w: the mean over the tokens of the phrase

    A quarter's weight is that of the grids that show it, `shown` [N,4,G]; a grid that shows none is one of the others.
    Of the phrase and not of each token: "top" has to do with two tiles, and told to look at both alike it cannot say
    which of two digits lies where.
    """
    named = rows.tiles & (shown & grid_mask[:, None]).any(-1)
    known = named.any(1)
    if not known.any():
        return grids.new_zeros(())
    connector, mask, phrase = model.model.connector, grid_mask[known], rows.phrase[known]
    named, shown = named[known], shown[known]
    text = model.get_input_embeddings()(rows.ids[known])
    if connector.config.query == "token" and connector.config.layers == 1:
        weights = weights_of_tokens(connector, text, grids[known], mask, boxes)
    else:
        given = (text, grids[known], rows.text[known], mask, boxes_of(boxes, mask))
        _, weights = connector(*given, return_weights=True)
    w = (weights * phrase[:, :, None]).sum(1) / phrase.sum(1, keepdim=True)  # [n,G]
    quarters = (shown * w[:, None]).sum(-1)  # [n,4]
    others = w.masked_fill(shown.any(1), 0).amax(1).maximum(quarters.masked_fill(named, 0).amax(1))
    return F.relu(MARGIN - quarters.masked_fill(~named, torch.inf).amin(1) + others).mean()


def weights_of_tokens(
    connector: CrossModalModulator, text: Tensor, grids: Tensor, mask: Tensor, boxes: Tensor | None
) -> Tensor:
    """Compute what each token weighs [N,T,G] where it asks by itself alone, without running the layer."""
    k = connector.encode_grids(grids, mask, boxes_of(boxes, mask)).tensors["grid.k"]
    q = connector.q_proj(text).unflatten(-1, k.shape[2:])
    return correlation_context(q, k, k.new_zeros(*mask.shape, 1), connector.config.top_k, grid_mask=mask)[1]
