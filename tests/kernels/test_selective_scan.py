"""Mamba's selective scan against its golden vectors, its definition and itself."""

import golden
import pytest
from numerics import assert_close

from firebolt_vl.kernels import reference, selective_scan

CASES = {case["case"]: case for case in golden.load("selective_scan").cases}


@pytest.mark.parametrize("run", [selective_scan, reference.selective_scan], ids=["public", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_golden_values_and_gradients(name, run):
    vectors = golden.load("selective_scan")
    arguments = vectors.under(f"{name}.in")
    cotangent = arguments.pop("cotangent")
    for tensor in arguments.values():
        tensor.requires_grad_()
    y, last_state = run(**arguments, delta_softplus=CASES[name]["delta_softplus"], return_last_state=True)
    assert_close(y, vectors[f"{name}.out.y"])
    assert_close(last_state, vectors[f"{name}.out.last_state"])
    (y * cotangent).sum().backward()
    gradients = vectors.under(f"{name}.grad")
    assert gradients.keys() == arguments.keys()
    for key, wanted in gradients.items():
        assert_close(arguments[key].grad, wanted)
