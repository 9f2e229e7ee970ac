"""selective_state_update: a step of selective_scan, its definition in float64, and what it does to memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from triton_kernels import DEVICE, MARKS, dtypes

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.kernels import reference, selective_scan, selective_state_update, use_implementation

BOTH = pytest.mark.parametrize(
    "op", [selective_state_update, reference.selective_state_update], ids=["public", "reference"]
)
KINDS = st.sampled_from(["channels", "heads", "tied heads"])
OPTIONAL = st.sets(st.sampled_from(["D", "z", "dt_bias"]))
DEFINED = reference.selective_state_update


def inputs(B=2, channels=(4,), N=3, groups=None, dtype=torch.float64, tied=False, seed=0):
    """Arguments by name; `tied` gives a head one step size, decay and skip, as Mamba-2 has them.

    Step sizes are of both signs, since the op takes them where no softplus makes them positive: then exp(dt A) grows. A
    is at most some 5, however many modes there are, so that it stays far below the end of float32 (exp(88)), beyond
    which the definition itself is not finite.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def of_channels(*rows):
        return normal(*rows, channels[0], 1).expand(*rows, *channels) if tied else normal(*rows, *channels)

    of_matrix = (B, N) if groups is None else (B, groups, N)
    A = -of_channels().abs().unsqueeze(-1).expand(*channels, N)
    if not tied:
        A = A * torch.arange(1, N + 1, dtype=dtype) / N
    return {
        "state": normal(B, *channels, N),
        "x": normal(B, *channels),
        "dt": of_channels(B),
        "A": A,
        "B": normal(*of_matrix),
        "C": normal(*of_matrix),
        "D": of_channels(),
        "z": normal(B, *channels),
        "dt_bias": of_channels(),
    }


def run(op, named, **options):
    """y and the state afterwards, of a state of its own."""
    state = named["state"].clone(memory_format=torch.preserve_format)
    return op(**named | {"state": state}, **options), state


@st.composite
def drawn(draw, dtype=torch.float64):
    kind, groups = draw(KINDS), draw(st.sampled_from([None, 1, 2]))
    channels = (4,) if kind == "channels" else (draw(st.sampled_from([2, 4])), draw(st.integers(1, 5)))
    sizes = {"B": draw(st.integers(1, 3)), "N": draw(st.sampled_from([1, 3, 4, 17])), "groups": groups}
    named = inputs(**sizes, channels=channels, dtype=dtype, tied=kind == "tied heads", seed=draw(st.integers(0, 99)))
    left_out = {"D", "z", "dt_bias"} - draw(OPTIONAL)
    return {name: tensor for name, tensor in named.items() if name not in left_out}


def test_the_numbers_are_those_of_the_equation():
    """One channel of two modes, by hand."""
    state = torch.tensor([[[1.0, -2.0]]], dtype=torch.float64)
    numbers = {"x": 3.0, "dt": 0.5, "z": 2.0}
    named = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in numbers.items()}
    matrices = {"A": [[-1.0, -2.0]], "B": [[4.0, 5.0]], "C": [[6.0, -1.0]]}
    named |= {name: torch.tensor(value, dtype=torch.float64) for name, value in matrices.items()}
    D, bias = (torch.tensor([value], dtype=torch.float64) for value in (7.0, 0.25))
    y = selective_state_update(state, **named, D=D, dt_bias=bias, dt_softplus=True)
    step = math.log1p(math.exp(0.75))
    h = [math.exp(-step) * 1 + step * 4 * 3, math.exp(-2 * step) * -2 + step * 5 * 3]
    assert state.flatten().tolist() == pytest.approx(h, rel=1e-15)
    assert y.item() == pytest.approx((6 * h[0] - h[1] + 7 * 3) * 2 / (1 + math.exp(-2)), rel=1e-15)


@given(named=drawn(), softplus=st.booleans())
def test_it_is_the_definition(named, softplus):
    for found, wanted in zip(*(run(op, named, dt_softplus=softplus) for op in (selective_state_update, DEFINED))):
        assert_close(found, wanted, relative=1e-13)


@BOTH
@given(named=drawn(), softplus=st.booleans())
def test_it_is_a_step_of_the_scan(op, named, softplus):
    """Heads are channels in the scan, one group after the other."""
    rows, N = named["state"].shape[0], named["state"].shape[-1]
    flat = {name: tensor.reshape(rows, -1, 1) for name, tensor in named.items() if name in ("x", "dt", "z")}
    flat |= {name: tensor.reshape(-1) for name, tensor in named.items() if name in ("D", "dt_bias")}
    A, state = named["A"].reshape(-1, N), named["state"].reshape(rows, -1, N)
    B, C = (named[name].unsqueeze(-1) for name in "BC")
    given = {"delta_bias": flat.get("dt_bias"), "delta_softplus": softplus, "D": flat.get("D"), "z": flat.get("z")}
    y, last = selective_scan(flat["x"], flat["dt"], A, B, C, **given, return_last_state=True, initial_state=state)
    found, after = run(op, named, dt_softplus=softplus)
    assert_close(found.reshape(y.shape), y, relative=1e-12)
    assert_close(after.reshape(last.shape), last, relative=1e-12)


def test_steps_are_the_whole():
    L = 19
    generator = torch.Generator().manual_seed(1)
    named, sequences = inputs(), {}
    for name in ("x", "dt", "B", "C", "z"):
        sequences[name] = torch.randn(*named[name].shape, L, generator=generator, dtype=torch.float64)
    scanned = {"u": sequences["x"], "delta": sequences["dt"], **{name: sequences[name] for name in "BCz"}}
    constants = {"A": named["A"], "D": named["D"]}
    options = {"delta_bias": named["dt_bias"], "delta_softplus": True, "return_last_state": True}
    y, last = selective_scan(**scanned, **constants, **options, initial_state=named["state"])
    state = named["state"].clone()
    for t in range(L):
        now = {name: tensor[..., t] for name, tensor in sequences.items()}
        y_t = selective_state_update(state, **now, **constants, dt_bias=named["dt_bias"], dt_softplus=True)
        assert_close(y_t, y[..., t], relative=1e-12)
    assert_close(state, last, relative=1e-12)


@pytest.mark.parametrize("layout", ["transposed", "strided", "part"])
def test_the_state_is_changed_where_it_lies(layout):
    named = inputs()
    wanted, after = run(selective_state_update, named)
    memory = torch.full((2, 8, 6), 7.0, dtype=torch.float64)
    transposed = memory[:, :4, :3].mT.contiguous().mT
    state = {"transposed": transposed, "strided": memory[:, ::2, ::2], "part": memory[:, 4:, 3:]}[layout]
    state.copy_(named["state"])
    y = selective_state_update(**named | {"state": state})
    assert torch.equal(y, wanted)
    assert torch.equal(state, after)
    if layout != "transposed":
        state.fill_(7)
        assert (memory == 7).all()


def test_a_graph_that_had_saved_the_state_is_told():
    named = {name: tensor.float() for name, tensor in inputs().items()}
    weight = torch.ones_like(named["state"], requires_grad=True)
    loss = (weight * named["state"]).sum()
    with torch.no_grad():
        selective_state_update(**named)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_kept_in_the_dtype_of_the_state(dtype):
    named = {name: tensor.to(dtype) for name, tensor in inputs().items()}
    y, after = run(selective_state_update, named, dt_softplus=True)
    wide = {name: tensor.float() for name, tensor in named.items()}
    wanted, wide_after = run(selective_state_update, wide, dt_softplus=True)
    assert (y.dtype, after.dtype) == (dtype, dtype)
    assert torch.equal(y, wanted.to(dtype))
    assert torch.equal(after, wide_after.to(dtype))


def test_inference_mode_and_a_state_made_in_it():
    named = inputs()
    wanted, after = run(selective_state_update, named)
    with torch.inference_mode():
        y, found = run(selective_state_update, named)
    assert torch.equal(y, wanted)
    assert torch.equal(found, after)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": torch.randn(2, 4)}, ValueError, r"state has shape \[2, 4\]; expected \[batch D N\]"),
        ({"state": torch.zeros(2, 4, 3, dtype=torch.cfloat)}, TypeError, "state is complex64"),
        ({"state": torch.zeros(2, 4, 1).expand(2, 4, 3)}, ValueError, "expected memory of its own for each element"),
        ({"state": torch.zeros(2, 2, 2, 3)}, ValueError, r"x has shape \[2, 4\]; expected \[batch H P\]"),
        ({"x": torch.randn(2, 4, 1)}, ValueError, r"x has shape \[2, 4, 1\]; expected \[batch D\] with batch = 2"),
        ({"dt": None}, TypeError, "dt is None"),
        ({"A": torch.randn(3, 4)}, ValueError, r"A has shape \[3, 4\]; expected \[D N\] with D = 4, N = 3"),
        ({"A": torch.zeros(4, 3, dtype=torch.cfloat)}, TypeError, "A is complex64"),
        ({"B": torch.randn(2, 4)}, ValueError, r"B has shape \[2, 4\]; expected \[batch N\]"),
        ({"B": torch.randn(2, 3, 3)}, ValueError, "B has 3 groups; expected a divisor of D = 4"),
        ({"C": torch.randn(2, 2, 3)}, ValueError, "C has 2 groups; expected 1, as B has"),
        ({"C": torch.randn(3)}, ValueError, r"C is \[3\]; expected \[batch, N\] or \[batch, groups, N\]"),
        ({"C": 3}, ValueError, "C is int; expected"),
        ({"D": torch.randn(3)}, ValueError, r"D has shape \[3\]"),
        ({"z": torch.randn(2, 3)}, ValueError, r"z has shape \[2, 3\]"),
        ({"dt_bias": torch.randn(1, 4)}, ValueError, r"dt_bias has shape \[1, 4\]"),
        ({"x": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "x is int64"),
        ({"A": torch.randn(4, 3, requires_grad=True)}, RuntimeError, "A needs a gradient; expected none, since"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_and_the_state_is_as_it_was(change, error, message):
    good = {"state": torch.zeros(2, 4, 3), "x": torch.randn(2, 4), "dt": torch.randn(2, 4), "A": torch.randn(4, 3)}
    good |= {"B": torch.randn(2, 3), "C": torch.randn(2, 3)}
    before = good["state"].clone()
    with pytest.raises(error, match=message):
        selective_state_update(**good | change)
    assert torch.equal(good["state"], before)


def test_it_compiles_into_one_graph_that_changes_the_state():
    def step(state, x, rest):
        return selective_state_update(state, 2 * x, **rest) + 1

    check_one_graph(step)


def check_one_graph(step):
    named = {name: tensor.float().to(DEVICE) for name, tensor in inputs(channels=(4,)).items()}
    rest = {name: tensor for name, tensor in named.items() if name not in ("state", "x")}
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, wanted = named["state"].clone(), named["state"].clone()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(found, named["x"], rest), step(wanted, named["x"], rest))
            torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, named["state"])


class TestTriton:
    """By the kernel."""

    pytestmark = MARKS

    @given(data=st.data(), dtype=dtypes(), of_state=dtypes(), softplus=st.booleans())
    def test_it_is_within_the_budget(self, data, dtype, of_state, softplus):
        named = {name: tensor.to(dtype) for name, tensor in data.draw(drawn(torch.float32)).items()}
        named["state"] = named["state"].to(of_state)
        on_device = {name: tensor.to(DEVICE) for name, tensor in named.items()}
        with use_implementation("triton"):
            found = [tensor.cpu() for tensor in run(selective_state_update, on_device, dt_softplus=softplus)]

        def defined(tensors):
            return run(DEFINED, dict(zip(named, tensors)), dt_softplus=softplus)

        assert (problem := over_budget(found, defined, list(named.values()), names=["y", "state"])) is None, problem

    @pytest.mark.parametrize("op_of", ["as it lies", "strided"])
    def test_nothing_beside_the_state_is_changed(self, op_of):
        named = {name: tensor.float().to(DEVICE) for name, tensor in inputs(channels=(3, 5), N=5).items()}
        memory = torch.full((2, 3, 10, 10), 7.0, device=DEVICE)
        state = memory[:, :, ::2, ::2] if op_of == "strided" else memory[:, :, 5:, 5:]
        state.copy_(named["state"])
        others = {name: tensor.clone() for name, tensor in named.items() if name != "state"}
        with use_implementation("triton"):
            wanted, after = run(selective_state_update, named)
            y = selective_state_update(**named | {"state": state})
        assert torch.equal(y, wanted)
        assert torch.equal(state, after)
        assert all(torch.equal(named[name], tensor) for name, tensor in others.items())
        state.fill_(7)
        assert (memory == 7).all()

    def test_a_graph_that_had_saved_the_state_is_told(self):
        with use_implementation("triton"):
            test_a_graph_that_had_saved_the_state_is_told()

    def test_it_repeats_bit_for_bit(self):
        named = {name: tensor.float().to(DEVICE) for name, tensor in inputs(channels=(4, 33), N=17).items()}
        with use_implementation("triton"):
            for first, second in zip(*(run(selective_state_update, named, dt_softplus=True) for _ in range(2))):
                assert torch.equal(first, second)

    def test_it_compiles_into_one_graph_that_changes_the_state(self):
        with use_implementation("triton"):
            test_it_compiles_into_one_graph_that_changes_the_state()

    def test_opcheck_passes(self):
        named = {name: tensor.float().to(DEVICE) for name, tensor in inputs(channels=(4, 2), groups=2).items()}
        torch.library.opcheck(torch.ops.firebolt_vl.selective_state_update, (*named.values(), True))
