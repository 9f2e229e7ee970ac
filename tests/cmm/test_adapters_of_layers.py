"""Adapters of peft on the modulator's layers act for every length of text, on the grids' side and on the tokens'."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, largest
from peft import LoraConfig, get_peft_model
from torch import nn

from firebolt_vl.cmm import CMMConfig, CrossModalModulator, modulator

SSMS = ("s4", "s4d", "mamba")
FILMS = ["film_in", "film_out"]


def make(ssm, **changes):
    config = {"text_width": 16, "grid_width": 8, "heads": 2, "head_dim": 4, "top_k": 3, "dropout": 0.0, **changes}
    return CrossModalModulator(CMMConfig(ssm=ssm, state_size=4, **config)).double().eval()


def adapted(layer, targets, **options):
    options = {"r": 2, "init_lora_weights": False, **options}
    return get_peft_model(copy.deepcopy(layer), LoraConfig(target_modules=targets, **options)).double().eval()


def inputs(T, rows=2, G=5):
    text, grids = torch.randn(rows, T, 16, dtype=torch.float64), torch.randn(rows, G, 8, dtype=torch.float64)
    return text, grids


def stepwise(layer, text, grids):
    """`prefill` of all but the last two tokens, and two steps."""
    y, state = layer.prefill(text[:, :-2], grids)
    parts = [y]
    for t in (-2, -1):
        y, state = layer.step(text[:, t], state)
        parts.append(y[:, None])
    return torch.cat(parts, 1)


@given(
    ssm=st.sampled_from(SSMS),
    T=st.sampled_from([3, 5, 6, 9, 33, 40]),
    table=st.booleans(),
    truncate=st.booleans(),
    lora_bias=st.booleans(),
    target=st.sampled_from([["film_in"], ["film_out"], FILMS]),
)
def test_an_adapter_acts_as_its_merged_weights_and_in_every_mode(ssm, T, table, truncate, lora_bias, target):
    layer = make(ssm, top_k_mode="truncate" if truncate else "renormalize")
    model = adapted(layer, target, lora_bias=lora_bias)
    text, grids = inputs(T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modulator, "uses_grid_table", lambda *_: table)
        with_gradients = model(text, grids)
        learning = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(with_gradients.square().sum(), learning)
        with torch.no_grad():
            without, steps = model(text, grids), stepwise(model.base_model.model, text, grids)
            plain, merged = layer(text, grids), model.merge_and_unload()(text, grids)
    for found in (with_gradients, without, steps):
        assert_close(found, merged, relative=1e-10)
    assert largest(merged - plain) > 1e-3
    assert all(largest(gradient) > 0 for gradient in gradients)


@pytest.mark.parametrize("ssm", SSMS)
@pytest.mark.parametrize("tokens", [2, 33])
def test_each_row_may_have_an_adapter_of_its_own(ssm, tokens):
    """peft's batches of several adapters tell a layer which row takes which."""
    model = adapted(make(ssm), FILMS)
    model.add_adapter("other", LoraConfig(r=3, target_modules=FILMS, init_lora_weights=False))
    model.double().eval()
    text, grids = inputs(tokens, rows=3)
    with torch.no_grad():
        mixed = model(text, grids, adapter_names=["default", "__base__", "other"])
        for row, name in enumerate(("default", None, "other")):
            if name is not None:
                model.set_adapter(name)
                alone = model(text, grids)
            else:
                with model.disable_adapter():
                    alone = model(text, grids)
            assert_close(mixed[row], alone[row], relative=1e-10)


class Scaled(nn.Module):
    """A norm that a tool has put in the place of another."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return 2 * self.norm(x)


@pytest.mark.parametrize("ssm", SSMS)
@pytest.mark.parametrize("where", ["norm_in", "ffn.norm"])
@pytest.mark.parametrize("T", [5, 40])
def test_a_norm_in_the_place_of_another_is_the_one_that_acts(ssm, where, T):
    layer = make(ssm)
    text, grids = inputs(T)
    owner = layer.ffn if where == "ffn.norm" else layer
    name = where.rpartition(".")[2]
    norm = getattr(owner, name)
    wanted_layer = copy.deepcopy(layer)
    wanted_norm = wanted_layer.get_submodule(where)
    with torch.no_grad():
        wanted_norm.weight.mul_(2)
        wanted_norm.bias.mul_(2)
        setattr(owner, name, Scaled(norm))
        wanted = wanted_layer(text, grids)
        assert_close(layer(text, grids), wanted, relative=1e-10)
        assert_close(stepwise(layer, text, grids), wanted, relative=1e-10)


@pytest.mark.parametrize("ssm", SSMS)
def test_hooks_see_every_mode_of_the_layer(ssm):
    layer = make(ssm)
    text, grids = inputs(5)
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer(text, grids)
    assert len(seen) == 1
    stepwise(layer, text, grids)
    assert len(seen) == 4
