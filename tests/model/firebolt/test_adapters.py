"""Adapters of peft on every linear layer: each of them learns, and a merged model answers alike."""

import copy

import pytest
import torch
from numerics import assert_close
from peft import LoraConfig, get_peft_model
from tiny_models import make_model, make_pixels, make_text

from firebolt_vl.cmm import CMMConfig, CrossModalModulator


def adapted(model, kind="all-linear"):
    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=kind, init_lora_weights=False))


def inputs():
    text = make_text([7, 5])
    return {**text, **make_pixels(2), "labels": text["input_ids"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"ssm": "s4"},
        {"ssm": "s4", "kernel_taps": 4},
        {"ssm": "s4d"},
        {"ssm": "mamba"},
        {"query": "state", "layers": 2},
        {"connector": "prepend"},
        {"connector": "cross_attend"},
        {"connector": "routed", "experts": 2},
    ],
    ids=str,
)
def test_every_adapter_on_all_linear_layers_learns(keys):
    model = adapted(make_model(**keys))
    model(**inputs()).loss.backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("connector" in name for name in learning)
    assert not [name for name, p in learning.items() if p.grad is None or not p.grad.isfinite().all()]
    # Which image of a row a grid is of: the first one's number is 0.
    idle = {name for name, p in learning.items() if not p.grad.abs().sum() > 0 and "positions.image" not in name}
    assert not idle, sorted(idle)


@pytest.mark.parametrize("ssm", ["s4", "s4d", "mamba"])
def test_a_merged_model_answers_as_the_one_with_adapters(ssm):
    model = adapted(make_model(ssm=ssm)).eval()
    given = inputs()
    with torch.no_grad():
        wanted = model(**given).logits
        plain = make_model(ssm=ssm)(**given).logits
        merged = model.merge_and_unload().eval()(**given).logits
    assert_close(merged, wanted, relative=1e-4)
    assert (plain - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("ssm", ["s4", "s4d"])
def test_the_gated_output_alone_may_have_one_and_modes_agree(ssm):
    layer = CrossModalModulator(
        CMMConfig(text_width=16, grid_width=8, heads=2, head_dim=4, ssm=ssm, dropout=0.0)
    ).eval()
    layer = adapted(layer, ["output", "film_in", "film_out"]).eval().base_model.model
    text, grids = torch.randn(2, 6, 16), torch.randn(2, 5, 8)
    with torch.no_grad():
        whole = layer(text, grids)
        first, state = layer.prefill(text[:, :5], grids)
        last, _ = layer.step(text[:, 5], state)
    assert_close(torch.cat([first, last[:, None]], 1), whole, relative=1e-4)
