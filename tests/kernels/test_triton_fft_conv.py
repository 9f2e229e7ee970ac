"""fft_conv by its Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from convolutions import by_position, shapes
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_to_rounding, assert_within_budget, largest, relative_error
from triton_kernels import DEVICE, MARKS, by_triton, check_against_definition, dtypes, results

from firebolt_vl.kernels import fft_conv, reference, use_implementation
from firebolt_vl.kernels.common import triton_tiles
from firebolt_vl.kernels.fft_conv import op as public
from firebolt_vl.kernels.fft_conv import pytorch, triton_monarch, triton_toeplitz
from firebolt_vl.kernels.fft_conv.choice import has_transform, transform_size
from firebolt_vl.kernels.fft_conv.triton_columns import packed_columns

pytestmark = MARKS
# One chunk and several, powers of two and their neighbours, primes.
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 61, 63, 64, 65, 97, 127, 128, 129, 191, 192, 193, 257)
FORMS = ("toeplitz", "monarch")
TEXTS = st.lists(st.sampled_from([0, 1, 2, 15, 63, 64, 65, 130]), min_size=1, max_size=5).filter(any)


def check(data, B, D, L, K, gated, skip, dtype, form=None, parameters=torch.float32, **options):
    """Value and gradients against the definition, on tensors in any layout; by one form where it is given."""
    sizes = shapes(B, D, L, K, gated, skip)
    kinds = [dtype, parameters, *[dtype] * gated, *[parameters] * skip]
    tensors = [data.draw(layouts(*size, dtype=kind)) for size, kind in zip(sizes, kinds)]
    dy = data.draw(layouts(B, D, L, dtype=dtype))
    if form == "monarch":  # a transform sums all of its numbers, zeros too
        options["terms"] = transform_size(L, K)
    with by_form(form):
        return compare(tensors, dy, gated, skip, **options)


def compare(tensors, dy, gated=False, skip=False, **options):
    ours, definition = (by_position(op, gated, skip) for op in (fft_conv, reference.fft_conv))
    return check_against_definition(ours, tensors, [dy], definition=definition, **options)


@contextmanager
def by_form(form):
    with pytest.MonkeyPatch.context() as patch:
        if form is not None:
            patch.setattr(public, "choose_algorithm", lambda *_, **__: form)
        yield


def randoms(B=2, D=2, L=70, K=70, gated=True, skip=True):
    return [torch.randn(size) for size in shapes(B, D, L, K, gated, skip)]


@pytest.mark.parametrize("form", FORMS)
@given(
    data=st.data(),
    B=st.integers(1, 3),
    D=st.integers(2, 3),
    L=st.sampled_from(LENGTHS),
    K=st.sampled_from(LENGTHS),
    gated=st.booleans(),
    skip=st.booleans(),
    dtype=dtypes(),
    parameters=st.sampled_from(["float32", "as inputs"]),
)
def test_a_form_and_its_gradients_are_the_definitions(form, data, B, D, L, K, gated, skip, dtype, parameters):
    parameters = dtype if parameters == "as inputs" else torch.float32
    check(data, B, D, L, K, gated, skip, dtype, form, parameters)


@given(
    data=st.data(),
    texts=TEXTS,
    K=st.sampled_from([1, 3, 64, 66, 130, 300]),
    kind=st.sampled_from([torch.int32, torch.int64]),
    gated=st.booleans(),
    dtype=dtypes(),
)
def test_packed_texts_are_convolved_each_alone(data, texts, K, kind, gated, dtype):
    cu_seqlens = torch.tensor([0, *texts]).cumsum(0).to(kind)
    check(data, 1, 2, sum(texts), K, gated, True, dtype, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("texts", [[130], [64, 0, 66], [40, 90]])
def test_a_packed_text_is_the_text_alone_to_the_bit(texts):
    """Those that make chunks of the same size meet the same sums wherever they lie."""
    u, k, gate, d_skip = (x.to(DEVICE) for x in randoms(B=1, L=130))
    ends = torch.tensor([0, *texts]).cumsum(0)
    with use_implementation("triton"):
        packed = fft_conv(u, k, d_skip, gate=gate, cu_seqlens=ends.to(DEVICE))
        for start, end in pairwise(ends.tolist()):
            if end > start:
                alone = fft_conv(u[..., start:end], k, d_skip, gate=gate[..., start:end])
                assert torch.equal(packed[..., start:end], alone)


def test_blocks_of_columns_and_slots_of_a_channel_are_added_up(monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 4)
    with by_form("toeplitz"):
        tensors = randoms(B=40, D=1, L=130, K=130)
        compare(tensors, torch.randn(40, 1, 130), gated=True, skip=True)


@pytest.mark.parametrize(
    ("B", "L", "K", "dtype"),
    [
        (3, 128, 128, torch.float32),  # read where they lie
        (2, 64, 10, torch.float16),
        (1, 1100, 1100, torch.float32),  # chunks of long rows
        (1, 1152, 300, torch.float16),
    ],
)
def test_rows_that_are_not_padded_and_long_ones_are_the_definitions(B, L, K, dtype):
    u, k, gate, d_skip = randoms(B, 2, L, K)
    with by_form("toeplitz"):
        compare([u.to(dtype), k, gate.to(dtype), d_skip], torch.randn(B, 2, L, dtype=dtype), gated=True, skip=True)


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e10, 1e30])
def test_long_rows_of_any_size_are_brought_into_range(size):
    """In float32 beyond 1024 steps terms are of float16. A row of zeros is among them."""
    u, k, _, d_skip = randoms(B=2, D=1, L=1100, K=50)
    u[1] = 0
    exact = reference.fft_conv(u.double() * size, k.double() / 8, d_skip.double())
    with use_implementation("triton"), by_form("toeplitz"):
        y = fft_conv((u * size).to(DEVICE), (k / 8).to(DEVICE), d_skip.to(DEVICE)).cpu()
    assert relative_error(y[0], exact[0]) < 1e-6
    assert not y[1].any()


@pytest.mark.parametrize("chunk", [16, 64])
@given(texts=st.lists(st.integers(0, 200), min_size=1, max_size=150).filter(any))
def test_columns_of_packed_texts_are_their_chunks(chunk, texts):
    L = sum(texts)
    borders = torch.tensor([0, *texts]).cumsum(0).to(DEVICE)
    wanted, start = [], 0
    for length in texts:
        wanted += [[start, length, number] for number in range(-(-length // chunk))]
        start += length
    table = packed_columns(borders, L, chunk).T.tolist()
    assert table[: len(wanted)] == wanted
    assert all(number == -1 for _, _, number in table[len(wanted) :])


@pytest.mark.parametrize(
    ("B", "D", "L", "K", "dtype"),
    [
        (3, 2, 400, 50, torch.float32),  # more than half of a transform
        (1, 2, 512, 512, torch.float32),  # the largest in one kernel, without gradients
        (1, 1, 300, 3000, torch.float16),
        (2, 1, 600, 600, torch.float16),  # two passes
        (3, 1, 1500, 300, torch.float32),  # two passes over more than half
        (1, 1, 3001, 3001, torch.float32),
    ],
)
def test_transforms_of_all_kinds_and_their_gradients_are_the_definitions(B, D, L, K, dtype):
    u, k, gate, d_skip = randoms(B, D, L, K)
    with by_form("monarch"):
        compare([u.to(dtype), k, gate.to(dtype), d_skip], torch.randn(B, D, L, dtype=dtype), gated=True, skip=True)


@pytest.mark.parametrize("L", [100, 300])
def test_pairs_and_channels_beyond_a_block_are_added_up(monkeypatch, L):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 8)
    monkeypatch.setattr(triton_monarch, "MOST_NUMBERS", 2**12)
    with by_form("monarch"):
        compare(randoms(B=4, L=L, K=L), torch.randn(4, 2, L), gated=True, skip=True)


@pytest.mark.parametrize(
    ("L", "K", "size", "conjugated"),
    [(40, 40, 512, True), (300, 100, 512, False), (30, 30, 2048, False), (40, 40, 600, False)],
)
def test_a_kept_spectrum_stands_for_its_kernel(monkeypatch, L, K, size, conjugated):
    """By the Monarch kernels where they have its size, else by the device's library."""
    tensors, dy = randoms(D=1, L=L, K=K), torch.randn(2, 1, L)

    def by_spectrum(u, k, gate, d_skip):
        spectrum = torch.fft.rfft(k, size)
        spectrum = spectrum.conj().resolve_conj().conj() if conjugated else spectrum
        return fft_conv(u, k, d_skip, gate=gate, k_spectrum=spectrum)

    if size != 600:
        monkeypatch.setattr(pytorch, "fft_conv", None)
    check_against_definition(by_spectrum, tensors, [dy], definition=by_position(reference.fft_conv, True, True))


def test_the_smallest_transforms_hold_inputs_and_taps():
    for L in (*range(1, 70), 255, 256, 257, 1000, 1024, 1025):
        for K in (1, 2, 70, 256, 257, 1024, 5000):
            size = transform_size(L, K)
            assert has_transform(size)
            assert size >= L + min(K, L) - 1
            assert size == 512 or size // 2 < L + min(K, L) - 1
    assert not any(map(has_transform, (256, 513, 600, 1022)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("L", [1, 2, 37, 64, 255, 512, 513, 1031, 2048, 4095, 32768])
def test_the_error_in_float32_is_near_that_of_torchs_fft(form, L):
    """At most four times its own."""
    K = 1000 if (form, L) == ("toeplitz", 32768) else L  # as many as the interpreter does in seconds
    u, k = torch.randn(1 + (L < 4000), 1, L), torch.randn(1, K)
    by_library, exact = by_torch(u, k), by_torch(u.double(), k.double())
    with use_implementation("triton"), by_form(form):
        found = fft_conv(u.to(DEVICE), k.to(DEVICE)).cpu()
    assert_within_budget(found, by_library, exact, ratio=4)


def by_torch(u, k):
    L, size = u.shape[-1], 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(k, size), size)[..., :L]


@contextmanager
def products_of_terms(kind):
    """The interpreter's products as a GPU makes them of bfloat16 terms: one, or two or three with the largest pairs."""
    from triton.runtime.interpreter import InterpreterBuilder

    terms, most = {"bfloat16": (1, 1), "bf16x3": (2, 2), "bf16x6": (3, 3)}[kind]
    create_dot = InterpreterBuilder.create_dot

    def taken_apart(handle):
        rest, found = torch.from_numpy(handle.data.astype("float32")), []
        for _ in range(terms):
            found.append(rest.bfloat16().float())
            rest = rest - found[-1]
        return found

    def create_dot_of_terms(self, a, b, d, *rest):
        d = create_dot(self, a, b, d, *rest)
        total = sum(x @ y for i, x in enumerate(taken_apart(a)) for j, y in enumerate(taken_apart(b)) if i + j < most)
        d.data = total.numpy()
        return d

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot_of_terms)
        yield


@pytest.mark.skipif(DEVICE == "cuda", reason="emulates a GPU's products in the interpreter")
@pytest.mark.parametrize(("kind", "most"), [("bf16x6", 1e-6), ("bf16x3", 2e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("L", [500, 2000])
def test_products_of_bfloat16_terms_have_the_errors_that_the_docstring_states(kind, most, L):
    u, k = torch.randn(2, 2, L), torch.randn(2, L)
    exact = by_torch(u.double(), k.double())
    with use_implementation("triton"), by_form("monarch"), products_of_terms(kind):
        error = relative_error(fft_conv(u, k), exact)
    assert most / 30 < error < most


@pytest.mark.parametrize("form", FORMS)
def test_16_bit_operands_do_not_overflow_where_the_output_does_not(form):
    """Sums of the inputs are a hundred times float16's range; averages of them are not."""
    u, k = torch.full((2, 1, 2000), 3e4, dtype=torch.float16), torch.full((1, 2000), 1 / 2000)
    with use_implementation("triton"), by_form(form):
        y = fft_conv(u.to(DEVICE), k.to(DEVICE), precision="fast").cpu()
    assert relative_error(y, 15 * torch.arange(1.0, 2001.0).expand(2, 1, -1)) < 4e-3


@pytest.mark.parametrize("gated", [False, True])
def test_taps_of_two_16_bit_terms_are_within_the_budget(monkeypatch, gated):
    """What bfloat16 inputs meet on a GPU; of two float16 terms it is as exact where taps are of ordinary size."""
    terms = triton_toeplitz._terms

    def of_float16(rows, taps, *rest, **options):
        split = rows == torch.float16 and taps == torch.float32
        return triton_toeplitz._Terms(torch.float16, 1, 2) if split else terms(rows, taps, *rest, **options)

    monkeypatch.setattr(triton_toeplitz, "_terms", of_float16)
    tensors = randoms(L=130, K=130, gated=gated)
    tensors = [tensors[0].half(), tensors[1], *[x.half() for x in tensors[2:-1]], tensors[-1]]
    compare(tensors, torch.randn(2, 2, 130), gated=gated, skip=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_fast_is_near_and_changes_nothing_in_float32(form, dtype):
    """Operands of 16 bits: an error of half a rounding each, added up at random."""
    u, k, gate, d_skip = randoms(L=200, K=200)
    tensors, dy = [u.to(dtype), k, gate.to(dtype), d_skip], torch.randn(2, 2, 200)
    with by_form(form):
        found, wanted = (
            by_triton(by_position(fft_conv, True, True, precision=precision), tensors, [dy])
            for precision in ("fast", "accurate")
        )
    for ours, theirs in zip(found, wanted):
        if dtype == torch.float32:
            assert torch.equal(ours, theirs)
        else:
            assert relative_error(ours, theirs) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS)
def test_it_repeats_bit_for_bit(form):
    tensors, dy = randoms(B=5, L=150), torch.randn(5, 2, 150)
    with by_form(form):
        runs = [by_triton(by_position(fft_conv, True, True), tensors, [dy]) for _ in range(2)]
    for first, second in zip(*runs):
        assert torch.equal(first, second)


@pytest.mark.parametrize("form", FORMS)
def test_a_later_input_changes_no_earlier_output(form):
    """To the bit in time; beside an FFT of 1e4 times as much, to its rounding."""
    u, k, _, _ = randoms(L=130, K=130)
    later = u.clone()
    later[..., 70:] = 1e4
    with use_implementation("triton"), by_form(form):
        y, changed = (fft_conv(x.to(DEVICE), k.to(DEVICE))[..., :70] for x in (u, later))
    if form == "toeplitz":
        assert torch.equal(y, changed)
    assert largest(y - changed) <= 1e-6 * 1e4 * k.abs().sum(-1).max()


@pytest.mark.parametrize("form", FORMS)
def test_offsets_pass_2_to_the_31(form):
    """Channels 2^30 numbers apart. Memory that nothing touches costs nothing."""
    tensors, dy = randoms(B=1, D=3, L=6, K=6), torch.randn(1, 3, 6)

    def far(tensor):
        if tensor.dim() == 1:
            return tensor
        spread = torch.empty(3 * 2**30, device=DEVICE).as_strided(tensor.shape, (0, 2**30, 1)[-tensor.dim() :])
        return spread.copy_(tensor)

    run = by_position(fft_conv, True, True)
    with by_form(form), use_implementation("triton"):
        leaves = [[f(x.to(DEVICE)).requires_grad_() for x in tensors] for f in (far, torch.clone)]
        for ours, near in zip(results(run, leaves[0], [far(dy)]), results(run, leaves[1], [dy.to(DEVICE)])):
            assert torch.equal(ours, near)


@pytest.mark.parametrize("form", FORMS)
def test_linear_and_commuting_and_shifted(form):
    """y is linear in u and in k, the two commute, and a delayed input gives the delayed output."""
    L = 97
    (u, v), (k, m) = torch.randn(2, 1, 3, L), torch.randn(2, 3, L)

    def convolve(u, k):
        with use_implementation("triton"), by_form(form):
            return fft_conv(u.to(DEVICE), k.to(DEVICE)).cpu()

    y = convolve(u, k)
    delayed = convolve(torch.nn.functional.pad(u, (5, 0)), k)
    for found, wanted in (
        (convolve(2 * u - v, k), 2 * y - convolve(v, k)),
        (convolve(u, 2 * k - m), 2 * y - convolve(u, m)),
        (convolve(k[None], u[0]), y),
        (delayed[..., 5:], y),
        (delayed[..., :5], torch.zeros(1, 3, 5)),
    ):
        assert largest(found - wanted) < 2e-6 * largest(y)
    whole = convolve(torch.nn.functional.pad(u, (0, L - 1)), k)  # nothing of the tail is cut
    spectrum = torch.fft.rfft(u, 2 * L - 1) * torch.fft.rfft(k, 2 * L - 1)
    assert relative_error(torch.fft.rfft(whole), spectrum) < 2e-6


def test_float64_and_what_goes_by_the_vendors_fft():
    u, k, gate, d_skip = randoms(L=40, K=40)
    with use_implementation("triton"):
        assert fft_conv(u.double().to(DEVICE), k.to(DEVICE)).dtype == torch.float64
        with by_form("vendor"):
            y = fft_conv(*(x.to(DEVICE) for x in (u, k, d_skip)), gate=gate.to(DEVICE))
    assert torch.equal(y.cpu(), fft_conv(u, k, d_skip, gate=gate)) or DEVICE == "cuda"
    exact = reference.fft_conv(*(x.double() for x in (u, k, d_skip)), gate=gate.double())
    assert_to_rounding(y.cpu(), exact, terms=u.numel())
