"""The pooling head of the vision tower gives what transformers' own gives."""

import copy

import pytest
import torch
from numerics import assert_close
from transformers import SiglipVisionConfig, SiglipVisionModel

from firebolt_vl.model.compat import OneQueryPooling, pool_by_one_query


@pytest.mark.parametrize("images", [1, 3])
def test_value_and_gradients_are_those_of_transformers(images):
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8
    )
    plain = SiglipVisionModel(config).double().eval()
    for bias in (plain.head.attention.in_proj_bias, plain.head.attention.out_proj.bias):
        torch.nn.init.normal_(bias)  # zeros when they are new
    ours = copy.deepcopy(plain)
    pool_by_one_query(ours)
    assert type(ours.head) is OneQueryPooling
    assert ours.state_dict().keys() == plain.state_dict().keys()
    pixels, results = torch.randn(images, 3, 32, 32, dtype=torch.float64), []
    for tower in (plain, ours):
        pooled = tower(pixels).pooler_output
        pooled.square().sum().backward()
        results.append([pooled, *(parameter.grad for parameter in tower.parameters())])
    for theirs, found in zip(*results):
        assert_close(found, theirs, relative=1e-10)
