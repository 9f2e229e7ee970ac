"""Objects that are there already change their class."""

import pytest
from torch import nn

from firebolt_vl.cmm.classes import change_class


class Own(nn.Linear):
    pass


def test_a_layer_changes_its_class_there_and_back():
    layer = nn.Linear(3, 4)
    for wanted in (Own, nn.Linear):
        change_class(layer, wanted)
        assert type(layer) is wanted


def test_classes_that_are_strangers_are_refused():
    layer = nn.Linear(3, 4)
    with pytest.raises(TypeError, match="new is GELU; expected a subclass or a base of Linear"):
        change_class(layer, nn.GELU)
    assert type(layer) is nn.Linear
