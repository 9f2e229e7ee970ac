"""Settings of a checkpoint for generation: those that are taken over, and those that are not."""

from copy import copy

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What transformers samples with where a checkpoint says nothing: said here, so that a seed replays with any version.
UNSAID = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
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
    kept = {**UNSAID, **{name: theirs[name] for name in SAMPLING if theirs.get(name) is not None}} if sampled else {}
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


def sampled_with(settings: GenerationConfig, temperature: float | None, top_p: float | None) -> GenerationConfig:
    """Return settings of `own_settings` for sampling, with another temperature or top_p where one is given."""
    settings = copy(settings)
    if temperature is not None:
        settings.temperature = float(temperature)
    if top_p is not None:
        settings.top_p = float(top_p)
    return settings


def warpers(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """Return what cuts the distribution before a token is sampled, in transformers' order, as `settings` say."""
    temperature, top_k, top_p = settings.temperature, settings.top_k, settings.top_p
    epsilon, eta = settings.epsilon_cutoff, settings.eta_cutoff
    chosen = [
        TemperatureLogitsWarper(temperature) if temperature not in (None, 1) else None,
        TopHLogitsWarper(settings.top_h) if settings.top_h is not None else None,
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p is not None and top_p < 1 else None,
        MinPLogitsWarper(settings.min_p) if settings.min_p is not None else None,
        TypicalLogitsWarper(settings.typical_p) if settings.typical_p is not None and settings.typical_p < 1 else None,
        EpsilonLogitsWarper(epsilon) if epsilon is not None and 0 < epsilon < 1 else None,
        EtaLogitsWarper(eta, device=str(device)) if eta is not None and 0 < eta < 1 else None,
    ]
    return LogitsProcessorList([warper for warper in chosen if warper is not None])


def _ids(value, size: int) -> list[int]:
    """Return the tokens of a vocabulary among what stands where a token's id, or several, should."""
    found = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
    found = found if isinstance(found, list | tuple) else [found]
    return [token for token in found if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size]


def _asks(name: str, value) -> bool:
    return bool(value) and not name.startswith("_") and not (name in FACTORS and value == 1)


__all__ = ["own_settings", "sampled_with", "settings_for", "warpers"]
