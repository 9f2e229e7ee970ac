"""CMMConfig: defaults, dictionaries, and errors that name the field."""

import json

import pytest

from firebolt_vl.cmm import CMMConfig

SIZES = {"text_width": 1024, "grid_width": 768}


def test_the_defaults_are_the_reference_sizes():
    config = CMMConfig(**SIZES)
    assert (config.heads, config.head_dim, config.top_k, config.top_k_mode) == (4, 32, 4, "renormalize")
    assert (config.ssm, config.state_size, config.kernel_taps) == ("s4", None, None)
    assert (config.liquid_order, config.liquid_kernel) == (2, "elementwise")
    assert (config.dropout, config.grid_positions, config.ffn_multiplier) == (0.1, True, 4)


def test_a_dictionary_round_trip_through_json_is_the_same_config():
    config = CMMConfig(**SIZES, ssm="mamba", top_k=None, dropout=0.0, state_size=8)
    assert CMMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CMMConfig.from_dict(SIZES) == CMMConfig(**SIZES)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"text_width": 0}, ValueError, "text_width is 0; expected at least 1"),
        ({"grid_width": "768"}, TypeError, "grid_width is '768'; expected an integer"),
        ({"heads": 0}, ValueError, "heads is 0"),
        ({"head_dim": 1.5}, TypeError, "head_dim is 1.5; expected an integer"),
        ({"top_k": -1}, ValueError, "top_k is -1; expected at least 0"),
        ({"top_k": True}, TypeError, "top_k is True; expected an integer"),
        ({"top_k_mode": "hard"}, ValueError, "top_k_mode is 'hard'; expected one of renormalize, truncate"),
        ({"ssm": "s5"}, ValueError, "ssm is 's5'; expected one of s4, s4d, mamba, liquid"),
        ({"ssm": "liquid", "liquid_order": 0}, ValueError, "liquid_order is 0; expected at least 1"),
        ({"ssm": "liquid", "liquid_order": True}, TypeError, "liquid_order is True; expected an integer"),
        (
            {"ssm": "liquid", "liquid_kernel": "kb"},
            ValueError,
            "liquid_kernel is 'kb'; expected one of elementwise, pro",
        ),
        ({"ssm": "liquid", "state_size": 7}, ValueError, "state_size is 7; expected an even number, as liquid"),
        ({"liquid_order": 3}, ValueError, "liquid_order is 3; expected 2, the default, where ssm is 's4'"),
        (
            {"liquid_kernel": "product", "ssm": "mamba"},
            ValueError,
            "liquid_kernel is 'product'; expected 'elementwise'",
        ),
        ({"state_size": 0}, ValueError, "state_size is 0"),
        ({"state_size": 7}, ValueError, "state_size is 7; expected an even number, as s4"),
        ({"kernel_taps": 512, "ssm": "s4d"}, ValueError, "kernel_taps is 512; expected None where ssm is .s4d."),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0; expected 0 <= dropout < 1"),
        ({"dropout": None}, TypeError, "dropout is None; expected a number"),
        ({"grid_positions": 1}, TypeError, "grid_positions is 1; expected True or False"),
        ({"ffn_multiplier": 0}, ValueError, "ffn_multiplier is 0"),
        ({"layer_norm_eps": 0.0}, ValueError, "layer_norm_eps is 0.0; expected a positive number"),
    ],
)
def test_errors_name_the_field(change, error, words):
    with pytest.raises(error, match=words):
        CMMConfig(**SIZES | change)


def test_unknown_and_missing_fields_of_a_dictionary_are_named():
    with pytest.raises(ValueError, match="CMMConfig: hidden is unknown; expected one of text_width, grid_width, heads"):
        CMMConfig.from_dict(SIZES | {"topk": 3, "hidden": 1})
    with pytest.raises(ValueError, match="grid_width is missing; expected a value"):
        CMMConfig.from_dict({"text_width": 3})
