"""Generation is exact and cached: step t equals column t of the full forward, for every connector and fusion."""

import copy

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from transformers import DynamicCache, StaticCache

from firebolt_vl.model.compat import CACHE
from firebolt_vl.model.firebolt.fusion import inserted_grids, summarize_prompt

KINDS = [
    ("cmm", "replace"),
    ("cmm", "concat"),
    ("cmm", "pool"),
    ("prepend", "replace"),
    ("cross_attend", "replace"),
    ("routed", "replace"),
    ("routed_text", "replace"),
]
kinds = pytest.mark.parametrize(("connector", "fusion"), KINDS)
# Both sides are float32: a few hundred operations apart, never more than this.
ROUNDING = 2e-5

MODELS = {}


def model_of(connector: str, fusion: str, **cmm):
    key = (connector, fusion, *sorted(cmm.items()))
    if key not in MODELS:
        MODELS[key] = tiny_models.make_model(connector, fusion, **cmm)
    return MODELS[key]


def mixed_batch(lengths=(7, 4, 9), without_image=(1,)) -> dict[str, torch.Tensor]:
    """Rows of several lengths, padded on the left, some without an image, one with two masked tiles."""
    inputs = {**tiny_models.make_text(list(lengths)), **tiny_models.make_pixels(len(lengths))}
    for row in without_image:
        inputs["image_mask"][row] = False
    inputs["tile_mask"][-1, 2:] = False
    return inputs


def generated(model, inputs, **kwargs):
    torch.manual_seed(0)
    return model.generate(
        **inputs,
        max_new_tokens=kwargs.pop("max_new_tokens", 8),
        min_new_tokens=8,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )


def assert_same_generation(found, wanted) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits):
        assert_close(ours, theirs, relative=ROUNDING)


@kinds
@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5},
        {"num_beams": 4, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True},
    ],
    ids=["greedy", "sample", "beams", "return_sequences"],
)
def test_cached_generation_equals_uncached(connector, fusion, mode):
    model, inputs = model_of(connector, fusion), mixed_batch()
    assert_same_generation(
        generated(model, inputs, use_cache=True, **mode), generated(model, inputs, use_cache=False, **mode)
    )


@kinds
@pytest.mark.parametrize(
    "mode",
    [{"do_sample": False}, {"do_sample": True, "temperature": 1.5}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "sample", "beams"],
)
def test_static_cache_equals_dynamic_cache(connector, fusion, mode):
    model, inputs = model_of(connector, fusion), mixed_batch()
    static = generated(model, inputs, cache_implementation="static", **mode)
    assert_same_generation(static, generated(model, inputs, **mode))


@kinds
def test_a_compiled_step_equals_the_step(connector, fusion):
    """The default cache is then a static one, whose length is rounded up: longer answers compile nothing anew."""
    plain, inputs = model_of(connector, fusion), mixed_batch()
    model = copy.deepcopy(plain).compile_step(backend="eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for mode in ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "max_new_tokens": 20}):
        found = generated(model, inputs, **mode)
        assert isinstance(found[CACHE], StaticCache)
        assert_same_generation(found, generated(plain, inputs, **mode))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_compiled_step_serves_beams_batches_and_one_row_alike():
    plain = model_of("cmm", "replace")
    model = copy.deepcopy(plain).compile_step(backend="aot_eager", fullgraph=True)
    inputs = mixed_batch()
    beams = {"num_beams": 2, "do_sample": False}
    assert_same_generation(generated(model, inputs, **beams), generated(plain, inputs, **beams))
    one = {name: value[:1] for name, value in inputs.items()}
    assert_same_generation(generated(model, one, do_sample=False), generated(plain, one, do_sample=False))


def test_what_a_static_cache_cannot_do_runs_without_the_compiled_step():
    model = copy.deepcopy(model_of("cmm", "replace")).compile_step(backend="eager")
    inputs = {**tiny_models.make_text([12]), **tiny_models.make_pixels(1)}
    wanted = generated(model_of("cmm", "replace"), inputs, do_sample=False)
    assert_same_generation(generated(model, inputs, do_sample=False, prompt_lookup_num_tokens=3), wanted)
    assert_same_generation(generated(model, inputs, do_sample=False, use_cache=False), wanted)


def test_a_copy_has_no_compiled_step():
    model = copy.deepcopy(model_of("cmm", "replace")).compile_step(backend="eager")
    assert copy.deepcopy(model).model.compiled_step is None
    assert model.state_dict().keys() == model_of("cmm", "replace").state_dict().keys()


@kinds
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_prefill_in_chunks_equals_prefill_at_once(connector, fusion, chunk):
    model = model_of(connector, fusion)
    inputs = {**tiny_models.make_text([9, 9]), **tiny_models.make_pixels(2)}
    chunked = generated(model, inputs, prefill_chunk_size=chunk, do_sample=False)
    assert_same_generation(chunked, generated(model, inputs, do_sample=False))


@pytest.mark.parametrize("connector", ["cmm", "cross_attend"])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_of_a_padded_batch_equal_prefill_at_once(connector, chunk):
    model, inputs = model_of(connector, "replace"), mixed_batch()
    chunked = generated(model, inputs, prefill_chunk_size=chunk, do_sample=False)
    assert_same_generation(chunked, generated(model, inputs, do_sample=False))


@kinds
@pytest.mark.parametrize("assistance", ["prompt_lookup", "assistant"])
def test_assisted_generation_equals_plain(connector, fusion, assistance):
    model = model_of(connector, fusion)
    inputs = {**tiny_models.make_text([12]), **tiny_models.make_pixels(1)}
    inputs["input_ids"][0, 6:] = inputs["input_ids"][0, :6]  # something for the lookup to find
    if assistance == "prompt_lookup":
        extra = {"prompt_lookup_num_tokens": 3}
    else:
        assistant = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in assistant.model.language_model.layers[-1].parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        extra = {"assistant_model": assistant}
    assisted = generated(model, inputs, do_sample=False, max_new_tokens=20, **extra)
    plain = generated(model, inputs, do_sample=False, max_new_tokens=20)
    assert_same_generation(assisted, plain)


@kinds
def test_second_turn_on_the_cache_equals_the_whole_conversation(connector, fusion):
    model, inputs = model_of(connector, fusion), mixed_batch()
    first = generated(model, inputs, do_sample=False)
    turn = tiny_models.make_text([4, 4, 4], seed=5)["input_ids"]
    ids = torch.cat([first.sequences, turn], dim=1)
    grown = ids.shape[1] - inputs["attention_mask"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, grown, dtype=torch.long)], dim=1)
    images = {name: inputs[name] for name in tiny_models.make_pixels(1)}
    prompt = torch.nn.functional.pad(inputs["attention_mask"], (0, grown)).bool()
    whole = generated(
        model, {"input_ids": ids, "attention_mask": mask, **images, "prompt_mask": prompt}, do_sample=False
    )
    second = {"input_ids": ids, "attention_mask": mask, "past_key_values": first[CACHE]}
    assert_same_generation(generated(model, second, do_sample=False), whole)


@kinds
def test_inputs_embeds_equal_input_ids(connector, fusion):
    model, inputs = model_of(connector, fusion), mixed_batch()
    wanted = generated(model, inputs, do_sample=False)
    ids = inputs.pop("input_ids")
    found = generated(model, {**inputs, "inputs_embeds": model.get_input_embeddings()(ids)}, do_sample=False)
    assert torch.equal(found.sequences, wanted.sequences[:, ids.shape[1] :])


@kinds
@given(data=st.data())
def test_forward_equals_prefill_in_any_chunks_and_steps(connector, fusion, data):
    """Columns of the full forward, against the same columns in calls of any length on a cache, padded on the left.

    Where positions are inserted, all padding has to come with the first call (with "concat", all of a padded prompt):
    LFM2 does not allow for the gap that would follow.
    """
    model = model_of(connector, fusion)
    columns = data.draw(st.integers(2, 12))
    lengths = [columns, data.draw(st.integers(1, columns)), data.draw(st.integers(1, columns))]
    inputs = {**tiny_models.make_text(lengths, seed=columns), **tiny_models.make_pixels(3, seed=columns)}
    if data.draw(st.booleans()):
        inputs["image_mask"][1] = False
    uneven = min(lengths) < columns or not inputs["image_mask"].all()
    prompt_end = data.draw(st.integers(1 + columns - min(lengths), columns))
    prompt = inputs["attention_mask"].bool()
    prompt[:, prompt_end:] = False
    first_end = 1
    if model.model.connector.inserts_grids or fusion == "pool":
        first_end = 1 + columns - min(lengths)
    elif fusion == "concat" and uneven:
        first_end = prompt_end
    with torch.no_grad():
        whole = model(**inputs, prompt_mask=prompt, use_cache=False).logits
        cache, parts, start = DynamicCache(config=model.config.text_config), [], 0
        summary = None
        if fusion == "pool" or connector == "routed_text":
            seen = model.get_grids(**{name: inputs[name] for name in tiny_models.make_pixels(1)})
            text = model.get_input_embeddings()(inputs["input_ids"])
            asked = prompt & inputs["attention_mask"].bool()
            if fusion == "pool":
                summary = summarize_prompt(model.model.connector, text, asked, seen)
            else:
                summary, _ = inserted_grids(model.model.connector, text, None, asked, seen)
        while start < columns:
            end = data.draw(st.integers(max(start + 1, first_end), columns))
            now = {"input_ids": inputs["input_ids"][:, start:end], "attention_mask": inputs["attention_mask"][:, :end]}
            if start == 0:
                now.update({name: inputs[name] for name in tiny_models.make_pixels(1)}, prompt_summary=summary)
            parts.append(model(**now, prompt_mask=prompt, past_key_values=cache, use_cache=True).logits)
            start = end
    kept = inputs["attention_mask"].bool()
    assert_close(torch.cat(parts, dim=1)[kept], whole[kept], relative=ROUNDING)


@kinds
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_gives_each_row_what_it_gets_alone(connector, fusion, lengths, side, seed):
    model = model_of(connector, fusion)
    text = tiny_models.make_text(lengths, seed, side)
    pixels = tiny_models.make_pixels(len(lengths), seed=seed)
    pixels["image_mask"][seed % len(lengths)] = False
    pixels["tile_mask"][-1, 1:3] = False
    with torch.no_grad():
        together = model(**text, **pixels).logits
        for row, length in enumerate(lengths):
            kept = text["attention_mask"][row].bool()
            alone = {name: tensor[row : row + 1] for name, tensor in pixels.items()}
            ids = text["input_ids"][row : row + 1, kept]
            assert ids.shape[1] == length
            assert_close(together[row : row + 1, kept], model(input_ids=ids, **alone).logits, relative=ROUNDING)


@kinds
def test_each_image_passes_the_encoder_once_and_the_grid_side_runs_once(connector, fusion, monkeypatch):
    model = model_of(connector, fusion)
    inputs = mixed_batch(lengths=(7, 4, 9, 5), without_image=(1,))
    views, grid_sides = [], []
    encode = model.model.vision_tower.forward
    monkeypatch.setattr(
        model.model.vision_tower,
        "forward",
        lambda pixels, **kw: (views.append(tuple(pixels.shape)), encode(pixels, **kw))[1],
    )
    hook = model.model.connector.positions.register_forward_hook(lambda *_: grid_sides.append(1))
    model.generate(**inputs, num_beams=4, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    hook.remove()
    # Three images: one call for their global views, one for their 4 + 4 + 2 tiles, whatever the beams.
    assert views == [(3, 3, 32, 32), (10, 3, 16, 16)]
    assert len(grid_sides) == 1


def test_text_only_batch_is_the_decoder_alone():
    model, text = model_of("cmm", "replace"), tiny_models.make_text([6, 4])
    with torch.no_grad():
        found = model(**text).logits
        hidden = model.model.language_model(**text).last_hidden_state
    kept = text["attention_mask"].bool()
    assert_close(found[kept], model.lm_head(hidden)[kept], relative=ROUNDING)


def test_several_images_in_a_row_have_their_own_places():
    """Two images are not one: swapping them changes the answer, and a missing one does not exist."""
    model, text = model_of("cmm", "replace"), tiny_models.make_text([6])
    pixels = tiny_models.make_pixels(1, images=2)
    swapped = {name: tensor.flip(1) for name, tensor in pixels.items()}
    only = {name: tensor[:, 0] for name, tensor in pixels.items()}
    masked = {**pixels, "image_mask": torch.tensor([[True, False]])}
    with torch.no_grad():
        both = model(**text, **pixels).logits
        assert not torch.allclose(both, model(**text, **swapped).logits, atol=1e-4)
        assert_close(model(**text, **masked).logits, model(**text, **only).logits, relative=ROUNDING)


@pytest.mark.parametrize("fusion", ["replace", "concat", "pool"])
@pytest.mark.parametrize("ssm", ["s4d", "mamba", "liquid"])
def test_every_ssm_generates_from_its_cache(fusion, ssm):
    model, inputs = model_of("cmm", fusion, ssm=ssm), mixed_batch()
    assert_same_generation(
        generated(model, inputs, do_sample=False), generated(model, inputs, use_cache=False, do_sample=False)
    )


@pytest.mark.parametrize("implementation", ["quantized", "offloaded", "offloaded_static"])
def test_caches_that_lfm2_cannot_use_are_refused_by_name(implementation):
    with pytest.raises(ValueError, match=f"cache_implementation is '{implementation}'"):
        model_of("cmm", "replace").generate(**mixed_batch(), cache_implementation=implementation, max_new_tokens=2)


def test_holes_in_the_mask_are_refused():
    text = tiny_models.make_text([6])
    text["attention_mask"][0, 3] = 0
    with pytest.raises(ValueError, match="FireboltModel: attention_mask drops a position"):
        model_of("cmm", "replace")(**text)


def test_images_that_come_after_the_first_turn_are_refused():
    model, text = model_of("cmm", "replace"), tiny_models.make_text([6])
    first = generated(model, text, do_sample=False)
    ids = torch.cat([first.sequences, text["input_ids"]], dim=1)
    with pytest.raises(ValueError, match="pixel_values is given with a cache"):
        model.generate(input_ids=ids, **{CACHE: first[CACHE]}, **tiny_models.make_pixels(1))


def test_a_prompt_padded_on_the_right_is_refused_and_not_answered_behind_a_hole():
    model, text = model_of("cmm", "replace"), tiny_models.make_text([6, 4], side="right")
    with pytest.raises(ValueError, match="attention_mask pads a prompt on the right; expected padding on the left"):
        model.generate(**text, max_new_tokens=2)
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**text, cache=cache, use_cache=True)
        grown = torch.nn.functional.pad(text["attention_mask"], (0, 1), value=1)
        with pytest.raises(ValueError, match="drops a position between two kept ones"):
            model(input_ids=text["input_ids"][:, :1], attention_mask=grown, cache=cache, use_cache=True)
