"""Sequences packed into one row of an Lfm2Model: told to its layers, or cut apart where they would not listen."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, Lfm2ShortConv

from ...cmm.linear import is_plain
from ...cmm.sequences import Sequences
from .attention import SequencewiseAttention
from .short_convolution import StepwiseShortConv
from .versions import is_tested

# What collators for padding-free training give beside position ids that begin again with each sequence.
PACKED_NAMES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
# Attention that keeps texts apart: by a mask that the decoder makes of the position ids, or told of the borders.
MASKED = ("eager", "sdpa")
BY_LENGTHS = "flash_attention"


class PackedOutput(NamedTuple):
    """Output of the decoder for a packed row: last hidden states [1,T,D], and what else was asked for."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def keeps_apart(decoder: nn.Module) -> bool:
    """Return whether all layers of an Lfm2Model keep sequences of one row apart.

    That is so in a version that was tested, with its own attention and with plain short convolutions of ours.
    """
    attention = str(decoder.config._attn_implementation)  # pyright: ignore[reportAttributeAccessIssue]
    convolutions = [module for module in decoder.modules() if isinstance(module, Lfm2ShortConv)]
    return (
        is_tested()
        and (attention in MASKED or attention.startswith(BY_LENGTHS))
        and all(type(one) is StepwiseShortConv and is_plain(one.conv, nn.Conv1d) for one in convolutions)
    )


def decode_packed(
    decoder: nn.Module, embeddings: Tensor, position_ids: Tensor, sequences: Sequences, **options: Any
) -> PackedOutput:
    """Run an Lfm2Model on a row [1,T,D] of sequences, each as if it were alone, without a cache.

    position_ids [1,T] begin anew with each sequence. Where the decoder does not keep them apart, it gets them as padded
    rows [S,T',D], and attentions are of those.
    """
    if keeps_apart(decoder):
        outputs = decoder(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            use_cache=False,
            seq_idx=sequences.index.to(torch.int32)[None],
            **_told(decoder, sequences),
            **options,
        )
        return PackedOutput(outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)
    rows, mask = sequences.rows(embeddings)
    positions, _ = sequences.rows(position_ids[..., None])
    outputs = decoder(
        inputs_embeds=rows, attention_mask=mask, position_ids=positions.squeeze(-1), use_cache=False, **options
    )
    hidden = outputs.hidden_states
    return PackedOutput(
        outputs.last_hidden_state[mask][None],
        None if hidden is None else tuple(one[mask][None] for one in hidden),
        outputs.attentions,
    )


def _told(decoder: nn.Module, sequences: Sequences) -> dict[str, Any]:
    """Arguments that tell attention the borders; without, it gets a mask [T,T] by the position ids."""
    attention = str(decoder.config._attn_implementation)  # pyright: ignore[reportAttributeAccessIssue]
    if attention.startswith(BY_LENGTHS):
        borders = sequences.cu_seqlens.to(torch.int32)
        return dict(zip(PACKED_NAMES, (borders, borders, sequences.longest, sequences.longest)))
    layers = [module for module in decoder.modules() if isinstance(module, Lfm2Attention)]
    if attention == "sdpa" and all(type(one) is SequencewiseAttention for one in layers):
        return {"sequences": sequences, "attention_mask": {"full_attention": None, "conv": None}}
    return {}
