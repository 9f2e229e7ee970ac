"""Products of neighbouring inputs in the convolution's Triton kernels, and their gradients."""

from itertools import pairwise

import pytest
import torch
from convolutions import with_products
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from triton_kernels import DEVICE, MARKS, by_triton, check_against_definition, dtypes

from firebolt_vl.kernels import fft_conv, reference, use_implementation
from firebolt_vl.kernels.common import triton_tiles
from firebolt_vl.kernels.fft_conv import op as public
from firebolt_vl.kernels.fft_conv import pytorch, triton_monarch
from firebolt_vl.kernels.fft_conv.choice import transform_size

pytestmark = MARKS
FORMS = ("toeplitz", "monarch")


def check(tensors, dy, gated, skip, form, **options):
    if form == "monarch":  # a transform sums all of its numbers, zeros too
        options["terms"] = transform_size(tensors[0].shape[-1], tensors[1].shape[-1])
    ours, definition = (with_products(op, gated, skip) for op in (fft_conv, reference.fft_conv))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "choose_algorithm", lambda *_, **__: form)
        return check_against_definition(ours, tensors, [dy], definition=definition, **options)


def randoms(B, D, L, K, P, dtype=torch.float32, seed=0):
    """u, k, weights, gate, d_skip and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, D, L), (D, K), (D, P - 1), (B, D, L), (D,), (B, D, L))
    u, k, weights, gate, d_skip, dy = (torch.randn(shape, generator=generator) for shape in shapes)
    return [u.to(dtype), k, weights, gate.to(dtype), d_skip], dy


@pytest.mark.parametrize("form", FORMS)
@given(
    data=st.data(),
    B=st.integers(1, 2),
    L=st.sampled_from([1, 2, 3, 17, 64, 65]),
    P=st.integers(2, 3),
    gated=st.booleans(),
    skip=st.booleans(),
    dtype=dtypes(),
    parameters=st.sampled_from(["float32", "as inputs"]),
)
def test_a_form_and_its_gradients_are_the_definitions(form, data, B, L, P, gated, skip, dtype, parameters):
    parameters = dtype if parameters == "as inputs" else torch.float32
    shapes = ((B, 1, L), (1, L), (1, P - 1), *[(B, 1, L)] * gated, *[(1,)] * skip)
    kinds = (dtype, parameters, parameters, *[dtype] * gated, *[parameters] * skip)
    tensors = [data.draw(layouts(*size, dtype=kind)) for size, kind in zip(shapes, kinds)]
    check(tensors, data.draw(layouts(B, 1, L, dtype=dtype)), gated, skip, form)


@given(
    data=st.data(),
    texts=st.lists(st.sampled_from([0, 1, 2, 15, 65]), min_size=1, max_size=3).filter(any),
    P=st.integers(2, 3),
    gated=st.booleans(),
    dtype=dtypes(),
)
def test_no_product_crosses_a_border_of_packed_texts(data, texts, P, gated, dtype):
    L = sum(texts)
    shapes = ((1, 1, L), (1, L), (1, P - 1), *[(1, 1, L)] * gated)
    kinds = (dtype, torch.float32, torch.float32, dtype)
    tensors = [data.draw(layouts(*size, dtype=kind)) for size, kind in zip(shapes, kinds)]
    cu_seqlens = torch.tensor([0, *texts]).cumsum(0)
    check(tensors, data.draw(layouts(1, 1, L, dtype=dtype)), gated, False, "toeplitz", cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("texts", [[130], [64, 0, 66], [40, 90]])
def test_a_packed_text_is_the_text_alone_to_the_bit(texts):
    (u, k, weights, gate, d_skip), _ = randoms(1, 2, 130, 130, 3)
    ends = torch.tensor([0, *texts]).cumsum(0)
    run = with_products(fft_conv, gated=True, skip=True)
    u, k, weights, gate, d_skip = (x.to(DEVICE) for x in (u, k, weights, gate, d_skip))
    with use_implementation("triton"):
        packed = run(u, k, weights, gate, d_skip, cu_seqlens=ends.to(DEVICE))
        for start, end in pairwise(ends.tolist()):
            if end > start:
                alone = run(u[..., start:end], k, weights, gate[..., start:end], d_skip)
                assert torch.equal(packed[..., start:end], alone)


@pytest.mark.parametrize(
    ("form", "B", "L", "K", "P", "dtype"),
    [
        ("toeplitz", 1, 1100, 60, 2, torch.float32),  # chunks of long rows, terms brought into range
        ("toeplitz", 2, 128, 128, 5, torch.float16),  # read where they lie
        ("monarch", 1, 400, 50, 3, torch.float32),  # more than half of a transform
        ("monarch", 1, 600, 600, 2, torch.float32),  # two passes
    ],
)
def test_every_kernel_has_them(form, B, L, K, P, dtype):
    tensors, dy = randoms(B, 1, L, K, P, dtype)
    check(tensors, dy, True, True, form)


def test_channels_and_slots_beyond_a_block_are_added_up(monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 8)
    monkeypatch.setattr(triton_monarch, "MOST_NUMBERS", 2**12)
    for form, B in (("toeplitz", 70), ("monarch", 4)):
        tensors, dy = randoms(B, 2, 70, 70, 3)
        check(tensors, dy, True, True, form)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_zero_change_no_bit(form, monkeypatch):
    monkeypatch.setattr(public, "choose_algorithm", lambda *_, **__: form)
    (u, k, weights, *_), dy = randoms(2, 2, 100, 100, 3)
    plain = by_triton(lambda u, k: fft_conv(u, k), [u, k], [dy])
    zeros = by_triton(with_products(fft_conv), [u, k, 0 * weights], [dy])
    for ours, wanted in zip(zeros, plain):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_it_repeats_bit_for_bit(form, monkeypatch):
    monkeypatch.setattr(public, "choose_algorithm", lambda *_, **__: form)
    tensors, dy = randoms(5, 2, 150, 150, 3)
    runs = [by_triton(with_products(fft_conv, True, True), tensors, [dy]) for _ in range(2)]
    for first, second in zip(*runs):
        assert torch.equal(first, second)


def test_they_are_a_part_of_the_kernels_and_not_of_a_pass_beside_them(monkeypatch):
    """No call of the PyTorch form, no launch more in the forward pass, and in the backward pass two."""
    from firebolt_vl.kernels.launch import recording

    monkeypatch.setattr(pytorch, "fft_conv", None)
    (u, k, weights, *_), _ = randoms(2, 2, 70, 70, 3)

    def launched(*tensors, **options):
        with use_implementation("triton"), recording() as launches:
            leaves = [x.clone().requires_grad_() for x in tensors]
            y = fft_conv(*leaves[:2], product_weights=leaves[2] if len(leaves) > 2 else None)
            forward = [launch.kernel.fn.__name__ for launch in launches]
            y.sum().backward()
        return forward, [launch.kernel.fn.__name__ for launch in launches][len(forward) :]

    plain, with_them = launched(u, k), launched(u, k, weights)
    assert with_them[0] == plain[0]
    assert sorted(with_them[1]) == sorted([*plain[1], "product_gradient_kernel", "product_sums_kernel"])
