"""The decode state as an object: moved, indexed, rolled back, nested, saved."""

import os

import pytest
import torch

from firebolt_vl.cmm import DecodeState


def a_state(batch=3, history=2):
    torch.manual_seed(1)
    tensors = {"modes": torch.randn(batch, 2, 4), "grid.k": torch.randn(batch, 5)}
    past = {"modes": torch.randn(batch, history, 2, 4), "length": torch.arange(batch * history).view(batch, history)}
    return DecodeState(tensors, torch.arange(batch) + 10, past if history else {})


def assert_same(one: DecodeState, other: DecodeState):
    assert one.tensors.keys() == other.tensors.keys()
    assert one.history.keys() == other.history.keys()
    for name in one.tensors:
        assert torch.equal(one.tensors[name], other.tensors[name])
    for name in one.history:
        assert torch.equal(one.history[name], other.history[name])
    assert torch.equal(one.length, other.length)


def test_index_select_takes_rows_of_everything():
    state, indices = a_state(), torch.tensor([2, 0, 2, 1])
    chosen = state.index_select(indices)
    assert chosen.batch_size == 4
    assert torch.equal(chosen.length, state.length[indices])
    assert torch.equal(chosen.tensors["modes"], state.tensors["modes"][indices])
    assert torch.equal(chosen.history["modes"], state.history["modes"][indices])


def test_repeat_interleave_is_index_select_of_repeated_rows():
    state = a_state()
    assert_same(state.repeat_interleave(3), state.index_select(torch.arange(3).repeat_interleave(3)))


def test_clone_shares_no_memory_and_methods_leave_the_state_alone():
    state = a_state()
    before = state.clone()
    copy = state.clone()
    copy.tensors["modes"].zero_()
    copy.length.zero_()
    state.rollback(2), state.index_select(torch.tensor([0])), state.nest("ssm"), state.merge(copy)
    assert_same(state, before)


def test_to_moves_everything():
    moved = a_state().to("meta")
    tensors = [*moved.tensors.values(), *moved.history.values(), moved.length]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_rollback_returns_what_the_history_holds_and_keeps_the_rest_of_it():
    state = a_state(history=3)
    back = state.rollback(2)
    assert torch.equal(back.tensors["modes"], state.history["modes"][:, 1])
    assert torch.equal(back.length, state.history["length"][:, 1])
    assert torch.equal(back.tensors["grid.k"], state.tensors["grid.k"])
    assert back.history_length == 1
    assert_same(back.rollback(1), state.rollback(3))
    assert state.rollback(3).history == {}
    assert state.rollback(0) is state


def test_rollback_past_the_history_is_refused():
    with pytest.raises(ValueError, match="n is 3; expected at most 2, the positions that the state remembers"):
        a_state(history=2).rollback(3)
    with pytest.raises(ValueError, match="n is 1; expected at most 0"):
        a_state(history=0).rollback(1)
    with pytest.raises(ValueError, match="n is -1; expected at least 0"):
        a_state().rollback(-1)


def test_under_is_the_inverse_of_nest():
    state = a_state()
    nested = state.nest("ssm")
    assert set(nested.tensors) == {"ssm.modes", "ssm.grid.k"}
    assert set(nested.history) == {"ssm.modes", "length"}
    assert_same(nested.under("ssm"), state)
    assert nested.under("ss").tensors == {}


def test_merge_takes_the_newer_where_both_have_it():
    grid = DecodeState({"grid.k": torch.ones(3, 5), "ssm.modes": torch.zeros(3, 1)}, torch.zeros(3, dtype=torch.int64))
    newer = a_state().nest("ssm")
    merged = grid.merge(newer)
    assert torch.equal(merged.tensors["grid.k"], grid.tensors["grid.k"])
    assert torch.equal(merged.tensors["ssm.modes"], newer.tensors["ssm.modes"])
    assert merged.length is newer.length
    assert merged.history_length == 2


def test_save_and_load_round_trip(tmp_path):
    path = tmp_path / "state.safetensors"
    for state in (a_state(), a_state(history=0), a_state().rollback(1), a_state().repeat_interleave(2)):
        state.save(path)
        assert_same(DecodeState.load(path), state)
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    a_state().save(path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        a_state(batch=5).save(path)
    assert os.listdir(tmp_path) == ["state.safetensors"]
    assert DecodeState.load(path).batch_size == 3


def test_load_refuses_what_save_did_not_write(tmp_path):
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"length": torch.zeros(2)}, other)
    text = tmp_path / "text"
    text.write_text("no tensors here")
    for path in (other, text):
        with pytest.raises(ValueError, match=r"written by DecodeState\.save"):
            DecodeState.load(path)
    with pytest.raises(FileNotFoundError):
        DecodeState.load(tmp_path / "missing")


def test_rows_that_do_not_fit_together_are_refused():
    length = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"modes has shape \[3, 4\]; expected 2 rows"):
        DecodeState({"modes": torch.zeros(3, 4)}, length)
    with pytest.raises(ValueError, match=r"length is torch.float32 \[2\]; expected torch.int64"):
        DecodeState({}, torch.zeros(2))


def test_beside_has_the_tensors_and_the_history_of_both():
    one, other = a_state(), a_state().nest("second")
    both = one.beside(other)
    assert_same(both.under("second"), a_state())
    assert {name for name in both.history if "second" not in name} == set(one.history)
    for name, tensor in one.tensors.items():
        assert torch.equal(both.tensors[name], tensor)
    newer = DecodeState({"modes": torch.zeros(3, 2, 4)}, one.length + 1)
    assert torch.equal(one.beside(newer).tensors["modes"], newer.tensors["modes"])
    assert torch.equal(one.beside(newer).length, newer.length)
