"""Generation from a cache held to generation without one, for kinds of models that have little else of their own."""

import pytest
import torch
from numerics import assert_close

# Both sides are float32: a few hundred operations apart.
ROUNDING = 2e-5
WAYS = pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}],
    ids=["greedy", "beams", "static", "chunks"],
)


def check_cached_equals_uncached(model, inputs, tokens: int, options: dict) -> None:
    """`options` are those of one of WAYS."""
    beams = {name: value for name, value in options.items() if name == "num_beams"}
    found = _generated(model, inputs, tokens, **options)
    _check_same(found, _generated(model, inputs, tokens, use_cache=False, **beams))


def check_assisted_equals_plain(model, inputs, tokens: int) -> None:
    """What was proposed and refused is forgotten; of the first row, as transformers assists one alone."""
    one = {name: value[:1] for name, value in inputs.items()}
    _check_same(_generated(model, one, tokens, prompt_lookup_num_tokens=3), _generated(model, one, tokens))


def _generated(model, inputs, tokens: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, **options}
    found = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return found.sequences, torch.stack(found.logits)


def _check_same(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.equal(found[0], wanted[0])
    assert_close(found[1], wanted[1], relative=ROUNDING)
