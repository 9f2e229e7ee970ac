"""A model at work on batches of answers, each of them the one that its question gets alone."""

from collections.abc import Sequence

from transformers import LogitsProcessorList, StoppingCriteriaList

from ..checkpoint import Loaded
from ..errors import first_line
from ..kept_views import left_padded
from ..model.generation import settings_for
from ..prompts import stops
from .following import Choosing, Following
from .metrics import Metrics
from .refusal import Refused
from .row import Row
from .sight import Sight


class Engine:
    """A model that answers rows together, in the one thread that calls it."""

    def __init__(self, loaded: Loaded, sight: Sight, metrics: Metrics):
        self.loaded, self.sight, self.metrics = loaded, sight, metrics
        self.ends = stops(loaded.model)
        self.positions = loaded.model.config.text_config.max_position_embeddings

    def together(self, rows: Sequence[Row], row: Row) -> bool:
        """Return whether a row fits into a batch with others: into the model's positions, and of one kind with them.

        Rows without an image are not mixed with others, since some connectors show the former a black one where a whole
        batch has none.
        """
        width = max(len(one.asked.prompt) for one in (*rows, row))
        most = max(one.asked.most for one in (*rows, row))
        return width + most <= self.positions and bool(rows[0].asked.pictures) == bool(row.asked.pictures)

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
