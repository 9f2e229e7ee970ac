"""grounded_film and film_residual by their Triton kernels: in the interpreter, or on a GPU (`make test-gpu`)."""

import math

import pytest
import torch
from correlations import decided, layouts, masks
from hypothesis import assume, given
from hypothesis import strategies as st
from triton_kernels import DEVICE, DTYPES, MARKS, by_triton, check_against_definition, dtypes, results

from firebolt_vl.kernels import film_residual, grounded_film, use_implementation
from firebolt_vl.kernels.common import triton_tiles
from firebolt_vl.kernels.modulation import triton_few_film, triton_few_grids, triton_gradients

pytestmark = MARKS


def grounded_inputs(B=2, T=4, G=6, H=3, D_h=5, D=7, dtype=torch.float32):
    """x, q, k, table, bias, gate, ln_weight, ln_bias; then the gradients of x_f and w."""
    shapes = [(B, T, D), (B, T, H, D_h), (B, G, H, D_h), (B, G, 2 * D), (2 * D,), (1,), (D,), (D,)]
    return [torch.randn(shape).to(dtype) for shape in shapes], [torch.randn(B, T, D), torch.randn(B, T, G)]


def residual_inputs(B=2, T=4, G=6, D=7, dtype=torch.float32, norm=True):
    """y, x, w, table, bias, gate and, with `norm`, ln_weight, ln_bias; then the gradients of what comes out."""
    shapes = [(B, T, D), (B, T, D), (B, T, G), (B, G, 2 * D), (2 * D,), (1,)] + [(D,), (D,)] * norm
    return [torch.randn(shape).to(dtype) for shape in shapes], [torch.randn(B, T, D)] * (1 + norm)


@st.composite
def sizes(draw):
    """B, T, G, D: one block of tokens, grids and columns and several; powers of two and their neighbours."""
    T, G = draw(st.sampled_from([1, 2, 3, 5, 9, 16, 17, 33])), draw(st.sampled_from([1, 2, 5, 16, 17, 33, 65]))
    return draw(st.integers(1, 2)), T, G, draw(st.sampled_from([1, 2, 7, 16, 33, 40]))


@given(data=st.data(), size=sizes(), dtype=dtypes(), renormalize=st.booleans(), ties=st.booleans())
def test_value_and_gradients_of_grounded_film_are_the_definitions(data, size, dtype, renormalize, ties):
    B, T, G, D = size
    H, D_h = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 5]))
    q = data.draw(layouts(B, T, H, D_h, dtype=dtype, integers=ties))
    k = data.draw(layouts(B, G, H, D_h, dtype=dtype, integers=ties))
    x, table = data.draw(layouts(B, T, D, dtype=dtype)), data.draw(layouts(B, G, 2 * D, dtype=dtype))
    bias, ln_weight, ln_bias, gate = (data.draw(layouts(n, dtype=dtype)) for n in (2 * D, D, D, 1))
    top_k = data.draw(st.none() | st.integers(0, G + 1))
    options = {"grid_mask": data.draw(masks(B, G)), "text_mask": data.draw(masks(B, T)), "renormalize": renormalize}
    dropped = data.draw(st.sampled_from([0.0, 0.3]))
    assume(decided(q, k, top_k, options["grid_mask"]))
    assume(D > 2 or dtype == torch.float32)  # of two numbers LayerNorm is a sign, which half precision may turn
    gradients = [data.draw(layouts(B, T, D, dtype=dtype)), data.draw(layouts(B, T, G, dtype=dtype))]
    check_against_definition(
        grounded_film,
        [x, q, k, table, bias, gate, ln_weight, ln_bias],
        gradients,
        tied=(1, 2) if ties else (),
        top_k=top_k,
        dropout_p=dropped,
        seed=torch.tensor(5),
        **options,
    )


@given(data=st.data(), size=sizes(), dtype=dtypes(), norm=st.booleans())
def test_value_and_gradients_of_film_residual_are_the_definitions(data, size, dtype, norm):
    B, T, G, D = size
    y, x, w = (data.draw(layouts(B, T, width, dtype=dtype)) for width in (D, D, G))
    table, bias = data.draw(layouts(B, G, 2 * D, dtype=dtype)), data.draw(layouts(2 * D, dtype=dtype))
    gate, *parameters = (data.draw(layouts(n, dtype=dtype)) for n in (1, D, D))
    assume(D > 2 or not norm)
    gradients = [data.draw(layouts(B, T, D, dtype=dtype)) for _ in range(1 + norm)]
    check_against_definition(film_residual, [y, x, w, table, bias, gate, *(parameters if norm else [])], gradients)


@pytest.mark.parametrize("G", [1, 5, 20, 70])
def test_of_one_number_layernorm_has_no_gradient(G):
    torch.manual_seed(G)
    tensors, gradients = grounded_inputs(B=2, T=9, G=G, H=1, D_h=1, D=1)
    found = by_triton(grounded_film, tensors, gradients)
    assert found[2].count_nonzero() == 0


@pytest.mark.parametrize("G", [6, 20, 70])
def test_nothing_under_a_mask_is_read(G):
    grid_mask, text_mask = torch.rand(2, G) < 0.5, torch.tensor([[True, False, True, True], [True, True, True, False]])
    grid_mask[1] = False

    def run(fill):
        torch.manual_seed(1)
        tensors, gradients = grounded_inputs(G=G)
        for tensor, mask in zip((*tensors[:4], *gradients), (*[text_mask] * 2, *[grid_mask] * 2, *[text_mask] * 2)):
            tensor[~mask] = fill
        masks = {"grid_mask": grid_mask.to(DEVICE), "text_mask": text_mask.to(DEVICE)}
        return by_triton(grounded_film, tensors, gradients, top_k=2, **masks)

    for poisoned, clean in zip(run(math.nan), run(0.0)):
        assert torch.equal(poisoned, clean)
    x_f, w, dx, dq, dk, dtable, *_ = run(math.nan)
    assert (x_f[~text_mask] == 0).all()
    assert (x_f[1, :3] != 0).all(), "a token that sees no grid is still modulated by the bias"
    for zero in (dx[~text_mask], w[1], dq[1], dk[1], dtable[1]):
        assert (zero == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("G", [5, 20])
def test_results_repeat_bit_for_bit(dtype, G):
    def twice(op, tensors, gradients, **options):
        for first, second in zip(*(by_triton(op, tensors, gradients, **options) for _ in range(2))):
            assert torch.equal(first, second)

    twice(grounded_film, *grounded_inputs(T=40, G=G, dtype=dtype), top_k=3)
    twice(film_residual, *residual_inputs(T=40, G=G, dtype=dtype))


def test_parameters_may_be_wider_than_the_tokens():
    """As under autocast: tokens, queries, keys and table in half precision, the layers' vectors in float32."""
    tensors, gradients = grounded_inputs(T=20, dtype=torch.float16)
    tensors[4:] = [tensor.float() for tensor in tensors[4:]]
    found = check_against_definition(grounded_film, tensors, gradients, top_k=4)
    assert [tensor.dtype for tensor in found[2:]] == [tensor.dtype for tensor in tensors]
    tensors, gradients = residual_inputs(T=20, dtype=torch.float16)
    tensors[1], tensors[4:] = tensors[1].float(), [tensor.float() for tensor in tensors[4:]]
    found = check_against_definition(film_residual, tensors, gradients)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float16, *(tensor.dtype for tensor in tensors)]


def test_a_gradient_may_be_missing():
    """What is not used has no gradient: w alone, r alone, LN(r) alone."""
    tensors, gradients = grounded_inputs()
    zeros = [torch.zeros_like(gradient) for gradient in gradients]
    tensors_out, gradients_out = residual_inputs()
    zeros_out = [torch.zeros_like(gradient) for gradient in gradients_out]
    for op, given_tensors, given_gradients, none in (
        (grounded_film, tensors, gradients, zeros),
        (film_residual, tensors_out, gradients_out, zeros_out),
    ):
        for which in range(2):
            wanted = by_triton(op, given_tensors, [(given_gradients if i == which else none)[i] for i in range(2)])

            def one(*leaves, op=op, which=which):
                return op(*leaves)[which]

            found = by_triton(one, given_tensors, [given_gradients[which]])
            for ours, theirs in zip(found[1:], wanted[2:]):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("G", [5, 20])
def test_offsets_pass_2_to_the_31(G):
    """Rows 2^28 numbers apart, of tokens and of a gradient: the last lie beyond what 32 bits can say."""
    tensors, gradients = grounded_inputs(B=1, T=20, G=G, H=1, D_h=4, D=6, dtype=torch.float16)

    def far(tensor):
        memory = torch.empty(20 * 2**28, dtype=torch.float16, device=DEVICE)
        return memory.as_strided((1, 20, 6), (0, 2**28, 1)).copy_(tensor)

    with use_implementation("triton"):
        leaves = [far(tensors[0]), *(tensor.to(DEVICE) for tensor in tensors[1:])]
        found = results(grounded_film, [leaf.requires_grad_() for leaf in leaves], [far(gradients[0]), gradients[1]])
    for ours, near in zip(found, by_triton(grounded_film, tensors, gradients)):
        assert torch.equal(ours, near)


@pytest.mark.parametrize("G", [5, 20, 70])
def test_channels_first_is_another_layout_of_the_same_numbers(G):
    """And so are the gradients, where what follows gives its gradient in that layout too."""
    tensors, gradients = grounded_inputs(T=19, G=G)
    wanted = by_triton(grounded_film, tensors, gradients, top_k=4)
    gradients[0] = gradients[0].mT.contiguous().mT
    found = by_triton(grounded_film, tensors, gradients, top_k=4, channels_first=True)
    assert found[0].mT.is_contiguous()
    assert not found[0].is_contiguous()
    for ours, theirs in zip(found, wanted):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("T", [1, 19])
def test_many_programs_take_larger_blocks(T, monkeypatch):
    """Of few grids 8 tokens a program instead of 4, once there are as many programs as fill a GPU."""
    monkeypatch.setattr(triton_few_grids, "PROGRAMS", 1)
    rows = torch.empty(2, T, 7, dtype=torch.float16)
    assert triton_few_grids.few_grids_tiles(triton_few_film.few_grids_film_kernel, 5, rows)["BLOCK_T"] == 8
    check_against_definition(grounded_film, *grounded_inputs(T=T, G=5, dtype=torch.float16), top_k=4)


@pytest.mark.parametrize("G", [12, 20])
def test_many_programs_take_larger_blocks_of_more_grids_too(G, monkeypatch):
    assert triton_tiles.block_of_tokens(2, 37) == 16
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 4)
    assert triton_tiles.block_of_tokens(2, 37) == 32
    check_against_definition(grounded_film, *grounded_inputs(T=37, G=G, dtype=torch.float16), top_k=3)
    check_against_definition(film_residual, *residual_inputs(T=37, G=G, dtype=torch.float16))


@pytest.mark.parametrize(("programs", "few_tokens"), [(1, 0), (6, 2**15)], ids=["one of each", "several"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_sums_of_slots_of_tokens_and_parts_of_columns(programs, few_tokens, dtype, monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", programs)
    monkeypatch.setattr(triton_gradients, "FEW_TOKENS", few_tokens)
    sizes = {"T": 50, "G": 5, "D": 70, "dtype": dtype}
    assert triton_gradients.parts_of_columns(2 * 50, 70) == (1 if few_tokens == 0 else 4)
    check_against_definition(grounded_film, *grounded_inputs(**sizes), top_k=4)
    check_against_definition(film_residual, *residual_inputs(**sizes))


@pytest.mark.parametrize("G", [5, 20, 33])
def test_a_masked_token_has_no_part_in_the_gradients_of_parameters(G):
    """Those of a text whose last tokens are masked are those of the text without them."""
    tensors, gradients = grounded_inputs(B=1, T=20, G=G)
    mask = (torch.arange(20) < 13)[None].to(DEVICE)
    masked = by_triton(grounded_film, tensors, gradients, top_k=3, text_mask=mask)
    short = [tensor[:, :13].contiguous() for tensor in tensors[:2]]
    without = by_triton(grounded_film, [*short, *tensors[2:]], [gradient[:, :13] for gradient in gradients], top_k=3)
    for ours, theirs in zip(masked[4:], without[4:]):
        torch.testing.assert_close(ours, theirs)
