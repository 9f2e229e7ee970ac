"""Dense layers: of PyTorch's own class, read where that is the same as calling them, and called everywhere else."""

import copy
import importlib

import foveated
import pytest
import tiny_models
import torch
from numerics import assert_close
from torch import nn
from torch.nn.utils import parametrize, prune

from firebolt_vl.cmm import linear as layers
from firebolt_vl.cmm.linear import (
    Linear,
    WideConv2d,
    fast_products,
    in_dtype_of,
    is_plain,
    product,
    product_and_bias,
)

kernel = importlib.import_module("firebolt_vl.kernels.linear.pytorch")


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Derived(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Around(nn.Module):
    """As adapters stand around a layer: its numbers are there under its names, and are not all."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return self.base_layer(x) + 3 * x.sum(-1, keepdim=True)


def parametrised(layer):
    parametrize.register_parametrization(layer, "weight", Twice())
    return layer


def pruned(layer):
    prune.random_unstructured(layer, "weight", amount=0.5)
    # What the optimiser changes; the pruned weight is made of it by a hook, at a call.
    with torch.no_grad():
        layer.weight_orig.add_(1)
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda module, arguments, y: y + 1)
    return layer


def with_another_forward(layer):
    stock = layer.forward
    layer.forward = lambda x: stock(x) + 1
    return layer


def derived(layer):
    layer.__class__ = Derived
    return layer


CHANGES = [parametrised, pruned, hooked, with_another_forward, derived, Around, nn.utils.parametrizations.weight_norm]


def layer_and_input():
    torch.manual_seed(0)
    return nn.Linear(5, 6).double(), torch.randn(2, 3, 5, dtype=torch.float64)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_stands_around_a_layer_takes_part(change):
    layer, x = layer_and_input()
    assert is_plain(layer, nn.Linear)
    layer = change(layer)
    assert not is_plain(layer, nn.Linear)
    assert_close(product(layer, x), layer(x))
    linear_part, bias = product_and_bias(layer, x)
    assert_close(linear_part + bias[:, None], layer(x))
    assert_close(bias, layer(torch.zeros(2, 5, dtype=torch.float64)))


def test_a_plain_layer_gives_its_product_and_its_bias():
    layer, x = layer_and_input()
    assert_close(product(layer, x), layer(x))
    linear_part, bias = product_and_bias(layer, x)
    assert_close(linear_part, x @ layer.weight.mT)
    assert_close(bias, layer.bias.expand(2, 6))


def test_an_input_takes_the_dtype_of_numbers_and_never_that_of_codes():
    layer, x = layer_and_input()
    assert in_dtype_of(layer, x.float(), torch.float16).dtype == torch.float64
    for codes in (torch.uint8, torch.int8, torch.float8_e4m3fn):
        layer.weight = nn.Parameter(torch.zeros(6, 5).to(codes), requires_grad=False)
        assert in_dtype_of(layer, x, torch.float16).dtype == torch.float16
    assert in_dtype_of(nn.Identity(), x, torch.float16).dtype == torch.float16


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(kernel, "ONEDNN", True)
    monkeypatch.setattr(kernel, "LEAST_WEIGHTS", 0)


def test_layers_of_others_compute_fast_for_a_time_and_keep_their_class(onednn):
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(hooked(nn.Linear(5, 5)), nn.GELU()), derived(nn.Linear(5, 5)))
    model.append(nn.Linear(5, 5).double())
    classes = [type(module) for module in model.modules()]
    assert Linear not in classes
    with fast_products(model):
        assert [type(module) is Linear for module in model] == [True, False, False, False]
        assert type(model[1][0]) is nn.Linear
        with fast_products(model):
            assert type(model[0]) is Linear
        assert type(model[0]) is Linear
    assert [type(module) for module in model.modules()] == classes


def test_layers_in_slow_half_precision_compute_fast_too(monkeypatch):
    monkeypatch.setattr(kernel, "SLOW_HALVES", frozenset([torch.bfloat16]))
    monkeypatch.setattr(kernel, "WIDENED_WEIGHTS", 20)
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)).bfloat16()
    with fast_products(model):
        assert [type(module) is Linear for module in model] == [True, False]
    monkeypatch.setattr(kernel, "SLOW_HALVES", frozenset())
    with fast_products(model):
        assert type(model[0]) is nn.Linear


def test_convolutions_in_slow_half_precision_are_computed_in_float32_and_rounded_once(monkeypatch):
    monkeypatch.setattr(layers, "SLOW_HALVES", frozenset([torch.bfloat16]))
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, groups=1), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
    exact, x = copy.deepcopy(model).bfloat16().double(), torch.randn(2, 3, 8, 8).bfloat16()
    model.bfloat16()
    with torch.no_grad(), fast_products(model):
        assert [type(module) for module in model] == [WideConv2d] * 2
        for ours, wanted in zip(model, exact):
            y = ours(x)
            assert y.dtype == torch.bfloat16
            reference = wanted(x.double())
            assert ((y - reference).abs() <= 0.51 * torch.finfo(torch.bfloat16).eps * reference.abs() + 1e-5).all()
            x = y
    assert [type(module) for module in model] == [nn.Conv2d] * 2
    with fast_products(model):
        assert model(torch.randn(1, 3, 4, 4).bfloat16().requires_grad_()).grad_fn is not None
    monkeypatch.setattr(layers, "SLOW_HALVES", frozenset())
    with fast_products(model):
        assert type(model[0]) is nn.Conv2d


def test_layers_keep_their_class_where_an_answer_fails(onednn):
    model = nn.Sequential(nn.Linear(5, 5))

    def fail():
        with fast_products(model):
            model(torch.randn(2, 4))

    with pytest.raises(RuntimeError, match="shapes"):
        fail()
    assert type(model[0]) is nn.Linear


def test_a_layer_that_was_replaced_meanwhile_stays_as_it_is(onednn):
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    with fast_products(model):
        derived(model[0])
    assert [type(module) for module in model] == [Derived, nn.Linear]


def test_without_a_faster_product_nothing_changes(monkeypatch):
    monkeypatch.setattr(kernel, "ONEDNN", False)
    model = nn.Sequential(nn.Linear(800, 800))
    with fast_products(model):
        assert type(model[0]) is nn.Linear
    assert type(copy.deepcopy(model)[0]) is nn.Linear


def seen_by_firebolt():
    model = tiny_models.make_model()
    return model.model.vision_tower.encoder, lambda: model.get_grids(**tiny_models.make_pixels(2))


def seen_by_a_foveated_model():
    encoder = foveated.make_foveated().encoder
    return encoder.layers, lambda: encoder.remember(foveated.make_frames([2])["frames"].flatten(0, 1))


@pytest.mark.parametrize("make", [seen_by_firebolt, seen_by_a_foveated_model], ids=["firebolt", "foveated"])
def test_a_vision_tower_computes_fast_before_an_answer_too(onednn, monkeypatch, make):
    tower, see = make()
    read, stock = [], layers.linear

    def counted(x, weight, bias=None):
        read.append(id(weight))
        return stock(x, weight, bias)

    monkeypatch.setattr(layers, "linear", counted)
    within = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    wanted = {id(layer.weight) for layer in within}
    assert wanted
    with torch.no_grad():
        see()
    assert wanted <= set(read)
    assert {type(layer) for layer in within} == {nn.Linear}
    read.clear()
    see()  # with gradients as ever
    assert not wanted & set(read)
