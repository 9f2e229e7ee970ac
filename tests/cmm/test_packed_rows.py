"""Sequences packed into one row: each gives what it gives alone, and nothing crosses a border."""

import pytest
import torch
from blocks import MAKERS, WIDTH, make
from connectors import CONNECTORS, GRID_WIDTH, TEXT_WIDTH, make_connector, random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close, assert_module_within_budget
from triton_kernels import DEVICE, MARKS

from firebolt_vl.cmm import S4D, CMMConfig, CrossModalModulator
from firebolt_vl.kernels.implementation import NAMES, use_implementation

every_block = pytest.mark.parametrize("name", MAKERS)
PACKING = [name for name in CONNECTORS if name.startswith(("cmm", "cross"))]
OTHERS = [name for name in CONNECTORS if name not in PACKING]
every_connector = pytest.mark.parametrize("name", PACKING)


def borders_of(lengths, dtype=torch.int32) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=dtype)


@st.composite
def packed(draw, width: int, longest: int = 40):
    """(x [1, T, width] float64, lengths, borders); some sequences are empty, but not all."""
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=5).filter(any))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(1, sum(lengths), width, generator=generator, dtype=torch.float64)
    return x, lengths, borders_of(lengths, draw(st.sampled_from([torch.int32, torch.int64])))


def outputs_and_gradients(run, module, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = run(*leaves)
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    learns = [*leaves, *module.parameters()]
    return [y, *torch.autograd.grad(y, learns, cotangent, allow_unused=True, materialize_grads=True)]


@every_block
@settings(max_examples=12)
@given(packed(WIDTH))
def test_a_block_gives_each_sequence_what_it_gives_it_alone(name, text):
    x, lengths, borders = text
    block = make(name)

    def alone(x):
        return torch.cat([block(part) for part in x.split(lengths, 1)], 1)

    wanted = outputs_and_gradients(alone, block, x)
    found = outputs_and_gradients(lambda x: block(x, cu_seqlens=borders), block, x)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, relative=1e-10)


@every_block
@settings(max_examples=12)
@given(packed(WIDTH), st.data())
def test_a_block_reads_nothing_across_a_border(name, text, data):
    """Not even as a factor of zero: one sequence is not a number."""
    x, lengths, borders = text
    one = data.draw(st.sampled_from([number for number, length in enumerate(lengths) if length]))
    block = make(name, torch.float32)
    x = x.float()
    spoiled = x.clone()
    spoiled[:, borders[one] : borders[one + 1]] = float("nan")
    others = torch.ones(x.shape[1], dtype=torch.bool)
    others[borders[one] : borders[one + 1]] = False
    with torch.no_grad():
        assert torch.equal(block(spoiled, cu_seqlens=borders)[:, others], block(x, cu_seqlens=borders)[:, others])


@st.composite
def connector_rows(draw):
    """text [1,T,D_t], lengths, borders, grids [S,G,D_v] and what is given with them."""
    text, lengths, borders = draw(packed(TEXT_WIDTH, longest=9))
    S, G = len(lengths), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grids = torch.randn(S, G, GRID_WIDTH, generator=generator, dtype=torch.float64)
    sides = {
        "grid_mask": torch.rand(S, G, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0])),
        "grid_boxes": random_boxes(S, G, generator=generator),
        "grid_images": draw(st.none() | st.just(torch.randint(0, 3, (S, G), generator=generator))),
    }
    return text, lengths, borders, grids, sides


@every_connector
@settings(max_examples=10)
@given(connector_rows())
def test_a_connector_shows_each_sequence_its_own_grids(name, inputs):
    text, lengths, borders, grids, sides = inputs
    layer = make_connector(name)
    rows = lambda one: {key: None if x is None else x[one : one + 1] for key, x in sides.items()}  # noqa: E731

    def alone(text, grids):
        parts = enumerate(text.split(lengths, 1))
        return torch.cat([layer(part, grids[i : i + 1], **rows(i)) for i, part in parts if part.shape[1]], 1)

    wanted = outputs_and_gradients(alone, layer, text, grids)
    found = outputs_and_gradients(lambda *x: layer(*x, cu_seqlens=borders, **sides), layer, text, grids)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, relative=1e-9)
    with torch.no_grad():
        _, w = layer(text, grids, cu_seqlens=borders, return_weights=True, **sides)
        for one, (first, length) in enumerate(zip(borders.tolist(), lengths)):
            if length:
                part = slice(first, first + length)
                _, mine = layer(text[:, part], grids[one : one + 1], return_weights=True, **rows(one))
                assert_close(w[:, part], mine, relative=1e-10)


@pytest.mark.parametrize(
    ("implementation", "ssm", "grids"),
    [
        *((name, ssm, grids) for name in NAMES[:2] for ssm, grids in (("liquid", 5), ("s4d", 12), ("mamba", 5))),
        # The interpreter is slow; the scan of "s4d" is the same op as the tests of kernels run packed.
        *(pytest.param("triton", ssm, 5, marks=MARKS) for ssm in ("liquid", "mamba")),
    ],
)
def test_every_implementation_keeps_sequences_apart(implementation, ssm, grids):
    """Within the error budget of float32, value and gradients."""
    torch.manual_seed(0)
    lengths = [3, 1, 4]
    config = CMMConfig(text_width=8, grid_width=6, heads=2, head_dim=4, top_k=3, ssm=ssm, state_size=4, dropout=0.0)
    layer = CrossModalModulator(config).to(DEVICE)
    inputs = [torch.randn(shape).to(DEVICE) for shape in ((1, 8, 8), (3, grids, 6), (1, 8, 8))]
    boxes = torch.rand(3, grids, 4).sort(-1).values.to(DEVICE)

    def run(layer, text, grids, cotangent, implementation="reference", borders=None):
        text, grids = (x.detach().requires_grad_() for x in (text, grids))
        with use_implementation(implementation):
            if borders is not None:
                y = layer(text, grids, None, None, boxes.to(text.dtype), cu_seqlens=borders)
            else:
                parts = zip(text.split(lengths, 1), grids.split(1), boxes.to(text.dtype).split(1))
                y = torch.cat([layer(part, seen, None, None, box) for part, seen, box in parts], 1)
            return [y, *torch.autograd.grad(y, [text, grids, *layer.parameters()], cotangent)]

    found = run(layer, *inputs, implementation, borders_of(lengths).to(DEVICE))
    assert_module_within_budget(found, run, layer, inputs)


def test_dropout_drops_a_channel_for_one_sequence():
    block = S4D(WIDTH, 8, dropout=0.5).double().train()
    torch.nn.init.constant_(block.output.bias, 0.0)
    x = torch.randn(1, 600, WIDTH, dtype=torch.float64)
    seen = []
    block.output.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0][0]))
    block(x, cu_seqlens=torch.arange(0, 601, 3))
    kept = (seen[0] != 0).view(200, 3, WIDTH)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert 0.3 < kept.double().mean() < 0.7


@every_block
def test_bad_borders_are_named(name):
    block, x = make(name), torch.randn(1, 6, WIDTH, dtype=torch.float64)
    owner = type(block).__name__
    for wrong in ([0, 4, 2, 6], [0, 3], [1, 6], [0, 3, 7], [6], []):
        with pytest.raises(ValueError, match=rf"{owner}: cu_seqlens is .*; expected borders that rise from 0 to T = 6"):
            block(x, cu_seqlens=torch.tensor(wrong, dtype=torch.int64))
    with pytest.raises(ValueError, match="cu_seqlens is given with 2 rows; expected one"):
        block(x.expand(2, -1, -1), cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(TypeError, match="cu_seqlens is float32; expected one of int32, int64"):
        block(x, cu_seqlens=torch.tensor([0.0, 6.0]))
    with pytest.raises(ValueError, match="mask and cu_seqlens are both given; expected one of them"):
        block(x, torch.ones(1, 6, dtype=torch.bool), cu_seqlens=torch.tensor([0, 6]))
    empty = block(x[:, :0], cu_seqlens=torch.tensor([0, 0, 0]))
    assert empty.shape == (1, 0, WIDTH)


def test_a_connector_names_what_does_not_fit():
    layer = make_connector("cmm_s4d")
    text = torch.randn(1, 6, TEXT_WIDTH, dtype=torch.float64)
    grids = torch.randn(3, 5, GRID_WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="grids has 3 rows; expected 2, one for each sequence"):
        layer(text, grids, cu_seqlens=torch.tensor([0, 4, 6]))
    with pytest.raises(ValueError, match="text_mask and cu_seqlens are both given"):
        layer(text, grids, torch.ones(1, 6, dtype=torch.bool), cu_seqlens=torch.tensor([0, 4, 5, 6]))
    with pytest.raises(ValueError, match=r"cu_seqlens is \[0, 4, 5\]; expected borders that rise"):
        layer(text, grids, cu_seqlens=torch.tensor([0, 4, 5]))


@pytest.mark.parametrize("name", OTHERS)
def test_a_connector_that_puts_grids_before_the_text_takes_rows_alone(name):
    layer = make_connector(name)
    text, grids = (torch.randn(1, 6, width, dtype=torch.float64) for width in (TEXT_WIDTH, GRID_WIDTH))
    with pytest.raises(ValueError, match="cu_seqlens is given; expected None, as it puts grids before the text"):
        layer(text, grids[:, :5], cu_seqlens=torch.tensor([0, 6]))
