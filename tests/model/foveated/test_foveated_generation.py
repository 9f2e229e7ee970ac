"""Generation with the decoder's cache equals the full forward, in every mode and from a stream."""

import copy

import pytest
import tiny_models
import torch
from foveated import MODES, make_foveated, make_frames
from numerics import assert_close

from firebolt_vl.model.compat import CACHE

ROUNDING = 5e-5
MODEL = make_foveated()
modes = pytest.mark.parametrize("mode", MODES)


def batch(counts=(3, 1, 0), lengths=(6, 3, 5)) -> dict[str, torch.Tensor]:
    return {**make_frames(list(counts)), **tiny_models.make_text(list(lengths))}


def generated(inputs, **kwargs):
    torch.manual_seed(0)
    return MODEL.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True, output_logits=True, **kwargs
    )


def assert_same(found, wanted) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits):
        assert_close(ours, theirs, relative=ROUNDING)


@modes
def test_each_step_is_the_column_of_the_full_forward(mode):
    inputs = batch()
    found = generated(inputs, mode=mode, do_sample=False)
    grown = found.sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, grown), value=1)
    with torch.no_grad():
        whole = MODEL(found.sequences, mask, frames=inputs["frames"], frame_mask=inputs["frame_mask"], mode=mode).logits
    assert_close(torch.stack(found.logits, 1), whole[:, -grown - 1 : -1], relative=ROUNDING)


@modes
@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prefill_chunk_size": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "num_beams": 3},
    ],
    ids=["uncached", "static", "chunks", "samples", "beams"],
)
def test_other_ways_of_generating_give_the_same(mode, way):
    inputs = batch()
    repeated = {name: way[name] for name in ("do_sample", "num_return_sequences", "num_beams") if name in way}
    if len(repeated) > 1:
        assert_same(generated(inputs, mode=mode, **way), generated(inputs, mode=mode, use_cache=False, **repeated))
    else:
        assert_same(generated(inputs, mode=mode, **way), generated(inputs, mode=mode, **repeated))


def test_prompt_lookup_gives_the_same():
    inputs = batch([3], [12])
    inputs["input_ids"][0, 6:] = inputs["input_ids"][0, :6]
    assert_same(generated(inputs, do_sample=False, prompt_lookup_num_tokens=3), generated(inputs, do_sample=False))


def test_a_question_about_a_stream_equals_one_about_the_whole():
    inputs = batch((3, 2), (6, 3))
    wanted = generated(inputs, mode="autoregressive", do_sample=False)
    state = None
    for frame in range(3):
        now = {name: inputs[name][:, frame : frame + 1] for name in ("frames", "frame_mask")}
        with torch.no_grad():
            _, state = MODEL.watch(**now, state=state)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(generated(text, past_key_values=copy.deepcopy(state), do_sample=False), wanted)
    state.batch_repeat_interleave(2)
    several = generated(text, past_key_values=state, do_sample=False, num_beams=2)
    assert_same(several, generated(inputs, mode="autoregressive", do_sample=False, num_beams=2))


@modes
def test_a_second_turn_on_the_cache_equals_the_whole_conversation(mode):
    inputs = batch()
    first = generated(inputs, mode=mode, do_sample=False)
    ids = torch.cat([first.sequences, tiny_models.make_text([4, 4, 4], seed=5)["input_ids"]], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1)
    whole = {"input_ids": ids, "attention_mask": mask}
    second = generated({**whole, "past_key_values": first[CACHE]}, do_sample=False)
    frames = {name: inputs[name] for name in ("frames", "frame_mask")}
    assert_same(second, generated({**whole, **frames}, mode=mode, do_sample=False))


def test_embeddings_equal_ids():
    inputs = batch()
    wanted = generated(inputs, do_sample=False)
    ids = inputs.pop("input_ids")
    found = generated({**inputs, "inputs_embeds": MODEL.get_input_embeddings()(ids)}, do_sample=False)
    assert torch.equal(found.sequences, wanted.sequences[:, ids.shape[1] :])


def test_caches_that_will_not_do_are_named():
    inputs = batch()
    with pytest.raises(ValueError, match="cache_implementation is 'quantized'; expected 'dynamic' or 'static'"):
        generated(inputs, cache_implementation="quantized")
    with pytest.raises(ValueError, match="frames and visual_tokens are both given"):
        generated({**inputs, "visual_tokens": torch.zeros(3, 1, 32)})


def test_a_prompt_padded_on_the_right_is_refused():
    text = tiny_models.make_text([6, 3], side="right")
    with pytest.raises(ValueError, match="attention_mask pads a prompt on the right; expected padding on the left"):
        MODEL.generate(**text, max_new_tokens=2)
