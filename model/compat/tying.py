"""Weights that transformers takes for one: forgotten where a layer has its own.

`all_tied_weights_keys` is what `post_init` makes of the promised `_tied_weights_keys`; tested with the versions in
`versions.TESTED`. A version without it ties by `_tied_weights_keys` alone, which is emptied too.
"""

from transformers import PreTrainedModel


def untie(model: PreTrainedModel) -> None:
    """Let a model, and the models inside it, have no tied weights from now on."""
    for inner in model.modules():
        if isinstance(inner, PreTrainedModel):
            inner._tied_weights_keys = {}
            if hasattr(inner, "all_tied_weights_keys"):
                inner.all_tied_weights_keys = {}


__all__ = ["untie"]
