"""Settings of a checkpoint for generation: those that are taken over, and those that are not."""

from copy import copy

import torch
from transformers import GenerationConfig

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What asks for nothing where it is 1.
FACTORS = (
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
)
TAKEN = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "transformers_version")


def own_settings(model, tokenizer, sampled: bool) -> list[str]:
    """Put settings in the place of the checkpoint's that give one answer to each prompt, whatever else is in a batch.

    Of generation_config.json the ids of beginning, end and padding are taken over (the tokenizer's, where it has none
    that the vocabulary holds), and with `sampled` how the distribution is cut (SAMPLING). Returns the names of other
    settings that it asks for: beams, several answers, stop strings, penalties, lengths and so on are not done.

    Raises ValueError for values that cannot be.
    """
    theirs = model.generation_config.to_dict()
    size = model.get_input_embeddings().num_embeddings
    ends = _ids(theirs.get("eos_token_id"), size) or _ids(tokenizer.eos_token_id, size)
    [pad, *_] = _ids(theirs.get("pad_token_id"), size) or _ids(tokenizer.pad_token_id, size) or ends or [0]
    begins = _ids(theirs.get("bos_token_id"), size)
    kept = {name: theirs[name] for name in SAMPLING if sampled and theirs.get(name) is not None}
    try:
        model.generation_config = GenerationConfig(
            bos_token_id=begins[0] if begins else None,
            eos_token_id=ends or None,
            pad_token_id=pad,
            do_sample=sampled,
            **kept,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"generation_config.json: {' '.join(str(error).split())}") from None
    silent = (*TAKEN, *SAMPLING, *(("do_sample",) if sampled else ()))
    return sorted(name for name, value in theirs.items() if name not in silent and _asks(name, value))


def settings_for(model, max_new_tokens: int) -> GenerationConfig:
    """Return the model's own settings, for answers of at most so many tokens."""
    settings = copy(model.generation_config)
    settings.max_new_tokens = max_new_tokens
    return settings


def _ids(value, size: int) -> list[int]:
    """Return the tokens of a vocabulary among what stands where a token's id, or several, should."""
    found = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
    found = found if isinstance(found, list | tuple) else [found]
    return [token for token in found if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size]


def _asks(name: str, value) -> bool:
    return bool(value) and not name.startswith("_") and not (name in FACTORS and value == 1)


__all__ = ["own_settings", "settings_for"]
