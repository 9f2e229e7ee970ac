"""vandermonde and cauchy by their Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_to_rounding
from sequences import random_modes
from triton_kernels import DEVICE, MARKS, by_triton, check_against_definition

from firebolt_vl.kernels import cauchy, reference, vandermonde
from firebolt_vl.kernels.common import triton_tiles
from firebolt_vl.kernels.common.device import use_implementation

pytestmark = MARKS
# One block of taps and several, powers of two and their neighbours, primes.
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 97, 127, 128, 129, 255, 256, 257, 511, 512, 513, 521, 1025)
MODES = (1, 2, 3, 5, 16, 17, 33)
# Of up to 10 radians a step: many turns, as S4D's higher modes make; few; none, where the definition is at its best.
ANGLES = (1.0, 0.1, 1e-3, 0.0)


@st.composite
def arranged(draw, make, *shape: int):
    """make(*shape): contiguous, transposed in memory, every second, expanded over the first axis, or conjugates."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded", "conjugated"]))
    if kind == "transposed":
        return make(*reversed(shape)).permute(*reversed(range(len(shape))))
    if kind == "strided":
        return make(*shape[:-1], 2 * shape[-1])[..., ::2]
    if kind == "expanded":
        return make(1, *shape[1:]).expand(shape)
    return make(*shape).conj() if kind == "conjugated" else make(*shape)


def log_modes(*shape: int, angle: float = 1.0):
    log_z = random_modes(*shape, dtype=torch.complex64)
    return torch.complex(log_z.real, angle * log_z.imag)


def poles(*shape: int):
    """Left of the nodes."""
    return torch.complex(-0.05 - torch.rand(shape), 30 * torch.randn(shape))


def nodes(*shape: int):
    return torch.complex(torch.rand(shape), 40 * torch.rand(shape))


def inputs(D=2, N=5, L=40):
    return [torch.randn(D, N, dtype=torch.complex64), random_modes(D, N, dtype=torch.complex64)], [torch.randn(D, L)]


# Of fewer channels the maximum of an error is that of a few numbers, and luck.
@given(data=st.data(), D=st.integers(3, 5), N=st.sampled_from(MODES), L=st.sampled_from(LENGTHS))
def test_vandermonde_and_its_gradients_are_the_definitions(data, D, N, L):
    c = data.draw(layouts(D, N, dtype=torch.complex64))
    angle = data.draw(st.sampled_from(ANGLES))
    log_z = data.draw(arranged(lambda *shape: log_modes(*shape, angle=angle), D, N))
    dK = data.draw(layouts(D, L, dtype=torch.float32))
    check_against_definition(vandermonde, [c, log_z], [dK], L=L)


def test_taps_beyond_a_block_are_added_up_in_a_program(monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 4)
    (c, log_z), cotangents = inputs(D=2, N=5, L=2100)
    check_against_definition(vandermonde, [c, log_z], cotangents, L=2100)


@pytest.mark.parametrize(
    ("of_c", "of_modes"),
    [((4,), (4,)), ((1, 4), (1, 4)), ((2, 3, 4), (3, 4)), ((3, 4), (2, 3, 4)), ((4,), (2, 4)), ((2, 1, 4), (3, 4))],
)
def test_leading_axes_broadcast(of_c, of_modes):
    c, log_z = torch.randn(of_c, dtype=torch.complex64), random_modes(*of_modes, dtype=torch.complex64)
    leading = torch.broadcast_shapes(of_c[:-1], of_modes[:-1])
    K = check_against_definition(vandermonde, [c, log_z], [torch.randn(*leading, 37)], L=37)[0]
    assert K.shape == (*leading, 37)


@pytest.mark.parametrize("L", [1, 64, 8192, 100_000])
def test_phases_stay_exact_over_any_length(L):
    """The plain formula rounds l times an angle: 1e-5 of it and more lost at 8192 taps."""
    c = torch.randn(1, 32, dtype=torch.complex64)
    log_z = torch.complex(torch.full((1, 32), -1e-5), 9 + torch.rand(1, 32))
    exact = reference.vandermonde(c.to(torch.complex128), log_z.to(torch.complex128), L)
    with use_implementation("triton"):
        assert_to_rounding(vandermonde(c.to(DEVICE), log_z.to(DEVICE), L).cpu(), exact, terms=32)


def test_extreme_modes_stay_finite():
    log_z = torch.tensor([[-1e4 + 1j, 0j, -0.1 + 1e5j, -200.0 + 0j]], dtype=torch.complex64)
    c = torch.ones(1, 4, dtype=torch.complex64)
    for tensor in by_triton(vandermonde, [c, log_z], [torch.randn(1, 300)], L=300):
        assert torch.isfinite(tensor).all()
    assert by_triton(vandermonde, [c, log_z], [torch.ones(1, 1)], L=1)[0].item() == 8


@pytest.mark.parametrize("L", [3, 19])
def test_growing_modes_that_overflow_beyond_the_last_tap_leave_no_trace(L):
    c, log_z = torch.randn(4, 3, dtype=torch.complex64), torch.full((4, 3), 84 / L + 1j)
    for tensor in check_against_definition(vandermonde, [c, log_z], [torch.randn(4, L)], L=L):
        assert torch.isfinite(tensor).all()


def test_vandermonde_repeats_bit_for_bit():
    tensors, cotangents = inputs(D=2, N=33, L=1100)
    for first, second in zip(*(by_triton(vandermonde, tensors, cotangents, L=1100) for _ in range(2))):
        assert torch.equal(first, second)


def test_offsets_pass_2_to_the_31():
    """Channels 2^30 numbers apart, backward too. Memory that nothing touches costs nothing."""
    (c, log_z), (dK,) = inputs(D=3, N=4, L=6)
    far = torch.empty(3 * 2**30, device=DEVICE).as_strided((3, 6), (2**30, 1)).copy_(dK)
    for ours, near in zip(*(by_triton(vandermonde, [c, log_z], [gradient], L=6) for gradient in (far, dK))):
        assert torch.equal(ours, near)


@given(
    data=st.data(),
    rows=st.sampled_from([1, 2, 5]),
    channels=st.integers(2, 3),
    N=st.sampled_from([1, 2, 3, 8, 9, 17]),
    Lz=st.sampled_from([1, 2, 7, 31, 32, 33, 97, 127, 128, 129, 257]),
)
def test_cauchy_and_its_gradients_are_the_definitions(data, rows, channels, N, Lz):
    v = data.draw(layouts(rows, channels, N, dtype=torch.complex64))
    z, w = data.draw(arranged(nodes, Lz)), data.draw(arranged(poles, channels, N))
    gradient = data.draw(layouts(rows, channels, Lz, dtype=torch.complex64))
    check_against_definition(cauchy, [v, z, w], [gradient])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("far", ["v", "z", "w", "gradient"])
def test_offsets_of_cauchy_pass_2_to_the_31(far, axis):
    """Of each axis 2^29 pairs of numbers apart, backward too. Memory that nothing touches costs nothing."""
    near = {"v": torch.randn(3, 3, 3, dtype=torch.complex64), "z": nodes(3), "w": poles(3, 3)}
    near["gradient"] = torch.randn(3, 3, 3, dtype=torch.complex64)
    tensor = near[far]
    if axis >= tensor.ndim:
        pytest.skip("it has no such axis")
    strides = [2**29 if number == axis else stride for number, stride in enumerate(tensor.stride())]
    moved = torch.empty(3 * 2**29, dtype=torch.complex64, device=DEVICE).as_strided(tensor.shape, strides).copy_(tensor)
    found = []
    for tensors in (near, near | {far: moved}):
        found.append(by_triton(cauchy, [tensors["v"], tensors["z"], tensors["w"]], [tensors["gradient"]]))
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("Lz", [17, 257])
def test_cauchy_of_as_many_poles_as_a_model_has_is_within_the_budget(Lz):
    v, z, w = torch.randn(2, 4, 32, dtype=torch.complex64), nodes(Lz), poles(4, 32)
    check_against_definition(cauchy, [v, z, w], [torch.randn(2, 4, Lz, dtype=torch.complex64)])


@pytest.mark.parametrize(
    ("of_v", "of_w"),
    [((), ()), ((3,), (3,)), ((2, 2, 3), (2, 3)), ((3,), ()), ((), (3,)), ((1, 3), (2, 1)), ((6,), ())],
)
def test_leading_axes_of_a_cauchy_product_broadcast(of_v, of_w):
    v, z, w = torch.randn(*of_v, 4, dtype=torch.complex64), nodes(9), poles(*of_w, 4)
    leading = torch.broadcast_shapes(of_v, of_w)
    gradient = torch.randn(*leading, 9, dtype=torch.complex64)
    sums = check_against_definition(cauchy, [v, z, w], [gradient])[0]
    assert sums.shape == (*leading, 9, 2)


def test_channels_and_nodes_beyond_a_block_are_added_up_in_a_program(monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 2)
    v, z, w = torch.randn(2, 10, 3, dtype=torch.complex64), nodes(100), poles(10, 3)
    check_against_definition(cauchy, [v, z, w], [torch.randn(2, 10, 100, dtype=torch.complex64)])


def test_a_node_that_is_a_pole_is_not_finite_and_leaves_the_others_alone():
    v, z, w = torch.randn(2, 3, dtype=torch.complex64), nodes(5), poles(2, 3)
    with use_implementation("triton"):
        alone, together = (cauchy(v.to(DEVICE), x.to(DEVICE), w.to(DEVICE)) for x in (z, torch.cat([z, w[0, :1]])))
    assert torch.equal(together[:, :5], alone)
    assert not torch.isfinite(torch.view_as_real(together[0, 5])).any()


def test_nodes_far_beyond_the_poles_stay_exact():
    """As those of the bilinear map are near its Nyquist point."""
    v, z, w = torch.randn(4, 3, dtype=torch.complex64), nodes(8) * 1e8, poles(4, 3)
    check_against_definition(cauchy, [v, z, w], [torch.randn(4, 8, dtype=torch.complex64)])


def test_cauchy_repeats_bit_for_bit():
    tensors, gradient = (torch.randn(3, 9, dtype=torch.complex64), nodes(200), poles(3, 9)), torch.randn(3, 200)
    for first, second in zip(*(by_triton(cauchy, tensors, [gradient]) for _ in range(2))):
        assert torch.equal(first, second)


def test_gradients_of_nodes_alone_or_of_all_but_them_are_those_of_all():
    tensors, gradient = (torch.randn(2, 3, dtype=torch.complex64), nodes(7), poles(2, 3)), torch.randn(2, 7)
    wanted = by_triton(cauchy, tensors, [gradient])[1:]
    for asked in ((0,), (1,), (2,), (0, 2)):
        leaves = [x.to(DEVICE).requires_grad_(number in asked) for number, x in enumerate(tensors)]
        with use_implementation("triton"):
            sums = cauchy(*leaves)
        found = torch.autograd.grad(sums, [leaves[number] for number in asked], gradient.to(DEVICE, sums.dtype))
        for number, ours in zip(asked, found):
            assert torch.equal(torch.view_as_real(ours), wanted[number])


def test_float64_goes_by_pytorch():
    c, log_z, w = torch.randn(2, 3, dtype=torch.complex64), random_modes(2, 3), poles(2, 3)
    with use_implementation("triton"):
        assert vandermonde(c.to(DEVICE), log_z.to(DEVICE), 5).dtype == torch.float64
        assert cauchy(c.to(DEVICE), nodes(4).to(DEVICE, torch.complex128), w.to(DEVICE)).dtype == torch.complex128
