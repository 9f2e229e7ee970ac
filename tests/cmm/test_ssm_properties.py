"""What holds for every state-space block: one function in three modes, for any mask, batch, dtype and chunking."""

import copy
import importlib
import io
from unittest import mock

import pytest
import torch
from blocks import MAKERS, WIDTH, make, run_in_pieces
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_module_within_budget, largest

from firebolt_vl.cmm import S4, DecodeState, Mamba
from firebolt_vl.cmm.dplr import CHUNK
from firebolt_vl.kernels import use_implementation
from firebolt_vl.kernels.linear import linear

# By its name: as an attribute of the package, `fft_conv` is the function.
convolution = importlib.import_module("firebolt_vl.kernels.fft_conv.pytorch")
every_block = pytest.mark.parametrize("name", MAKERS)


@st.composite
def texts(draw, longest=2 * CHUNK + 20):
    """(x [B, T, D] float64, mask [B, T] or None, sizes of pieces that cover part of T)"""
    batch, time = draw(st.integers(1, 3)), draw(st.integers(1, longest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(batch, time, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.7, 0.95]))
        if draw(st.booleans()):
            mask[0] = draw(st.booleans())
    ends = sorted(draw(st.lists(st.integers(0, time), max_size=4)))
    pieces = [end - start for start, end in zip([0, *ends], ends)]
    if draw(st.booleans()) or time - sum(pieces) > 20:  # not too many steps
        pieces.append(time - sum(pieces))
    return x, mask, pieces


def assert_same_state(one: DecodeState, other: DecodeState, relative=1e-10):
    assert one.tensors.keys() == other.tensors.keys()
    assert torch.equal(one.length, other.length)
    for tensor in one.tensors:
        assert_close(one.tensors[tensor], other.tensors[tensor], relative)


@every_block
@given(texts())
def test_forward_equals_prefill_in_any_pieces_and_steps(name, text):
    x, mask, pieces = text
    block = make(name)
    with torch.no_grad():
        whole, state = block.prefill(x, mask)
        assert_close(whole, block(x, mask), 1e-10)
        y, state_of_pieces = run_in_pieces(block, x, mask, pieces)
    assert_close(y, whole, 1e-10)
    assert_same_state(state_of_pieces, state)
    assert state.length.tolist() == (mask.sum(1) if mask is not None else torch.full(x.shape[:1], x.shape[1])).tolist()


def by_definition(block, x, mask=None):
    with use_implementation("reference"):
        return [block(x, mask)]


@every_block
@given(texts())
def test_modes_agree_in_float32_as_far_as_float32_goes(name, text):
    x, mask, pieces = text
    block, x = make(name, torch.float32), x.float()
    with torch.no_grad():
        found = [block(x, mask), run_in_pieces(block, x, mask, pieces)[0]]
        assert_module_within_budget(found, lambda block, x: 2 * by_definition(block, x, mask), block, [x])


@every_block
@given(texts(), st.data())
def test_each_row_gives_what_its_kept_positions_give_alone(name, text, data):
    x, mask, pieces = text
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    block = make(name)
    x = x.masked_fill(~mask.unsqueeze(-1), float("nan"))  # what is masked is not even read
    with torch.no_grad():
        y, state = block.prefill(x, mask)
        in_pieces, state_of_pieces = run_in_pieces(block, x, mask, pieces)
        assert_close(block(x, mask), y, 1e-10)
        assert largest(y[~mask]) == 0
        for row in range(x.shape[0]):
            kept = x[row : row + 1, mask[row]]
            alone, state_alone = block.prefill(kept)
            for batched, batched_state in ((y, state), (in_pieces, state_of_pieces)):
                assert_close(batched[row : row + 1, mask[row]], alone, 1e-10)
                assert_same_state(batched_state.index_select(torch.tensor([row])), state_alone)


def convolving_by(algorithm):
    """The convolution's choice made for it, so that a claim about one algorithm meets that algorithm."""
    return mock.patch.object(convolution, "choose_algorithm", return_value=algorithm)


@every_block
@pytest.mark.parametrize("algorithm", ["direct", "chunked"])
@given(text=texts(), data=st.data())
def test_no_bit_before_a_change_changes(name, algorithm, text, data):
    x, mask, pieces = text
    x = x.float()
    at = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, at] += 1
    block = make(name, torch.float32)
    with torch.no_grad(), convolving_by(algorithm):
        before, _ = run_in_pieces(block, x, mask, pieces)
        after, _ = run_in_pieces(block, changed, mask, pieces)
        assert torch.equal(before[:, :at], after[:, :at])
        assert torch.equal(block(x, mask)[:, :at], block(changed, mask)[:, :at])


@pytest.mark.parametrize("name", ["s4", "s4_truncated", "liquid", "s4d"])
@pytest.mark.parametrize("length", [100, 3000])
def test_by_fft_nothing_before_a_change_changes_beyond_float32_s_error(name, length):
    block = make(name, torch.float32)
    x = torch.randn(1, 2 * length, WIDTH)
    changed = x.clone()
    changed[:, length:] += 1
    with torch.no_grad(), convolving_by("fft"):
        found = [block(changed)[:, :length]]
        assert_module_within_budget(found, lambda block, x: [block(x)[:, :length]], block, [x])


@every_block
@given(texts(longest=CHUNK + 20), st.integers(0, 6), st.integers(1, 6))
def test_rollback_is_never_having_seen_the_positions(name, text, history, n):
    x, mask, pieces = text
    block = make(name)
    part = lambda positions: (x[:, positions], None if mask is None else mask[:, positions])  # noqa: E731
    first = pieces[0] if pieces else 0
    with torch.no_grad():
        _, state = block.prefill(*part(slice(first)))
        y, state = block.prefill(*part(slice(first, None)), state, history=history)
        assert_close(y, block(x, mask)[:, first:], 1e-10)
        assert state.history_length == min(history, x.shape[1] - first)
        if n > state.history_length:
            with pytest.raises(ValueError, match=f"n is {n}; expected at most {state.history_length}"):
                state.rollback(n)
            return
        _, never_seen = block.prefill(*part(slice(x.shape[1] - n)))
        assert_same_state(state.rollback(n), never_seen)
        if n > 1:
            assert_same_state(state.rollback(1).rollback(n - 1), never_seen)
        if mask is None:
            y, after = block.step(x[:, -1], state.rollback(n))
            assert_close(y, block.prefill(x[:, -1:], state=never_seen)[0][:, 0], 1e-10)
            assert after.history_length == 0


@every_block
def test_a_row_without_kept_tokens_keeps_its_state_to_the_bit(name):
    block = make(name, torch.float32)
    x = torch.randn(2, 90, WIDTH)
    with torch.no_grad():
        _, state = block.prefill(x)
        mask = torch.zeros(2, 70, dtype=torch.bool)
        mask[1, 3:] = True
        for history in (0, 2):
            y, after = block.prefill(x[:, :70], mask, state, history=history)
            for tensor in state.tensors:
                assert torch.equal(after.tensors[tensor][0], state.tensors[tensor][0])
            assert after.length.tolist() == [90, 157]
            assert largest(y[0]) == 0


@every_block
def test_state_rows_can_be_picked_repeated_saved_and_moved_on(name, tmp_path):
    block, indices = make(name), torch.tensor([2, 0, 2])
    x, more = torch.randn(3, 20, WIDTH, dtype=torch.float64), torch.randn(3, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        _, state = block.prefill(x)
        y, _ = block.step(more[indices], state.index_select(indices))
        wanted, _ = block.step(more[indices], block.prefill(x[indices])[1])
        assert_close(y, wanted, 1e-12)
        repeated = state.repeat_interleave(2)
        y, _ = block.step(more.repeat_interleave(2, 0), repeated)
        assert_close(y, block.step(more, state)[0].repeat_interleave(2, 0), 1e-12)
        state.save(tmp_path / "state")
        loaded = DecodeState.load(tmp_path / "state")
        assert torch.equal(block.step(more, loaded)[0], block.step(more, state)[0])


@every_block
def test_step_leaves_the_given_state_alone(name):
    block = make(name)
    x = torch.randn(2, 8, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        _, state = block.prefill(x[:, :7])
        before = state.clone()
        block.step(x[:, 7], state)
        block.prefill(x, state=state, history=2)
    for tensor in state.tensors:
        assert torch.equal(state.tensors[tensor], before.tensors[tensor])
    assert torch.equal(state.length, before.length)


@every_block
@given(texts(longest=CHUNK + 10))
def test_gradients_do_not_depend_on_the_mode(name, text):
    x, mask, pieces = text
    block = make(name).train()
    cotangent = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))

    def gradients(run):
        leaf = x.clone().requires_grad_()
        loss = (run(leaf) * cotangent).sum()
        used = [leaf, *block.parameters()]
        return torch.autograd.grad(loss, used, allow_unused=True, materialize_grads=True)

    wanted = gradients(lambda leaf: block(leaf, mask))
    scale = max(largest(gradient) for gradient in wanted)
    for found, gradient in zip(gradients(lambda leaf: run_in_pieces(block, leaf, mask, pieces)[0]), wanted):
        assert largest(found - gradient) <= 1e-10 * scale


@every_block
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_flow_from_outputs_and_final_state_to_the_initial_state(name, ragged):
    block = make(name)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool) if ragged else None
    start = block.initial_state(2)
    names = list(start.tensors)

    def run(*values):
        y, state = block.prefill(x, mask, DecodeState(dict(zip(names, values)), start.length))
        return (y, *state.tensors.values())

    values = tuple(torch.randn_like(start.tensors[key]).requires_grad_() for key in names)
    torch.autograd.gradcheck(run, values, fast_mode=True)


@every_block
def test_no_grad_inference_mode_and_grad_mode_give_the_same(name):
    block = make(name)
    x = torch.randn(2, 70, WIDTH, dtype=torch.float64)
    recorded, _ = block.prefill(x)
    assert recorded.requires_grad
    with torch.inference_mode():
        inferred, state = block.prefill(x)
        block.step(x[:, 0], state)
    assert_close(inferred, recorded, 1e-12)
    with torch.no_grad():
        assert_close(block.prefill(x)[0], recorded, 1e-12)
    block.requires_grad_(False)  # frozen parameters, gradients to the inputs: what inference mode left behind is usable
    leaf = x.clone().requires_grad_()
    y, state = block.prefill(leaf)
    last, _ = block.step(leaf[:, 0], state)
    (y.sum() + last.sum()).backward()
    assert leaf.grad.abs().sum() > 0


def run_all_modes(block, x):
    with torch.no_grad():
        y, state = block.prefill(x)
        return torch.cat([block(x), y, block.step(x[:, 0], state)[0].unsqueeze(1)], 1)


@every_block
def test_what_is_kept_between_calls_follows_the_parameters(name):
    block = make(name)
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    before = run_all_modes(block, x)
    other = make(name, seed=9)
    wanted = run_all_modes(other, x)

    def changed(change):
        changing = copy.deepcopy(block)
        assert torch.equal(run_all_modes(changing, x), before)
        change(changing)
        return run_all_modes(changing, x)

    def in_place(changing):
        with torch.no_grad():
            for ours, theirs in zip(changing.parameters(), other.parameters()):
                ours.copy_(theirs)

    def through_data(changing):
        for ours, theirs in zip(changing.parameters(), other.parameters()):
            ours.data = theirs.data.clone()

    def behind_the_counters(changing):
        changing.train()
        for ours, theirs in zip(changing.parameters(), other.parameters()):
            ours.data.copy_(theirs.data)
        changing.eval()

    assert_close(changed(lambda changing: changing.load_state_dict(other.state_dict())), wanted, 1e-13)
    assert_close(changed(lambda changing: changing.load_state_dict(other.state_dict(), assign=True)), wanted, 1e-13)
    assert_close(changed(in_place), wanted, 1e-13)
    assert_close(changed(through_data), wanted, 1e-13)
    assert_close(changed(behind_the_counters), wanted, 1e-13)
    assert torch.equal(run_all_modes(block, x), before)


@every_block
def test_an_optimiser_step_is_seen_by_the_next_call(name):
    block = make(name)
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    before = run_all_modes(block, x)
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.1)
    block.train()(x).square().sum().backward()
    optimiser.step()
    after = run_all_modes(block.eval(), x)
    assert not torch.allclose(after, before)
    fresh = make(name, seed=5)
    fresh.load_state_dict(block.state_dict())
    assert_close(after, run_all_modes(fresh, x), 1e-13)


@every_block
def test_copies_and_pickles_carry_parameters_alone(name):
    block = make(name)
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    wanted = run_all_modes(block, x)
    assert block.kernel._derived
    duplicate = copy.deepcopy(block)
    assert not duplicate.kernel._derived
    assert torch.equal(run_all_modes(duplicate, x), wanted)
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    assert torch.equal(run_all_modes(torch.load(file, weights_only=False), x), wanted)
    assert not list(block.buffers())


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_block_leaves_its_ssm_parameters_to_the_bit(name, dtype):
    block = make(name, torch.float32)
    before = {key: tensor.clone() for key, tensor in block.kernel.state_dict().items()}
    for cast in (
        lambda: block.to(dtype),
        lambda: block.half() if dtype == torch.float16 else block.bfloat16(),
        lambda: block.to("cpu", dtype),
        lambda: block.type(dtype),
    ):
        cast()
        for key, tensor in block.kernel.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, before[key])
    others = {tensor.dtype for key, tensor in block.state_dict().items() if not key.startswith("kernel.")}
    assert others == {dtype}


@every_block
def test_a_narrow_default_dtype_does_not_reach_the_ssm_parameters(name):
    torch.set_default_dtype(torch.bfloat16)
    try:
        block = MAKERS[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in block.kernel.parameters()} == {torch.float32}
    assert block.dtype == torch.float32


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_run_in_every_mode_at_their_own_error(name, dtype):
    block = make(name, torch.float32).to(dtype)
    x = torch.randn(2, 80, WIDTH).to(dtype)
    mask = torch.rand(2, 80) < 0.8
    with torch.no_grad():
        for keep in (None, mask):
            y, (in_pieces, state) = block(x, keep), run_in_pieces(block, x, keep, [30, 45])
            assert y.dtype == in_pieces.dtype == dtype

            def defined(block, x, keep=keep):
                return 2 * by_definition(block, x, keep)

            assert_module_within_budget([y, in_pieces], defined, block, [x], arithmetic=dtype)
            assert {tensor.dtype for tensor in state.tensors.values()} == {torch.float32}


@every_block
def test_autocast_leaves_the_recurrence_in_float32(name):
    block, exact_block = make(name, torch.float32), make(name)
    x = torch.randn(2, 80, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, state = block.prefill(x)
    with torch.no_grad():
        _, exact_state = exact_block.prefill(x.double())
        assert_module_within_budget([y], by_definition, block, [x], arithmetic=torch.bfloat16)
    if name != "mamba":  # its projections lie before the recurrence
        for tensor in state.tensors:
            assert_close(state.tensors[tensor], exact_state.tensors[tensor].float(), 1e-5)


@every_block
def test_a_block_made_on_the_meta_device_is_the_same_after_reset(name):
    with torch.device("meta"):
        block = MAKERS[name]()
    assert {parameter.device.type for parameter in block.parameters()} == {"meta"}
    block.reset_parameters()
    block = block.to_empty(device="cpu")
    for parameter in block.parameters():
        parameter.data.fill_(float("nan"))
    block.reset_parameters()
    torch.manual_seed(4)
    block.reset_parameters()
    torch.manual_seed(4)
    again = MAKERS[name]()
    again.reset_parameters()
    drawn = {"kernel.C", "kernel.D", "kernel.log_dt", "kernel.dt_bias"}
    for key, tensor in block.state_dict().items():
        assert torch.isfinite(tensor).all(), key
        if key.startswith("kernel.") and key not in drawn:
            assert torch.equal(tensor, MAKERS[name]().state_dict()[key])
    x = torch.randn(1, 5, WIDTH)
    again.load_state_dict(block.state_dict())
    assert torch.equal(block(x), again(x))


@every_block
def test_dropout_drops_a_channel_for_the_whole_sequence_and_only_in_training(name, monkeypatch):
    block = make(name, dropout=0.5)
    x = torch.randn(64, 6, WIDTH, dtype=torch.float64)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))
    plain = make(name)
    last = block.out_proj if isinstance(block, Mamba) else block.output
    seen = []
    with torch.no_grad():
        plain_last = plain.out_proj if isinstance(plain, Mamba) else plain.output
        for module, layer in ((block, last), (plain, plain_last)):

            def spy(value, weight, bias=None, layer=layer):
                if weight is layer.weight:
                    seen.append(value)
                return linear(value, weight, bias)

            monkeypatch.setattr("firebolt_vl.cmm.linear.linear", spy)
            module(x)
    dropped, kept = seen
    ratio = dropped / kept
    assert_close(ratio, ratio[:, :1].expand_as(ratio).round(), 1e-12)
    assert set(ratio.round().unique().tolist()) == {0.0, 2.0}


@every_block
def test_an_empty_text_changes_nothing(name):
    block = make(name)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    empty = x[:, :0]
    assert block(empty).shape == (2, 0, WIDTH)
    y, state = block.prefill(empty)
    assert y.shape == (2, 0, WIDTH)
    assert state.length.tolist() == [0, 0]
    _, state = block.prefill(x, history=1)
    _, after = block.prefill(empty, state=state, history=3)
    assert after.history_length == 0
    assert_same_state(after, state)


@every_block
def test_wrong_arguments_are_refused_before_any_work(name):
    block = make(name, torch.float32)
    x, state = torch.randn(2, 3, WIDTH), block.initial_state(2)
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 5\]; expected \[B T 4\]"):
        block(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 4\]; expected \[B 4\]"):
        block.step(x, state)
    with pytest.raises(TypeError, match="x is int64; expected one of float32"):
        block(torch.zeros(2, 3, WIDTH, dtype=torch.int64))
    with pytest.raises(
        TypeError, match=r"x is float64; expected torch.float32, as the parameters; or call \.double\(\)"
    ):
        block(x.double())
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\]; expected \[B T\] with B = 2, T = 3"):
        block(x, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask is float32; expected one of bool"):
        block(x, torch.ones(2, 3))
    with pytest.raises(ValueError, match="state has 3 rows; expected 2, as many as x"):
        block.prefill(x, state=block.initial_state(3))
    with pytest.raises(ValueError, match=r"state has \{'other': \(1,\)\} in each row; expected"):
        block.step(x[:, 0], DecodeState({"other": torch.zeros(2, 1)}, state.length))
    with pytest.raises(ValueError, match="history is -1; expected at least 0"):
        block.prefill(x, history=-1)


def test_initial_state_is_the_state_of_nothing():
    block = make("s4")
    x = torch.randn(2, 10, WIDTH, dtype=torch.float64)
    from_nothing, state = block.prefill(x)
    continued, state_of_continued = block.prefill(x, state=block.initial_state(2))
    assert_close(continued, from_nothing, 1e-12)
    assert_same_state(state_of_continued, state)
    assert block.initial_state(2, "meta").device.type == "meta"


def test_taps_of_any_shorter_text_are_a_slice_of_what_was_kept():
    kernel = S4(WIDTH, 8).kernel
    with torch.no_grad():
        assert kernel.taps(100).shape == (WIDTH, 100)
        assert kernel.taps(70).data_ptr() == kernel.taps(128).data_ptr()
