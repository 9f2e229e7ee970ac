"""Modules that are there already compute as another class, and as their own again."""

import pytest
import torch
from numerics import assert_close
from torch import nn

from firebolt_vl.cmm.classes import change_class
from firebolt_vl.cmm.linear import Linear, compute_as_torch, compute_fast


def test_layers_change_their_class_there_and_back():
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2), nn.GELU())).double()
    weights, x = module.state_dict(), torch.randn(5, 3, dtype=torch.float64)
    wanted = module(x)
    for change, found in ((compute_fast, Linear), (compute_as_torch, nn.Linear)):
        change(module)
        assert [type(module[0]), type(module[1][0]), type(module[1][1])] == [found, found, nn.GELU]
        assert all(torch.equal(kept, weights[name]) for name, kept in module.state_dict().items())
        assert_close(module(x), wanted)


def test_a_layer_of_a_class_derived_from_another_keeps_it():
    class Own(nn.Linear):
        pass

    layer = Own(3, 4)
    compute_fast(layer)
    assert type(layer) is Own


def test_classes_that_are_strangers_are_refused():
    layer = nn.Linear(3, 4)
    with pytest.raises(TypeError, match="new is GELU; expected a subclass or a base of Linear"):
        change_class(layer, nn.GELU)
    assert type(layer) is nn.Linear
