"""cauchy: sums over conjugate pairs of poles."""

import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from sequences import assert_op_within_budget, assert_same_op, cotangent_layouts

from firebolt_vl.kernels import cauchy, reference
from firebolt_vl.kernels.spectrum import pytorch

BOTH = pytest.mark.parametrize("op", [cauchy, reference.cauchy], ids=["public", "reference"])


def poles(*shape: int, dtype=torch.complex128) -> torch.Tensor:
    """Left of the nodes, which lie on the imaginary axis, as those of S4 do."""
    real, imag = torch.rand(*shape, dtype=torch.float64), 30 * torch.randn(*shape, dtype=torch.float64)
    return torch.complex(-0.05 - real, imag).to(dtype)


def nodes(count: int, dtype=torch.complex128) -> torch.Tensor:
    return torch.complex(torch.zeros(count, dtype=torch.float64), torch.linspace(0, 60, count).double()).to(dtype)


@BOTH
def test_the_sum_is_that_of_the_dense_conjugated_system(op):
    """1 x (z - diag(w, conj w))^-1 v by solving, over the full set of modes."""
    v, w, z = torch.randn(3, 4, dtype=torch.complex128), poles(3, 4), nodes(6)
    full_v, full_w = torch.cat([v, v.conj()], -1), torch.cat([w, w.conj()], -1)
    systems = z[:, None, None, None] * torch.eye(8) - torch.diag_embed(full_w)  # [Lz, 3, 8, 8]
    wanted = torch.linalg.solve(systems, full_v.expand(6, 3, 8)).sum(-1).mT
    assert_close(op(v, z, w), wanted, relative=1e-12)


SHAPES = [((), ()), ((3,), (3,)), ((4, 3), (3,)), ((2, 4, 3), (4, 3)), ((3,), ()), ((), (3,)), ((1, 3), (2, 1))]


@given(
    data=st.data(),
    shapes=st.sampled_from(SHAPES),
    N=st.integers(1, 5),
    Lz=st.integers(1, 9),
    block=st.sampled_from([1, 20, 2**17]),
    nodes_at_once=st.sampled_from([1, 4, 64]),
    cotangent_layout=cotangent_layouts,
)
def test_value_and_gradients_are_the_references(data, shapes, N, Lz, block, nodes_at_once, cotangent_layout):
    v = data.draw(layouts(*shapes[0], N, dtype=torch.complex128))
    w = data.draw(layouts(*shapes[1], N, dtype=torch.complex128))
    z = data.draw(layouts(Lz, dtype=torch.complex128)) + 8  # away from the poles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "block_numbers", lambda device: block)
        patch.setattr(pytorch, "NODES_AT_ONCE", nodes_at_once)
        patch.setattr(pytorch, "SUMMED_AT_ONCE", 2)
        assert_same_op(cauchy, reference.cauchy, (v, z, w), cotangent_layout)


@BOTH
def test_gradcheck(op):
    v, w, z = torch.randn(2, 2, 3, dtype=torch.complex128), poles(2, 3) / 10, nodes(4) / 10
    assert torch.autograd.gradcheck(op, [tensor.requires_grad_() for tensor in (v, z, w)])


@pytest.mark.parametrize("Lz", [17, 64, 257])
def test_float32_error_is_within_the_budget(Lz):
    v, w, z = torch.randn(4, 16, 32, dtype=torch.complex64), poles(16, 32, dtype=torch.complex64), nodes(Lz)
    assert_op_within_budget(cauchy, reference.cauchy, (v, z.to(torch.complex64), w))


def test_no_block_of_all_modes_and_nodes_is_made():
    biggest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                biggest = max(biggest, result.numel())
            return result

    v, w, z = torch.randn(64, 32, dtype=torch.complex64), poles(64, 32, dtype=torch.complex64), nodes(1024)
    with Watch():
        cauchy(v, z.to(torch.complex64), w)
    assert biggest < 64 * 32 * 1024 / 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"v": torch.randn(2, 3)}, TypeError, "v is float32"),
        ({"z": torch.randn(4)}, TypeError, "z is float32"),
        ({"z": torch.randn(2, 4, dtype=torch.cdouble)}, ValueError, r"z has shape \[2, 4\]; expected \[Lz\]"),
        ({"w": torch.randn(2, 5, dtype=torch.cdouble)}, ValueError, r"w has shape \[2, 5\]; expected .* with N = 3"),
        ({"w": torch.randn(5, 3, dtype=torch.cdouble)}, ValueError, r"axes \[2\]; expected .* \[5\] of w"),
        ({"z": torch.randn(0, dtype=torch.cdouble)}, ValueError, "z has shape .*; expected no axis of size 0"),
        ({"w": None}, TypeError, "w is None"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"v": torch.randn(2, 3, dtype=torch.cdouble), "z": nodes(4), "w": poles(2, 3)}
    with pytest.raises(error, match=message):
        cauchy(**good | change)
