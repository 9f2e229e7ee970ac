"""The foveated model as torch.export and a full graph of torch.compile take it, frames to logits and loss."""

import pytest
import torch
from foveated import make_foveated, make_frames
from numerics import assert_close
from tiny_models import make_text
from torch.export import export

ROUNDING = 2e-5


def batch() -> dict:
    """Rows of two frames and of one, the missing one full of nan, the first text padded on the left."""
    return {**make_text([3, 5]), **make_frames([2, 1]), "use_cache": False}


@pytest.mark.parametrize("mode", ["coarse_fine", "autoregressive"])
def test_the_exported_model_is_the_model(mode):
    model, inputs = make_foveated(mode=mode), batch()
    with torch.no_grad():
        found, wanted = export(model, (), inputs).module()(**inputs), model(**inputs)
    kept = inputs["attention_mask"].bool()
    columns = kept.shape[1]
    assert_close(found.logits[:, -columns:][kept], wanted.logits[:, -columns:][kept], relative=ROUNDING)
    assert_close(found.loss, wanted.loss, relative=ROUNDING)
    assert_close(
        found.visual.tokens[inputs["frame_mask"]], wanted.visual.tokens[inputs["frame_mask"]], relative=ROUNDING
    )


def test_with_the_originals_behaviour():
    model = make_foveated(original_behaviour=True, mode="autoregressive")
    inputs = {**batch(), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    with torch.no_grad():
        found, wanted = export(model, (), inputs).module()(**inputs), model(**inputs)
    assert_close(found.logits, wanted.logits, relative=ROUNDING)
    assert_close(found.loss, wanted.loss, relative=ROUNDING)


def test_the_model_compiles_in_one_graph_that_has_gradients():
    torch.compiler.reset()
    model, inputs = make_foveated(mode="coarse_fine", lambda_coarse=0.5), batch()
    gradients = []
    for run in (torch.compile(model, fullgraph=True, backend="eager"), model):
        model.zero_grad()
        run(**inputs).loss.backward()
        gradients.append(model.llm_to_query.weight.grad.clone())
    assert_close(*gradients, relative=1e-4)
