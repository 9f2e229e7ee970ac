"""Texts packed into one row: where one ends and the next begins, as collators for padding-free training tell it."""

from typing import Any

import torch
from torch import Tensor

from ...cmm.sequences import Sequences
from ..compat import PACKED_NAMES
from .configuration_firebolt import FireboltConfig


def packed_sequences(
    config: FireboltConfig,
    text: Tensor,
    cu_seq_lens: Tensor | Sequences | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    packs: bool,
    cached: bool,
) -> Sequences | None:
    """The sequences packed into the one row of text [1,T,...]; None where rows are texts of their own.

    They are told by `cu_seq_lens` [S+1], or by position_ids [1,T] that do not go on by one, where there is neither a
    mask nor a cache: attention of transformers takes these for borders too. In a graph, which cannot look, positions
    tell nothing.

    `packs`: the model takes them; `cached`: there is a cache, or one is wanted. Raises ValueError where they are told
    to a model that does not take them, with a cache, a mask or several rows, or where positions go on over a border.
    """
    owner = "FireboltModel"
    if cu_seq_lens is None:
        told = attention_mask is None and not cached and position_ids is not None and position_ids.dim() == 2
        if not told or position_ids is None or torch.compiler.is_compiling():
            return None
        if not bool((position_ids.diff(dim=-1) != 1).any()):
            return None
    name = "position_ids" if cu_seq_lens is None else "cu_seq_lens_q"
    if not packs:
        raise ValueError(
            f"{owner}: {name} packs several texts into one row; expected one text a row with connector "
            f"{config.connector!r} and fusion {config.fusion!r}, which insert positions"
        )
    if cached:
        raise ValueError(f"{owner}: {name} packs several texts into one row; expected no cache (use_cache=False) then")
    if text.shape[0] != 1:
        raise ValueError(
            f"{owner}: {name} packs several texts into a row, with {text.shape[0]} rows; expected one row, with all "
            "texts in it"
        )
    if cu_seq_lens is None:
        assert position_ids is not None  # which told
        return Sequences.of(owner, borders_of(position_ids), text, name)
    sequences = Sequences.of(owner, cu_seq_lens, text, name)
    if isinstance(cu_seq_lens, Sequences):  # which were looked at
        return sequences
    looks = not torch.compiler.is_compiling()
    if attention_mask is not None and looks and not bool(attention_mask.bool().all()):
        raise ValueError(f"{owner}: attention_mask drops a position beside {name}; expected packed texts alone")
    if position_ids is not None and looks:
        wanted = torch.unique_consecutive(sequences.cu_seqlens.long())
        if not torch.equal(borders_of(position_ids).to(wanted.device), wanted):
            raise ValueError(
                f"{owner}: position_ids begin again elsewhere than {name} says; expected positions that go on by one "
                "within each text, and by another number from one to the next"
            )
    return sequences


def borders_of(position_ids: Tensor) -> Tensor:
    """Borders [S+1] where position_ids [1,T] do not go on by one, with 0 and T."""
    begun = (position_ids[0].diff() != 1).nonzero().squeeze(-1) + 1
    ends = torch.tensor([position_ids.shape[1]], device=position_ids.device)
    return torch.cat([torch.zeros_like(ends), begun, ends])


def without_packed_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments for the decoder but those that it is told of borders by."""
    return {name: value for name, value in arguments.items() if name not in PACKED_NAMES}
