"""Liquid-S4, causal: its numbers from the equations, its modes, and what it shares with S4."""

import math

import numpy as np
import pytest
import torch
from blocks import run_in_pieces
from numerics import assert_close, assert_module_within_budget

from firebolt_vl.cmm import S4, CMMConfig, CrossModalModulator, DecodeState, LiquidS4
from firebolt_vl.kernels import use_implementation

KERNELS = pytest.mark.parametrize("liquid_kernel", ["elementwise", "product"])


def make(width=3, state_size=8, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return LiquidS4(width, state_size, **options).to(dtype).eval()


def text(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(liquid_kernel, liquid_order=3):
    """One channel with w = -2, dt = 1, so that B_1 = B / 2, and modes B_1 = (1 + i, 2), C = (3 - i, i)."""
    block = make(1, 4, liquid_order=liquid_order, liquid_kernel=liquid_kernel)
    with torch.no_grad():
        block.kernel.log_dt.zero_()
        block.kernel.log_A_real.fill_(math.log(2))
        block.kernel.A_imag.zero_()
        block.kernel.B.copy_(torch.tensor([[[2, 2], [4, 0]]]))
        block.kernel.C.copy_(torch.tensor([[[3, -1], [0, 1]]]))
    return block


@pytest.mark.parametrize(
    ("liquid_kernel", "kappa"),
    [
        # C . B_1^2 = (3 - i) 2i + 4i = 2 + 10i;  C . B_1^3 = (3 - i)(-2 + 2i) + 8i = -4 + 16i
        ("elementwise", [4, -8]),
        # sum B_1 = 3 + i, B_2 = (2 + 4i, 6 + 2i), C . B_2 = 8 + 16i;
        # sum B_2 = 8 + 6i, B_3 = (-8 + 44i, 36 + 52i), C . B_3 = -32 + 176i
        ("product", [16, -64]),
    ],
)
def test_the_weights_by_hand(liquid_kernel, kappa):
    assert_close(by_hand(liquid_kernel).product_weights(), torch.tensor([kappa]).double(), 1e-14)


@pytest.mark.parametrize(("liquid_kernel", "kappa_2", "kappa_3"), [("elementwise", 4, -8), ("product", 16, -64)])
def test_what_the_products_add_by_hand(liquid_kernel, kappa_2, kappa_3):
    """x = 1, 2, -1, 3: of two inputs 0, 2, -2, -3, of three 0, 0, -2, -6."""
    block = by_hand(liquid_kernel)
    plain = S4(1, 4).double().eval()
    plain.load_state_dict(block.state_dict())
    for one in (block, plain):
        one.gated = lambda y, *_: y
    x = torch.tensor([1.0, 2, -1, 3]).double().view(1, 4, 1)
    wanted = torch.tensor([0, 2 * kappa_2, -2 * kappa_2 - 2 * kappa_3, -3 * kappa_2 - 6 * kappa_3]).double()
    assert_close((block(x) - plain(x)).flatten(), wanted, 1e-13)


def from_the_equations(block, x):
    """docs/mathematics.md, 4.1, 4.3 and 4.9 token by token, with dense matrices of all N modes, in numpy."""
    parameters = {name: value.detach().double().numpy() for name, value in block.kernel.named_parameters()}
    weight, bias = (value.detach().double().numpy() for value in (block.output.weight, block.output.bias))
    halves = {name: parameters[name][..., 0] + 1j * parameters[name][..., 1] for name in "PBC"}
    w = -np.exp(parameters["log_A_real"]) + 1j * parameters["A_imag"]
    (batch, time, width), P = x.shape, block.liquid_order
    y = np.zeros((batch, time, width))
    for channel in range(width):
        dt = math.exp(parameters["log_dt"][channel])
        modes, low, B, C = (
            np.concatenate([half, half.conj()]) for half in (w[channel], *(halves[name][channel] for name in "PBC"))
        )
        A = np.diag(modes) - np.outer(low, low.conj())
        inverse = np.linalg.inv(2 / dt * np.eye(len(modes)) - A)
        dA, dB = inverse @ (2 / dt * np.eye(len(modes)) + A), inverse @ (2 * B)
        stored = len(modes) // 2
        powers = [dt * B[:stored] / (1 - dt * modes[:stored] / 2)]
        for _ in range(2, P + 1):
            last = powers[-1]
            powers.append(last * powers[0] if block.liquid_kernel == "elementwise" else last * last.sum())
        kappa = [2 * (C[:stored] @ power).real for power in powers]
        for row in range(batch):
            u, s = x[row, :, channel].numpy(), np.zeros(len(modes), dtype=complex)
            for t in range(time):
                s = dA @ s + dB * u[t]
                y[row, t, channel] = (C @ s).real + parameters["D"][channel] * u[t]
                for p in range(2, P + 1):
                    if t >= p - 1:
                        y[row, t, channel] += kappa[p - 1] * np.prod(u[t - p + 1 : t + 1])
    gelu = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
    value, gate = np.split(gelu @ weight.T + bias, 2, axis=-1)
    return torch.from_numpy(value / (1 + np.exp(-gate)))


@KERNELS
@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_mode_is_the_equations(liquid_kernel, order):
    block, x = make(liquid_order=order, liquid_kernel=liquid_kernel), text(2, 12, 3)
    wanted = from_the_equations(block, x)
    with torch.no_grad():
        assert_close(block(x), wanted, 1e-11)
        assert_close(run_in_pieces(block, x, None, [1, 2, 6])[0], wanted, 1e-11)
        assert_close(run_in_pieces(block, x, None, [])[0], wanted, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_of_order_one_it_is_s4_to_the_bit(dtype):
    block = make(liquid_order=1, dtype=dtype)
    torch.manual_seed(0)
    plain = S4(3, 8).to(dtype).eval()
    x, mask = text(2, 20, 3, dtype=dtype), torch.rand(2, 20) < 0.7
    with torch.no_grad():
        assert torch.equal(block(x, mask), plain(x, mask))
        (y, state), (wanted, state_of_plain) = block.prefill(x, mask), plain.prefill(x, mask)
        assert torch.equal(y, wanted)
        assert state.tensors.keys() == state_of_plain.tensors.keys() == {"modes"}
        assert torch.equal(state.tensors["modes"], state_of_plain.tensors["modes"])
        assert torch.equal(block.step(x[:, 0], state)[0], plain.step(x[:, 0], state_of_plain)[0])


def test_it_loads_what_s4_saved_and_the_other_way_round():
    plain, block = S4(3, 8).double().eval(), make(liquid_order=3)
    block.load_state_dict(plain.state_dict())
    x = text(1, 9, 3)
    assert_close(block(x), from_the_equations(block, x), 1e-11)
    again = S4(3, 8).double().eval()
    again.load_state_dict(block.state_dict())
    assert torch.equal(again(x), plain(x))
    assert {name: value.shape for name, value in block.named_parameters()} == {
        name: value.shape for name, value in plain.named_parameters()
    }


@KERNELS
def test_gradcheck(liquid_kernel):
    block = make(2, 4, liquid_order=3, liquid_kernel=liquid_kernel)
    names = [name for name, _ in block.named_parameters()]
    leaves = [value.detach().clone().requires_grad_() for value in block.parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (text(1, 5, 2).requires_grad_(), *leaves))


def test_the_state_is_the_last_inputs_and_what_a_mask_leaves_out_is_not_among_them():
    block, x = make(liquid_order=3), text(3, 6, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    _, state = block.prefill(x, mask)
    assert torch.equal(state.tensors["inputs"][0], x[0, 4:])
    assert torch.equal(state.tensors["inputs"][1], x[1, [0, 2]])
    assert torch.equal(state.tensors["inputs"][2], torch.stack([torch.zeros(3).double(), x[2, 3]]))
    _, state = block.prefill(x, mask.flip(0), state)
    assert torch.equal(state.tensors["inputs"][1], x[1, [0, 2]])
    assert torch.equal(state.tensors["inputs"][2], x[2, 4:])


def test_the_last_inputs_count_though_s4_s_own_state_does_not_have_them():
    block, x = make(liquid_order=2), text(1, 4, 3)
    with torch.no_grad():
        _, state = block.prefill(x)
        forgetful = DecodeState({**state.tensors, "inputs": 0 * state.tensors["inputs"]}, state.length)
        assert not torch.allclose(block.step(x[:, 0], state)[0], block.step(x[:, 0], forgetful)[0])


@KERNELS
def test_float32_is_within_the_budget_in_every_mode(liquid_kernel):
    block, x = make(16, dtype=torch.float32, liquid_order=3, liquid_kernel=liquid_kernel), text(2, 90, 16).float()

    def defined(block, x):
        with use_implementation("reference"):
            return 2 * [block(x)]

    with torch.no_grad():
        found = [block(x), run_in_pieces(block, x, None, [1, 60, 20])[0]]
        assert_module_within_budget(found, defined, block, [x])


def test_what_is_kept_of_the_weights_follows_the_parameters_and_the_choice():
    block, x = make(liquid_order=2), text(1, 5, 3)
    with torch.no_grad():
        before = block(x)
        block.liquid_kernel = "product"
        assert not torch.equal(block(x), before)
        block.liquid_kernel = "elementwise"
        assert torch.equal(block(x), before)
        block.kernel.C.mul_(2)
        assert_close(block(x), from_the_equations(block, x), 1e-11)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"liquid_order": 0}, ValueError, "LiquidS4: liquid_order is 0; expected at least 1"),
        ({"liquid_order": 2.0}, TypeError, "LiquidS4: liquid_order is 2.0; expected an integer"),
        ({"liquid_kernel": "kb"}, ValueError, "liquid_kernel is 'kb'; expected one of elementwise, product"),
        ({"state_size": 7}, ValueError, "LiquidS4: state_size is 7; expected an even number"),
    ],
)
def test_errors_name_the_argument(options, error, words):
    with pytest.raises(error, match=words):
        LiquidS4(3, **options)


def test_kernel_taps_are_refused():
    with pytest.raises(TypeError, match="kernel_taps"):
        LiquidS4(3, kernel_taps=9)
    with pytest.raises(ValueError, match="kernel_taps is 512; expected None where ssm is 'liquid'"):
        CMMConfig(text_width=8, grid_width=6, ssm="liquid", kernel_taps=512)


def test_the_modulator_has_the_order_and_the_kernel_of_its_configuration():
    config = CMMConfig(text_width=8, grid_width=6, ssm="liquid", liquid_order=3, liquid_kernel="product")
    ssm = CrossModalModulator(CMMConfig.from_dict(config.to_dict())).ssm
    assert (type(ssm), ssm.liquid_order, ssm.liquid_kernel) == (LiquidS4, 3, "product")
    ssm = CrossModalModulator(CMMConfig(text_width=8, grid_width=6, ssm="liquid")).ssm
    assert (ssm.liquid_order, ssm.liquid_kernel) == (2, "elementwise")
