"""fft_conv: causal convolution by three algorithms."""

from itertools import pairwise

import golden
import pytest
import torch
from convolutions import by_position, shapes
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_within_budget, largest
from sequences import (
    assert_op_within_budget,
    assert_same_op,
    cotangent_layouts,
    few_lengths,
    lengths,
    outputs_and_gradients,
)

from firebolt_vl.kernels import fft_conv, reference, use_implementation
from firebolt_vl.kernels.fft_conv import pytorch
from firebolt_vl.kernels.fft_conv.choice import DIRECT_UP_TO, IN_TIME_UP_TO, choose_algorithm

BOTH = pytest.mark.parametrize("op", [fft_conv, reference.fft_conv], ids=["public", "reference"])
EACH = pytest.mark.parametrize("algorithm", pytorch.ALGORITHMS)
IN_TIME = pytest.mark.parametrize("algorithm", ["direct", "chunked"])


def loop(u, k, d_skip, gate=None):
    y = torch.zeros_like(u)
    for t in range(u.shape[-1]):
        for lag in range(min(t + 1, k.shape[-1])):
            y[..., t] += k[:, lag] * u[..., t - lag]
    y = y + d_skip[:, None] * u
    return y if gate is None else gate * y


@BOTH
@pytest.mark.parametrize(("L", "K"), [(1, 1), (7, 7), (6, 3), (4, 9), (70, 70)])
def test_the_output_is_that_of_the_sum_written_out(op, L, K):
    u, k, d_skip = torch.randn(2, 3, L).double(), torch.randn(3, K).double(), torch.randn(3).double()
    gate = torch.randn(2, 3, L).double()
    assert_close(op(u, k, d_skip), loop(u, k, d_skip), relative=1e-12)
    assert_close(op(u, k, d_skip, gate=gate), loop(u, k, d_skip, gate), relative=1e-12)


@pytest.mark.parametrize("case", [case for case in golden.case_names("s4d_kernel") if case.startswith("ss")])
def test_the_output_is_the_originals(case):
    vectors = golden.load("s4d_kernel")
    assert_close(fft_conv(vectors[f"{case}.in.u"], vectors[f"{case}.out.K"]), vectors[f"{case}.out.y_conv"])


@given(
    data=st.data(),
    algorithm=st.sampled_from(sorted(pytorch.ALGORITHMS)),
    B=st.integers(1, 3),
    D=st.integers(1, 4),
    L=lengths,
    K=lengths,
    chunk=st.sampled_from([1, 4, 16, 64]),
    block=st.sampled_from([1, 2**8, 2**17]),
    skip=st.booleans(),
    gated=st.booleans(),
    cotangent_layout=cotangent_layouts,
)
def test_each_algorithm_is_the_reference(data, algorithm, B, D, L, K, chunk, block, skip, gated, cotangent_layout):
    arguments = [data.draw(layouts(*shape)) for shape in shapes(B, D, L, K, gated, skip)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "choose_algorithm", lambda *_: algorithm)
        patch.setattr(pytorch, "CHUNK", chunk if L // chunk < 40 else 64)
        patch.setattr(pytorch, "block_numbers", lambda device: block)
        ours, definition = (by_position(op, gated, skip) for op in (fft_conv, reference.fft_conv))
        assert_same_op(ours, definition, arguments, cotangent_layout)


@given(
    data=st.data(),
    lengths_of_texts=st.lists(st.sampled_from([0, 1, 2, 5, 31, 32, 33, 70]), min_size=1, max_size=5).filter(any),
    K=st.sampled_from([1, 3, 33, 70, 100]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    gated=st.booleans(),
)
def test_packed_texts_are_convolved_each_alone(data, lengths_of_texts, K, dtype, gated):
    L = sum(lengths_of_texts)
    u, k, gate, d_skip = (data.draw(layouts(*shape)) for shape in ((1, 3, L), (3, K), (1, 3, L), (3,)))
    cu_seqlens = torch.tensor([0, *lengths_of_texts]).cumsum(0).to(dtype)

    def packed(u, k, d_skip, *gate):
        return fft_conv(u, k, d_skip, gate=gate[0] if gate else None, cu_seqlens=cu_seqlens)

    def separate(u, k, d_skip, *gate):
        y, ends = [], cu_seqlens.tolist()
        for text in (slice(start, end) for start, end in pairwise(ends) if end > start):
            y.append(fft_conv(u[..., text], k, d_skip, gate=gate[0][..., text] if gate else None))
        return torch.cat(y, -1)

    arguments = (u, k, d_skip, gate)[: 3 + gated]
    assert_same_op(packed, separate, arguments)
    with use_implementation("reference"):
        assert_same_op(packed, separate, arguments)


@EACH
def test_gradcheck(algorithm):
    u, k = torch.randn(2, 2, 5).double().requires_grad_(), torch.randn(2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(pytorch.ALGORITHMS[algorithm], (u, k))


@IN_TIME
def test_gradgradcheck_in_time(algorithm):
    u, k = torch.randn(2, 2, 5).double().requires_grad_(), torch.randn(2, 4).double().requires_grad_()
    assert torch.autograd.gradgradcheck(pytorch.ALGORITHMS[algorithm], (u, k))


def test_gradcheck_of_the_reference_with_skip():
    u, k, d = torch.randn(2, 2, 4).double(), torch.randn(2, 3).double(), torch.randn(2).double()
    assert torch.autograd.gradcheck(reference.fft_conv, [tensor.requires_grad_() for tensor in (u, k, d)])


BUDGETED = [
    *[("direct", L) for L in (3, 17, 32, 33, 48, 64)],
    *[("chunked", L) for L in (3, 17, 32)],
    *[("fft", L) for L in (33, 64, 500)],
]


@pytest.mark.parametrize(("algorithm", "L"), BUDGETED)
def test_float32_error_is_within_the_budget_at_the_lengths_that_take_an_algorithm(algorithm, L):
    u, k, d_skip = torch.randn(2, 32, L), torch.randn(32, L), torch.randn(32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "choose_algorithm", lambda *_: algorithm)
        assert_op_within_budget(fft_conv, reference.fft_conv, (u, k, d_skip))


@pytest.mark.parametrize("width", [8, 1024])
@pytest.mark.parametrize("L", [1, 16, 31, 32, 33, 64, 65, 127, 512, 2048])
def test_float32_error_is_at_most_four_times_that_of_the_vendors_fft(L, width):
    if L * width > 2**17:
        pytest.skip("the definition in float64 takes too much memory")
    u, k = torch.randn(2, width, L), torch.randn(width, L)
    exact, size = reference.fft_conv(u.double(), k.double()), 2 * L
    vendor = torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(k, size), size)[..., :L]
    assert_within_budget(fft_conv(u, k), vendor, exact, ratio=4.0)


@given(data=st.data(), L=lengths, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_it_is_linear_in_inputs_and_in_kernels(data, L, a, b):
    u, v = (data.draw(layouts(2, 2, L)) for _ in range(2))
    k, m = (data.draw(layouts(2, L)) for _ in range(2))
    assert_close(fft_conv(a * u + b * v, k), a * fft_conv(u, k) + b * fft_conv(v, k), relative=1e-10, absolute=1e-9)
    assert_close(fft_conv(u, a * k + b * m), a * fft_conv(u, k) + b * fft_conv(u, m), relative=1e-10, absolute=1e-9)


@given(data=st.data(), L=lengths)
def test_inputs_and_kernels_commute(data, L):
    u, k = data.draw(layouts(1, 2, L)), data.draw(layouts(2, L))
    assert_close(fft_conv(u, k), fft_conv(k[None], u[0]), relative=1e-10)


@given(data=st.data(), L=lengths, delay=st.integers(0, 40))
def test_a_delayed_input_gives_the_delayed_output(data, L, delay):
    u, k = data.draw(layouts(2, 2, L)), data.draw(layouts(2, L + delay))
    delayed = fft_conv(torch.nn.functional.pad(u, (delay, 0)), k)
    assert largest(delayed[..., :delay]) <= 1e-12 * largest(delayed)
    assert_close(delayed[..., delay:], fft_conv(u, k[:, :L]), relative=1e-10)


@given(data=st.data(), L=lengths)
def test_the_spectrum_of_the_output_is_the_product_of_the_spectra(data, L):
    u, k = data.draw(layouts(2, 3, L)), data.draw(layouts(3, L))
    whole = fft_conv(torch.nn.functional.pad(u, (0, L - 1)), k)  # nothing of the tail is cut
    assert_close(torch.fft.rfft(whole), torch.fft.rfft(u, 2 * L - 1) * torch.fft.rfft(k, 2 * L - 1), relative=1e-10)


@IN_TIME
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data(), B=st.integers(1, 3), L=lengths)
def test_a_later_input_changes_no_bit_of_an_earlier_output(algorithm, dtype, data, B, L):
    u, k = data.draw(layouts(B, 3, L, dtype=dtype)), data.draw(layouts(3, L, dtype=dtype))
    t = data.draw(st.integers(0, L - 1))
    changed = u.clone()
    changed[..., t:] = 1e6 * torch.randn(B, 3, L - t, dtype=dtype)
    convolve = pytorch.ALGORITHMS[algorithm]
    assert torch.equal(convolve(changed, k)[..., :t], convolve(u, k)[..., :t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@given(data=st.data(), L=st.integers(1, IN_TIME_UP_TO))
def test_the_public_function_is_causal_to_the_bit_up_to_the_crossover(dtype, data, L):
    u, k, d_skip = (data.draw(layouts(*shape, dtype=dtype)) for shape in ((2, 3, L), (3, L), (3,)))
    t = data.draw(st.integers(0, L - 1))
    changed = u.clone()
    changed[..., t:] = 100
    assert torch.equal(fft_conv(changed, k, d_skip)[..., :t], fft_conv(u, k, d_skip)[..., :t])


@pytest.mark.parametrize("L", [IN_TIME_UP_TO + 1, 300])
def test_beyond_the_crossover_it_is_causal_within_the_budget(L):
    u, k = torch.randn(2, 8, L), torch.randn(8, L)
    changed = u.clone()
    changed[..., L // 2 :] = torch.randn(2, 8, L - L // 2)
    exact = reference.fft_conv(changed.double(), k.double())
    found, wanted = fft_conv(changed, k), reference.fft_conv(changed, k)
    assert_within_budget(found[..., : L // 2], wanted[..., : L // 2], exact[..., : L // 2])
    assert choose_algorithm(L, 8, 2, torch.float32, "cpu") == "fft"


@IN_TIME
@given(data=st.data(), L=few_lengths)
def test_a_row_does_not_depend_on_the_other_rows(algorithm, data, L):
    u, k = data.draw(layouts(3, 2, L, dtype=torch.float32)), data.draw(layouts(2, L, dtype=torch.float32))
    others = u.clone()
    others[1:] = 1e4
    convolve = pytorch.ALGORITHMS[algorithm]
    assert torch.equal(convolve(u, k)[0], convolve(others, k)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("L", [9, 100])
def test_half_inputs_are_computed_in_float32(dtype, L):
    u, k, d_skip, gate = torch.randn(2, 3, L, dtype=dtype), torch.randn(3, L), torch.randn(3), torch.randn(2, 3, L)
    for precision in ("accurate", "fast"):
        y = fft_conv(u, k, d_skip, gate=gate, precision=precision)
        assert y.dtype == dtype
        assert torch.equal(y, fft_conv(u.float(), k, d_skip, gate=gate).to(dtype))
    found = outputs_and_gradients(fft_conv, (u, k.to(dtype), d_skip.to(dtype)))
    assert [tensor.dtype for tensor in found] == 4 * [dtype]


@given(data=st.data(), L=lengths, K=lengths, skip=st.booleans(), longer=st.integers(0, 9))
def test_a_kept_spectrum_stands_for_its_kernel(data, L, K, skip, longer):
    u, k, d_skip = (data.draw(layouts(*shape)) for shape in ((2, 3, L), (3, K), (3,)))
    size = pytorch.fast_size(L + K - 1) + 2 * longer

    def by_spectrum(u, k, d_skip=None):
        return fft_conv(u, k, d_skip, k_spectrum=torch.fft.rfft(k, size))

    # The gradient reaches k through its spectrum.
    assert_same_op(by_spectrum, reference.fft_conv, (u, k, d_skip)[: 2 + skip])


def test_fast_sizes_are_the_next_even_numbers_without_large_prime_factors():
    def has_only_small_factors(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for n in range(1, 2000):
        assert pytorch.fast_size(n) == next(m for m in range(n, 4 * n + 2) if m % 2 == 0 and has_only_small_factors(m))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_choice_names_an_algorithm_and_only_the_fft_grows_slower_than_the_square(dtype):
    for L in (1, IN_TIME_UP_TO):
        assert choose_algorithm(L, 64, 8, dtype, "cpu") in {"direct", "chunked"}
    for L in (IN_TIME_UP_TO + 1, 10**6):
        assert choose_algorithm(L, 64, 8, dtype, torch.device("cpu")) == "fft"
    for L, wide in ((DIRECT_UP_TO, dtype == torch.float32), (DIRECT_UP_TO + 1, False)):
        assert choose_algorithm(L, 1024, 1, dtype, "cpu") == ("direct" if wide else "fft")


@pytest.mark.parametrize(
    ("dtype", "longest", "beyond"),
    [(torch.float32, 4096, "vendor"), (torch.float16, 8192, "monarch"), (torch.bfloat16, 8192, "monarch")],
    ids=str,
)
def test_where_kernels_run_the_choice_is_theirs(dtype, longest, beyond):
    for L in (1, 500, longest):
        assert choose_algorithm(L, 64, 8, dtype, "cuda", kernels=True) == "toeplitz"
    for L in (longest + 1, 32768, 10**6):
        assert choose_algorithm(L, 64, 8, dtype, "cuda", kernels=True) == beyond


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(3, 8)}, ValueError, r"u has shape \[3, 8\]; expected \[B D L\]"),
        ({"k": torch.randn(4, 8)}, ValueError, r"k has shape \[4, 8\]; expected \[D K\] with D = 3"),
        ({"d_skip": torch.randn(1, 3)}, ValueError, r"d_skip has shape \[1, 3\]; expected \[D\] with D = 3"),
        ({"u": torch.randn(2, 3, 0)}, ValueError, "u has shape .*; expected no axis of size 0"),
        ({"k": torch.randn(3, 0)}, ValueError, "k has shape .*; expected no axis of size 0"),
        ({"k": None}, TypeError, "k is None"),
        ({"u": 3.0}, TypeError, "u is of type float"),
        ({"k": torch.randn(3, 8, dtype=torch.cfloat)}, TypeError, "k is complex64; expected one of float32"),
        ({"u": torch.ones(2, 3, 8, dtype=torch.int64)}, TypeError, "u is int64"),
        ({"k_spectrum": torch.randn(3, 9)}, TypeError, "k_spectrum is float32"),
        ({"k_spectrum": torch.randn(2, 9, dtype=torch.cfloat)}, ValueError, r"k_spectrum has shape \[2, 9\]"),
        ({"k_spectrum": torch.randn(3, 8, dtype=torch.cfloat)}, ValueError, r"at least L \+ K - 1 = 15"),
        ({"k": torch.randn(3, 8, device="meta")}, ValueError, "k is on meta; expected cpu, the device of u"),
        ({"gate": torch.randn(2, 3, 7)}, ValueError, r"gate has shape \[2, 3, 7\]; expected \[B D L\] with B = 2"),
        ({"gate": torch.ones(2, 3, 8, dtype=torch.bool)}, TypeError, "gate is bool"),
        ({"precision": "tf32"}, ValueError, "precision is 'tf32'; expected one of accurate, fast"),
        ({"cu_seqlens": torch.tensor([0, 8])}, ValueError, "u has 2 rows; expected one"),
        ({"u": torch.randn(1, 3, 8), "cu_seqlens": torch.tensor([0, 9])}, ValueError, r"rise from 0 to L = 8"),
        (
            {"u": torch.randn(1, 3, 8), "cu_seqlens": torch.tensor([0, 8])}
            | {"k_spectrum": torch.fft.rfft(torch.ones(3, 16))},
            ValueError,
            "k_spectrum and cu_seqlens are both given",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"u": torch.randn(2, 3, 8), "k": torch.randn(3, 8)}
    with pytest.raises(error, match=message):
        fft_conv(**good | change)
