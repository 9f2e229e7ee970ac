"""A model at work on batches of answers, each of them the one that its question gets alone."""

from collections.abc import Sequence

from transformers import LogitsProcessorList, StoppingCriteriaList

from ..checkpoint import Loaded
from ..errors import first_line
from ..kept_views import left_padded, may_mix
from ..model.generation import settings_for
from ..prompts import stops
from .following import Choosing, Following
from .metrics import Metrics
from .refusal import Refused
from .row import Row
from .sight import Sight

PADDED = 4096
"""Tokens of a batch, padding among them, of which most may be padding."""


class Engine:
    """A model that answers rows together, in the one thread that calls it."""

    def __init__(self, loaded: Loaded, sight: Sight, metrics: Metrics):
        self.loaded, self.sight, self.metrics = loaded, sight, metrics
        self.ends, self.mixes = stops(loaded.model), may_mix(loaded.model)
        self.positions = loaded.model.config.text_config.max_position_embeddings

    def together(self, rows: Sequence[Row], row: Row) -> bool:
        """Return whether a row fits into a batch with others: into the model's positions, of one kind with them, and
        not so much longer or shorter that they would be mostly padding.
        """
        every = [one.asked for one in (*rows, row)]
        lengths = [len(asked.prompt) for asked in every]
        width, padded = max(lengths), len(every) * max(lengths)
        seen = max(sum(picture.positions for picture in asked.pictures) for asked in every)
        fits = seen + width + max(asked.most for asked in every) <= self.positions
        of_one_kind = self.mixes or bool(rows[0].asked.pictures) == bool(row.asked.pictures)
        return fits and of_one_kind and padded <= max(PADDED, 2 * sum(lengths))

    def answer(self, rows: Sequence[Row]) -> None:
        """Answer every row, or say why not: together, or one by one where that is too much for the memory."""
        try:
            self._generate(rows)
        except (RuntimeError, MemoryError, ValueError) as error:
            for row in rows:
                if row.over:
                    continue
                if len(rows) == 1 or row.begun:
                    row.fail(Refused(500, f"the model could not answer: {first_line(error)}", "generation_failed"))
                else:
                    row.begin_again()
                    self.answer([row])

    def _generate(self, rows: Sequence[Row]) -> None:
        model, choosing = self.loaded.model, Choosing(rows)
        self.sight.look([picture for row in rows for picture in row.asked.pictures])
        ids, mask = left_padded([row.asked.prompt for row in rows], model.generation_config.pad_token_id)
        self.metrics.batch(len(rows))
        model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            **self.sight.arguments([row.asked.pictures for row in rows]),
            generation_config=settings_for(model, max(row.asked.most for row in rows)),
            logits_processor=LogitsProcessorList([choosing]),
            stopping_criteria=StoppingCriteriaList([Following(rows, choosing, self.ends)]),
        )
