"""The second stage: connector and decoder learn to answer, from the grids of a tower that is left as it is.

As in the recipe of the paper's first stage the vision tower is frozen; so the grids of the whole pool are made once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...evaluate.questions import Question
from ...kernels import correlation_context
from ...model import FireboltForConditionalGeneration
from .optimizers import Optimizers

BATCH = 128
EMBEDDING_STD = 0.3
GRID_NOISE = 0.1
GRIDS_HIDDEN_ROWS = 0.2
GRIDS_HIDDEN = 0.2
SMALLEST_WEIGHT = 1e-4
GROUNDING_LOSS_LEFT = 0.1


@dataclass
class Rows:
    """N questions with their answers, padded on the right: ids [N,T], masks [N,T] of text, answer and phrase, the
    scene's index [N], and which quarters the phrase names [N,4]."""

    ids: Tensor
    text: Tensor
    answer: Tensor
    phrase: Tensor
    scene: Tensor
    tiles: Tensor

    def __getitem__(self, chosen: Tensor) -> "Rows":
        rows = Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))
        longest = int(rows.text.sum(1).max())
        for name in ("ids", "text", "answer", "phrase"):
            setattr(rows, name, getattr(rows, name)[:, :longest])
        return rows


def tokenize(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[tuple[int, Question]], batch: int = 10_000
) -> Rows:
    """The questions as chats of one turn, each followed by its answer and the end token."""
    mark = "\x00"
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False
    )
    before, after = template.split(mark)
    prompts, answers, phrases = [], [], []
    for start in range(0, len(questions), batch):
        part = [question for _, question in questions[start : start + batch]]
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
    return Rows(*map(torch.from_numpy, (ids, *masks, scene, tiles)))


def train_fusion(
    model: FireboltForConditionalGeneration,
    grids: Tensor,
    rows: Rows,
    steps: int,
    grounding_loss_weight: float,
    report: Callable[[int, float], None],
) -> None:
    """Train the connector and the decoder of `model` in place, on grids [S,5,D_v] and questions about them.

    The loss is the cross-entropy of the answer tokens and `grounding_loss_weight` times `grounding_loss`. The latter
    fades to a tenth, on the untested guess that it helps early and later stands in the way (it makes "top" look at two
    tiles at once, whose mean is what it then reads). In a fifth of the rows each grid is hidden with one chance in
    five, so that grounding by occlusion asks nothing that training did not; noise on the grids makes up for a tower
    that has seen these very digits. `report(step, loss of the answers)` is called after each step.
    """
    # Embeddings of the usual size (0.02) make all scores alike: for long every token sees the mean of all grids.
    nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    model.model.vision_tower.requires_grad_(False)
    optimizers = Optimizers(
        model,
        steps,
        matrix_lr=0.01,
        lr=2e-3,
        weight_decay=0.01,
        decay=0.6,
        is_matrix=lambda name: ".kernel." not in name,
    )
    model.train()
    spread = grids.std()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(rows.ids))
        chosen, order = rows[order[:BATCH]], order[BATCH:]
        seen = grids[chosen.scene]
        seen = seen + GRID_NOISE * spread * torch.randn_like(seen)
        mask = torch.rand(seen.shape[:2]) >= GRIDS_HIDDEN * (torch.rand(len(seen), 1) < GRIDS_HIDDEN_ROWS)
        answers = answer_loss(model, chosen, seen, mask)
        loss = answers
        if grounding_loss_weight:
            fade = max(GROUNDING_LOSS_LEFT, 1 - step / steps)
            loss = loss + fade * grounding_loss_weight * grounding_loss(model, chosen, seen, mask)
        optimizers.step(loss)
        report(step + 1, answers.item())
    model.eval()


def answer_loss(model: FireboltForConditionalGeneration, rows: Rows, grids: Tensor, grid_mask: Tensor) -> Tensor:
    """What `model(..., labels=...)` gives, with logits at the answers alone."""
    hidden = model.model(
        input_ids=rows.ids, attention_mask=rows.text, grids=grids, grid_mask=grid_mask, use_cache=False
    ).last_hidden_state
    wanted = rows.answer[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), rows.ids[:, 1:][wanted])


def grounding_loss(model: FireboltForConditionalGeneration, rows: Rows, grids: Tensor, grid_mask: Tensor) -> Tensor:
    """-log of the weight of a named tile, the mean over the tokens of the phrase and the tiles that it names.

    Token by token: of the mean weight over the phrase's tokens it would be as content with "top" on the left tile alone
    and "right" on the lower one, which names the top right nowhere.
    """
    named = rows.tiles & grid_mask[:, 1:]
    known = named.any(1)
    if not known.any():
        return grids.new_zeros(())
    connector, mask, phrase, named = model.model.connector, grid_mask[known], rows.phrase[known], named[known]
    text = model.get_input_embeddings()(rows.ids[known])
    k = connector.encode_grids(grids[known], mask).tensors["grid.k"]
    q = connector.q_proj(text).unflatten(-1, k.shape[2:])
    _, weights = correlation_context(q, k, k.new_zeros(*mask.shape, 1), connector.config.top_k, grid_mask=mask)
    surprise = -(weights[:, :, 1:] + SMALLEST_WEIGHT).log()  # [n,T,4]
    shares = phrase[:, :, None] * named[:, None, :] / (phrase.sum(1) * named.sum(1))[:, None, None]
    return (shares * surprise).sum() / len(shares)
