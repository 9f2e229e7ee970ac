"""Firebolt-VL with a head that scores a whole text: a reward model, or a classifier."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from ..compat import CACHE, CACHE_NAMES
from ..configuration_checks import backbone
from .modeling_firebolt import FireboltModel, FireboltPreTrainedModel
from .packed_text import packed_sequences


class FireboltForSequenceClassification(FireboltPreTrainedModel):
    """Firebolt-VL with a linear head on the last token of a text: `config.num_labels` scores of text and images.

    trl's RewardTrainer trains one on pairs of answers, and its GRPO and RLOO take one for a reward; what trl gives it
    is text alone.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FireboltModel(config)
        self.score = nn.Linear(backbone(config.text_config).hidden_size, config.num_labels, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_tiles: Tensor | None = None,
        tile_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        image_numbers: Tensor | None = None,
        image_times: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """Compute the scores [B, num_labels] at each row's last kept token, and the loss where there are labels [B].

        Of S texts packed into one row, each has scores, [S, num_labels], and a label. Text and images as in
        FireboltForConditionalGeneration. The loss is the squared error of a single score, else the cross-entropy, as
        `config.problem_type` has it in models of transformers.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        if self.model.reads_prompt and text is not None:
            kwargs.setdefault("prompt_mask", torch.ones(text.shape[:2], dtype=torch.bool, device=text.device))
        sequences = None
        if text is not None:
            borders, positions = kwargs.get("cu_seq_lens_q"), kwargs.get("position_ids")
            cached = bool(kwargs.get("use_cache")) or any(kwargs.get(name) is not None for name in CACHE_NAMES)
            packs = self.model.packs
            sequences = packed_sequences(
                self.config, text, borders, positions, attention_mask, packs=packs, cached=cached
            )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_tiles=pixel_tiles,
            tile_mask=tile_mask,
            image_mask=image_mask,
            grid_boxes=grid_boxes,
            image_position_ids=image_position_ids,
            pixel_attention_mask=pixel_attention_mask,
            inputs_embeds=inputs_embeds,
            image_numbers=image_numbers,
            image_times=image_times,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if sequences is not None:
            hidden, attention_mask = sequences.rows(hidden)
        last = torch.full_like(hidden[:, 0, 0], hidden.shape[1] - 1, dtype=torch.long)
        if attention_mask is not None:
            columns = torch.arange(hidden.shape[1], device=hidden.device)
            last = (columns * (attention_mask[:, -hidden.shape[1] :] != 0)).amax(-1)
        scores = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=scores, labels=labels, pooled_logits=scores, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )


__all__ = ["FireboltForSequenceClassification"]
