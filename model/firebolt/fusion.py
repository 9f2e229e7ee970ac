"""Inputs of the decoder: the connector's output laid out with the text (docs/mathematics.md, section 3)."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ...cmm.connector import Connector
from ...cmm.inserting import Inserting
from ...cmm.sequences import Sequences
from ..packing import has_hole, pack
from .cache_firebolt import ConnectorCacheLayer, Images
from .grids import Grids


class Text(NamedTuple):
    """Columns of one call: `embeddings` [B,T,D], and `mask` [B,T] bool or None where all are kept.

    images [B,T] bool, the places of images, for a connector that puts them there
    sequences       those packed into the one row, each of which has a row of the grids
    """

    embeddings: Tensor
    mask: Tensor | None
    images: Tensor | None = None
    sequences: Sequences | None = None

    @property
    def shape(self) -> torch.Size:
        return self.embeddings.shape[:2]

    @property
    def kept(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        return torch.ones(self.shape, dtype=torch.bool, device=self.embeddings.device)

    @property
    def lengths(self) -> Tensor:
        """Count the kept columns of each row, [B]."""
        if self.mask is not None:
            return self.mask.sum(-1)
        return torch.full(self.shape[:1], self.shape[1], dtype=torch.long, device=self.embeddings.device)


class DecoderInputs(NamedTuple):
    """Arguments of the decoder; `places` [B,T] says where text columns stand, None where they stand in order.

    balance: the balance loss of the connector's experts, in training, where it has one
    """

    embeddings: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    places: Tensor | None = None
    balance: Tensor | None = None


class Layout(NamedTuple):
    """Candidate columns for the decoder, before packing: parts and their masks side by side.

    places [B,T]    where each text column stands among them; None: the one part is the text itself
    """

    parts: list[Tensor]
    masks: list[Tensor]
    places: Tensor | None


def summarize_prompt(connector: Connector, text: Tensor, prompt: Tensor, seen: Grids) -> Tensor:
    """Compute z [B,D], the mean of the modulated text [B,T,D] over the prompt's positions [B,T]; the paper's Eq. 14."""
    modulated = connector(text, text_mask=prompt, **seen.given)
    count = prompt.sum(-1, keepdim=True).clamp(min=1).to(modulated.dtype)
    return ((modulated * prompt[..., None]).sum(1) / count).to(text.dtype)


def inserted_grids(
    connector: Connector, text: Tensor, mask: Tensor | None, prompt: Tensor, seen: Grids, balance: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute what a connector puts before the text, [B,M,D], and with `balance` its balance loss."""
    options = {"return_balance": True} if balance else {}
    both = connector(text, text_mask=mask, prompt_mask=prompt, **seen.given, **options)
    both, loss = both if balance else (both, None)
    return both[:, : both.shape[1] - text.shape[1]].to(text.dtype), loss


class Fusion:
    """One call of the model: the connector, how its output meets the text, and what is remembered from call to call.

    `memory` is the connector's cache layer, or None without a cache.
    """

    def __init__(self, connector: Connector, fusion: str, memory: ConnectorCacheLayer | None):
        self.connector = connector
        self.fusion = fusion
        self.memory = memory
        self.balance: Tensor | None = None
        self.started = memory is not None and memory.begun

    def decoder_inputs(
        self,
        text: Text,
        seen: Grids | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        prompt_mask: Tensor | None,
        prompt_summary: Tensor | None,
    ) -> DecoderInputs:
        """Lay out what the decoder reads in this call.

        attention_mask [B, past + T] and position_ids are the caller's; prompt_mask [B,W] counts from column 0.
        """
        if seen is not None and not torch.compiler.is_compiling() and not bool(seen.rows.any()):
            seen = None
        memory = self.memory
        if memory is not None and not self.started:
            self._begin(memory, text, seen)
        if self.connector.places_images:
            decoder = self._placed(text, seen, attention_mask, position_ids, prompt_mask, prompt_summary)
        elif not self.connector.inserts_grids and self.fusion == "replace":
            decoder = self._replaced(text, seen, attention_mask, position_ids)
        else:
            decoder = self._packed(text, self._layout(text, seen, prompt_mask, prompt_summary))
        decoder = decoder._replace(balance=self.balance)
        if memory is not None:
            assert memory.kept is not None  # since `_begin`
            memory.columns += text.shape[1]
            memory.kept = memory.kept + text.lengths
            memory.record(text.embeddings, text.mask)
        return decoder

    @staticmethod
    def _begin(memory: ConnectorCacheLayer, text: Text, seen: Grids | None) -> None:
        memory.image_rows = seen.rows if seen is not None else None
        memory.kept = torch.zeros_like(text.lengths)
        memory.inserted = torch.zeros_like(text.lengths)

    def _image_rows(self, seen: Grids | None) -> Tensor | None:
        if seen is not None:
            return seen.rows
        return self.memory.image_rows if self.memory is not None else None

    def _connect(
        self, text: Tensor, mask: Tensor | None, seen: Grids | None, sequences: Sequences | None = None
    ) -> Tensor:
        """The connector's output, leaving its state in the memory where there is one."""
        memory = self.memory
        state = memory.state_of(self.connector) if memory is not None else None
        if memory is None or state is None:
            assert seen is not None  # what there is no state of comes with this call
            if memory is None:
                borders = {} if sequences is None else {"cu_seqlens": sequences}
                return self.connector(text, text_mask=mask, **seen.given, **borders)
            state = self.connector.encode_grids(**seen.given)
            memory.start(state)
        if text.shape[1] == 1 and mask is None:
            output, memory.state = self.connector.step(text, state)
        else:
            output, memory.state = self.connector.prefill(text, text_mask=mask, state=state)
        return output

    def _replaced(
        self, text: Text, seen: Grids | None, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> DecoderInputs:
        """T positions: the connector's output in the rows with an image, the text embeddings in the others."""
        embeddings = text.embeddings
        if (rows := self._image_rows(seen)) is not None:
            connected = self._connect(embeddings, text.mask, seen, text.sequences)
            there = rows[:, None, None] if text.sequences is None else rows[text.sequences.index][None, :, None]
            embeddings = torch.where(there, connected.to(embeddings.dtype), embeddings)
        return self._in_place(text, embeddings, attention_mask, position_ids)

    def _in_place(
        self, text: Text, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> DecoderInputs:
        """Embeddings [B,T,D] in the place of the text's own."""
        if position_ids is None:
            position_ids = self._positions(text.shape, text.mask, embeddings.device)
            if text.sequences is not None:
                position_ids = text.sequences.position[None]
            if self.memory is not None:
                assert self.memory.kept is not None
                position_ids = position_ids + self.memory.kept[:, None]
        return DecoderInputs(embeddings, attention_mask, position_ids)

    def _placed(
        self,
        text: Text,
        seen: Grids | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        prompt_mask: Tensor | None,
        summary: Tensor | None,
    ) -> DecoderInputs:
        """T positions: the vector of each image of a row in the place of the next of its tokens."""
        prompt, unfinished = self._prompt(text, prompt_mask)
        waiting = self.memory.images if self.memory is not None else None
        if seen is not None and not self.started:
            vectors = self._inserted(text, seen, prompt, unfinished, summary)
            there = self._inserted_mask(seen)
            first = torch.argsort(~there, dim=1, stable=True)  # the images that there are, in their order
            waiting = Images(vectors.gather(1, first[..., None].expand_as(vectors)), there.sum(-1), text.kept[:, :0])
        if waiting is None:
            return self._in_place(text, text.embeddings, attention_mask, position_ids)
        assert text.images is not None  # of a connector that places images
        tokens = text.images & text.kept
        number = waiting.tokens.sum(-1, keepdim=True) + tokens.long().cumsum(-1) - 1
        here = (tokens & (number < waiting.counts[:, None]))[..., None]
        chosen = number.clamp(0, waiting.vectors.shape[1] - 1)[..., None].expand(-1, -1, waiting.vectors.shape[-1])
        embeddings = torch.where(here, waiting.vectors.gather(1, chosen), text.embeddings)
        waiting = waiting._replace(tokens=torch.cat([waiting.tokens, tokens], 1))
        lacking = (waiting.tokens.sum(-1) < waiting.counts) & ~unfinished
        if not torch.compiler.is_compiling() and bool(lacking.any()):
            row = int(lacking.nonzero()[0])
            raise ValueError(
                f"FireboltModel: input_ids has {int(waiting.tokens[row].sum())} image tokens in row {row}; expected "
                f"one in the prompt for each of its {int(waiting.counts[row])} images (insert 'mean_at_token', "
                "image_token_id)"
            )
        if self.memory is not None:
            self.memory.images = waiting
        return self._in_place(text, embeddings, attention_mask, position_ids)

    def _inserted_mask(self, seen: Grids) -> Tensor:
        return cast("Inserting", self.connector).inserted_mask(seen.mask, seen.images)

    def _inserted(self, text: Text, seen: Grids, prompt: Tensor, unfinished: Tensor, summary: Tensor | None) -> Tensor:
        """Positions that the connector puts before the text, [B,M,D]."""
        if summary is not None:
            return summary
        goes_on = self.connector.reads_prompt and not torch.compiler.is_compiling()
        if goes_on and bool((unfinished & seen.rows).any()):
            raise ValueError(
                "FireboltModel: prompt_mask goes on after this call; expected the whole prompt in the first call, by "
                "which route_by 'text' chooses, or what it chooses as prompt_summary"
            )
        balance = self.connector.balances and self.connector.training
        made, self.balance = inserted_grids(self.connector, text.embeddings, text.mask, prompt, seen, balance)
        return made

    @staticmethod
    def _positions(shape: torch.Size, mask: Tensor | None, device: torch.device) -> Tensor:
        """Count the kept columns before each one [B,T]; 0 for padding on the left."""
        if mask is None:
            return torch.arange(shape[1], device=device).expand(shape)
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def _layout(
        self, text: Text, seen: Grids | None, prompt_mask: Tensor | None, prompt_summary: Tensor | None
    ) -> Layout:
        plain = Layout([text.embeddings], [text.kept], None)
        if self.memory is not None and self.started and not self.memory.prompt:
            return plain  # what is inserted stands before this call
        if (rows := self._image_rows(seen)) is None:
            return plain
        prompt, unfinished = self._prompt(text, prompt_mask)
        if self.connector.inserts_grids:
            return self._prepended(text, seen, prompt, unfinished, prompt_summary)
        if self.fusion == "pool":
            return self._pooled(text, seen, prompt, unfinished, prompt_summary)
        if not torch.compiler.is_compiling() and bool(unfinished.any()):
            self._remember_prompt(text, seen, rows, prompt, unfinished)
            return plain
        return self._concatenated(text, seen, rows, prompt)

    def _prompt(self, text: Text, prompt_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """This call's share of the prompt [B,T] bool, and the rows [B] whose prompt goes on after this call."""
        kept = text.kept
        if prompt_mask is None:
            return kept, torch.zeros_like(kept[:, 0])  # without more knowledge the prompt is all of the first call
        past = self.memory.columns if self.memory is not None else 0
        here = torch.zeros_like(kept)
        part = prompt_mask[:, past : past + kept.shape[1]].bool()
        here[:, : part.shape[1]] = part
        return here & kept, prompt_mask[:, past + kept.shape[1] :].bool().any(-1)

    def _columns(self, text: Text, offset: int) -> Tensor:
        return offset + torch.arange(text.shape[1], device=text.embeddings.device).expand(text.shape)

    def _prepended(
        self, text: Text, seen: Grids | None, prompt: Tensor, unfinished: Tensor, summary: Tensor | None
    ) -> Layout:
        """`[projected grids ; text]`."""
        assert seen is not None  # in the first call, the only one that comes here
        projected = self._inserted(text, seen, prompt, unfinished, summary)
        parts, masks = [projected, text.embeddings], [self._inserted_mask(seen), text.kept]
        return Layout(parts, masks, self._columns(text, projected.shape[1]))

    def _pooled(
        self, text: Text, seen: Grids | None, prompt: Tensor, unfinished: Tensor, summary: Tensor | None
    ) -> Layout:
        """`[z ; text]`."""
        assert seen is not None  # as in `_prepended`
        if summary is None:
            if not torch.compiler.is_compiling() and bool((unfinished & seen.rows).any()):
                raise ValueError(
                    "FireboltModel: prompt_mask goes on after this call; expected the whole prompt in the first call, "
                    "or its mean as prompt_summary, which fusion 'pool' puts first"
                )
            summary = summarize_prompt(self.connector, text.embeddings, prompt, seen)
        parts, masks = [summary[:, None], text.embeddings], [seen.rows[:, None], text.kept]
        return Layout(parts, masks, self._columns(text, 1))

    def _remember_prompt(
        self, text: Text, seen: Grids | None, rows: Tensor, prompt: Tensor, unfinished: Tensor
    ) -> None:
        """Part of a prompt that takes several calls: keep what the connector makes of it until the prompt is whole."""
        if self.memory is None or not bool(unfinished.all() & rows.all()):
            raise ValueError(
                "FireboltModel: prompt_mask ends in different calls, or a row has no image; expected prompts of one "
                "call with fusion 'concat', or prompts of all rows that end in the same call, each with an image"
            )
        self.memory.prompt.append((self._connect(text.embeddings, prompt, seen), prompt))

    def _concatenated(self, text: Text, seen: Grids | None, rows: Tensor, prompt: Tensor) -> Layout:
        """`[text of the prompt ; modulated prompt ; text of the answer]`."""
        rows = rows[:, None]
        earlier = self.memory.prompt if self.memory is not None else []
        modulated = self._connect(text.embeddings, prompt, seen)
        if self.memory is not None:
            self.memory.state, self.memory.prompt = None, []  # the connector is not read again

        copies = [*earlier, (modulated, prompt)]
        parts = [text.embeddings, *(part.to(text.embeddings.dtype) for part, _ in copies), text.embeddings]
        masks = [prompt, *(mask & rows for _, mask in copies), text.kept & ~prompt]
        answer = sum(mask.shape[1] for mask in masks[:-1])
        copy = answer - text.shape[1]
        # The prompt's last column is read where its modulated copy stands, which is what the answer follows.
        last = prompt & (prompt.flip(-1).long().cumsum(-1).flip(-1) == 1) & rows
        places = torch.where(prompt, self._columns(text, 0), self._columns(text, answer))
        return Layout(parts, masks, torch.where(last, self._columns(text, copy), places))

    def _packed(self, text: Text, layout: Layout) -> DecoderInputs:
        """The layout row by row in one piece; what a row lacks stands on its outside."""
        embeddings, mask, places = layout.parts[0], text.mask, None
        if layout.places is not None:
            packed = pack(torch.cat(layout.parts, dim=1), torch.cat(layout.masks, dim=1), text.kept)
            embeddings, places = packed.embeddings, packed.places.gather(1, layout.places)
            mask = None if not torch.compiler.is_compiling() and bool(packed.mask.all()) else packed.mask
        batch_size, width = embeddings.shape[:2]
        positions = self._positions(embeddings.shape[:2], mask, embeddings.device)
        memory = self.memory
        if memory is None:
            return DecoderInputs(embeddings, mask, positions, places)
        whole = memory.extended(mask, batch_size, width, embeddings.device)
        looks = not torch.compiler.is_compiling()
        if looks and mask is not None and whole is not None and bool(has_hole(whole).any()):
            raise ValueError(
                "FireboltModel: attention_mask pads a row in a later call than its first tokens or inserted positions; "
                "expected the prompt in one call (LFM2's short convolution is wrong over the gap)"
            )
        assert memory.kept is not None  # since `_begin`, as `inserted`
        assert memory.inserted is not None
        positions = positions + (memory.kept + memory.inserted)[:, None]
        kept = torch.full_like(text.lengths, width) if mask is None else mask.sum(-1)
        memory.inserted = memory.inserted + kept - text.lengths
        memory.mask = whole
        memory.width += width
        return DecoderInputs(embeddings, whole, positions, places)
