"""HiPPO-LegS and its diagonal-plus-rank-one form."""

import numpy as np
import pytest
import torch
from golden import load
from numerics import assert_close

from firebolt_vl.cmm.hippo import clip_imaginary, legs, nplr


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("state_size", [16, 64])
def test_legs_is_the_original_s_matrix(state_size):
    A, B = legs(state_size)
    vectors = load("hippo_nplr").under(f"legs_n{state_size}")
    assert_close(tensor(A), vectors["A_dense"], 1e-14)
    assert_close(tensor(B), vectors["B_dense"], 1e-14)


@pytest.mark.parametrize("state_size", [16, 64])
def test_nplr_is_the_original_s_up_to_the_phase_of_each_mode(state_size):
    w, P, B, _ = map(tensor, nplr(state_size))
    vectors = load("hippo_nplr").under(f"legs_n{state_size}.f64")
    theirs_P = vectors["P"][0]
    assert_close(w, vectors["w"], 1e-12)
    assert_close(P.abs(), theirs_P.abs(), 1e-12)
    assert_close(B.abs(), vectors["B_noclip"].abs(), 1e-12)
    assert_close(P.conj() * B, theirs_P.conj() * vectors["B_noclip"], 1e-11)


@pytest.mark.parametrize("state_size", [2, 16, 64])
def test_nplr_put_together_again_is_legs(state_size):
    A, B = legs(state_size)
    w, P, B_modes, V = nplr(state_size)
    p = 2 * (V @ P).real
    np.testing.assert_allclose(2 * ((V * w) @ V.conj().T).real - np.outer(p, p), A, atol=1e-11)
    np.testing.assert_allclose(2 * (V @ B_modes).real, B, atol=1e-11)
    np.testing.assert_allclose(w.real, -0.5, atol=0)


@pytest.mark.parametrize("state_size", [2, 16, 64])
def test_the_phase_is_fixed_by_a_real_positive_first_component(state_size):
    V = nplr(state_size)[3]
    assert (V[0].real > 0).all()
    np.testing.assert_allclose(V[0].imag, 0, atol=1e-17)


def test_the_clip_bites_as_the_original_s():
    for state_size, clipped_modes in ((16, 3), (64, 11)):
        B = nplr(state_size)[2]
        clipped = clip_imaginary(B)
        assert (np.abs(B.imag) > 2).sum() == clipped_modes
        assert np.abs(clipped.imag).max() == 2
        assert (clipped.real == B.real).all()


@pytest.mark.parametrize("state_size", [0, 1, 7])
def test_an_odd_or_empty_state_is_refused(state_size):
    with pytest.raises(ValueError, match="state_size"):
        nplr(state_size)
