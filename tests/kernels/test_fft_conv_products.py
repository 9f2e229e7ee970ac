"""fft_conv's products of neighbouring inputs: the sum written out, its gradients, packed texts, errors."""

from itertools import pairwise

import pytest
import torch
from convolutions import with_products
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from sequences import assert_op_within_budget, assert_same_op, cotangent_layouts, lengths, outputs_and_gradients

from firebolt_vl.kernels import fft_conv, reference
from firebolt_vl.kernels.fft_conv import pytorch

BOTH = pytest.mark.parametrize("op", [fft_conv, reference.fft_conv], ids=["public", "reference"])


def doubles(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@BOTH
def test_products_by_hand(op):
    """u = 1, 2, -1, 3: of two inputs 0, 2, -2, -3, of three 0, 0, -2, -6; before the first input all is 0."""
    u, k = torch.tensor([[[1.0, 2, -1, 3]]]).double(), torch.zeros(1, 1).double()
    weights = torch.tensor([[10.0, 100.0]]).double()
    assert op(u, k, product_weights=weights).tolist() == [[[0, 20, -220, -630]]]
    assert op(u, k, product_weights=weights[:, :1]).tolist() == [[[0, 20, -20, -30]]]
    gate = torch.tensor([[[5.0, 1, 2, 0]]]).double()
    assert op(u, k, gate=gate, product_weights=weights).tolist() == [[[0, 20, -440, 0]]]


@BOTH
@pytest.mark.parametrize(("L", "P"), [(1, 2), (1, 5), (2, 4), (7, 2), (7, 3), (40, 4)])
def test_the_output_is_that_of_the_sum_written_out(op, L, P):
    u, k, d_skip, gate, weights = doubles((2, 3, L), (3, L), (3,), (2, 3, L), (3, P - 1))
    wanted = reference.fft_conv(u, k, d_skip)
    for t in range(L):
        for p in range(2, min(P, t + 1) + 1):
            wanted[..., t] += weights[:, p - 2] * u[..., t - p + 1 : t + 1].prod(-1)
    assert_close(op(u, k, d_skip, gate=gate, product_weights=weights), gate * wanted, relative=1e-12)


def test_by_a_spectrum_too():
    u, k, weights = doubles((2, 3, 20), (3, 20), (3, 2))
    by_spectrum = fft_conv(u, k, k_spectrum=torch.fft.rfft(k, 40), product_weights=weights)
    assert_close(by_spectrum, reference.fft_conv(u, k, product_weights=weights), relative=1e-12)


@given(
    data=st.data(),
    algorithm=st.sampled_from(sorted(pytorch.ALGORITHMS)),
    B=st.integers(1, 3),
    D=st.integers(1, 4),
    L=lengths,
    P=st.integers(2, 5),
    gated=st.booleans(),
    skip=st.booleans(),
    cotangent_layout=cotangent_layouts,
)
def test_each_algorithm_is_the_reference(data, algorithm, B, D, L, P, gated, skip, cotangent_layout):
    shapes = ((B, D, L), (D, L), (D, P - 1), *[(B, D, L)] * gated, *[(D,)] * skip)
    arguments = [data.draw(layouts(*shape)) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "choose_algorithm", lambda *_: algorithm)
        ours, definition = (with_products(op, gated, skip) for op in (fft_conv, reference.fft_conv))
        assert_same_op(ours, definition, arguments, cotangent_layout)


@given(
    data=st.data(),
    lengths_of_texts=st.lists(st.sampled_from([0, 1, 2, 3, 5, 33]), min_size=1, max_size=5).filter(any),
    P=st.integers(2, 5),
)
def test_no_product_crosses_a_border_of_packed_texts(data, lengths_of_texts, P):
    L = sum(lengths_of_texts)
    u, k, weights, gate = (data.draw(layouts(*shape)) for shape in ((1, 3, L), (3, L), (3, P - 1), (1, 3, L)))
    cu_seqlens = torch.tensor([0, *lengths_of_texts]).cumsum(0)
    run = with_products(fft_conv, gated=True)

    def packed(*tensors):
        return run(*tensors, cu_seqlens=cu_seqlens)

    def separate(u, k, weights, gate):
        texts = [slice(start, end) for start, end in pairwise(cu_seqlens.tolist()) if end > start]
        return torch.cat([run(u[..., text], k, weights, gate[..., text]) for text in texts], -1)

    assert_same_op(packed, separate, (u, k, weights, gate))
    assert_same_op(with_products(reference.fft_conv, gated=True, cu_seqlens=cu_seqlens), packed, (u, k, weights, gate))


@BOTH
def test_gradcheck_once_and_twice(op):
    run = with_products(op, gated=True, skip=True)
    tensors = [x.requires_grad_() for x in doubles((2, 2, 5), (2, 3), (2, 2), (2, 2, 5), (2,))]
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_error_is_within_the_budget(channels_last):
    u, k, weights = (x.float() for x in doubles((2, 32, 100), (32, 100), (32, 3)))
    u = u.mT.contiguous().mT if channels_last else u
    assert_op_within_budget(with_products(fft_conv), with_products(reference.fft_conv), (u, k, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_are_computed_in_float32(dtype):
    u, k, weights = (x.float() for x in doubles((2, 3, 20), (3, 20), (3, 2)))
    u = u.to(dtype)
    y = fft_conv(u, k, product_weights=weights)
    assert y.dtype == dtype
    assert torch.equal(y, fft_conv(u.float(), k, product_weights=weights).to(dtype))
    found = outputs_and_gradients(with_products(fft_conv), (u, k.to(dtype), weights.to(dtype)))
    assert [tensor.dtype for tensor in found] == 4 * [dtype]


@given(data=st.data(), L=st.integers(1, 32), P=st.integers(2, 4))
def test_no_bit_before_a_change_changes(data, L, P):
    u, k, weights = (data.draw(layouts(*shape, dtype=torch.float32)) for shape in ((2, 3, L), (3, L), (3, P - 1)))
    t = data.draw(st.integers(0, L - 1))
    changed = u.clone()
    changed[..., t:] = 100
    run = with_products(fft_conv)
    assert torch.equal(run(changed, k, weights)[..., :t], run(u, k, weights)[..., :t])


def test_transforms_of_torch_func_go_through():
    u, k, weights = doubles((2, 3, 9), (3, 9), (3, 2))
    run = with_products(fft_conv)

    def loss(weights, u):
        return run(u, k, weights).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, u[:, None])
    leaf = weights.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, u), leaf)
    assert_close(gradients.sum(0), wanted, relative=1e-12)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.randn(2, 1), ValueError, r"product_weights has shape \[2, 1\]; expected \[D orders\] with D = 3"),
        (torch.randn(3), ValueError, r"product_weights has shape \[3\]; expected \[D orders\]"),
        (torch.randn(3, 0), ValueError, r"product_weights has shape \[3, 0\]; expected no axis of size 0"),
        (torch.ones(3, 1, dtype=torch.int64), TypeError, "product_weights is int64"),
        (torch.randn(3, 1, dtype=torch.cfloat), TypeError, "product_weights is complex64"),
        (torch.randn(3, 1, device="meta"), ValueError, "product_weights is on meta; expected cpu"),
        (2.0, TypeError, "product_weights is of type float"),
    ],
)
def test_bad_weights_are_named(weights, error, message):
    u, k, _ = doubles((2, 3, 8), (3, 8), (1,))
    with pytest.raises(error, match=message):
        fft_conv(u, k, product_weights=weights)
