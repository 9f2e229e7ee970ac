"""What transformers asks of a model that generates (its GenerationTesterMixin), for both models. Names are theirs."""

import copy

import pytest
import torch
from numerics import assert_close
from suite_subjects import FIREBOLT, FOVEATED
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import StaticCache
from transformers.generation import MinNewTokensLengthLogitsProcessor, StopStringCriteria, TextIteratorStreamer

from firebolt_vl.model.compat import CACHE

NEW = 6
ROUNDING = 2e-5


def generated(model, inputs, **given):
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **given}
    return model.generate(**inputs, **settings)


def told(model, inputs, **given):
    return generated(model, inputs, return_dict_in_generate=True, output_logits=True, output_scores=True, **given)


def test_greedy_generate(subject, model):
    inputs = subject.inputs()
    out = generated(model, inputs)
    assert out.shape == (2, inputs["input_ids"].shape[1] + NEW)
    assert torch.equal(out[:, :-NEW], inputs["input_ids"])


def test_greedy_generate_dict_outputs(subject, model):
    out = told(model, subject.inputs(), use_cache=False)
    assert len(out.scores) == len(out.logits) == NEW
    assert out.scores[0].shape == (2, model.config.text_config.vocab_size)


def test_greedy_generate_dict_outputs_use_cache(subject, model):
    """The cached answer is the uncached one."""
    cached, plain = told(model, subject.inputs()), told(model, subject.inputs(), use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits):
        assert_close(one, other, relative=ROUNDING)


def test_generate_outputs_hidden_states_and_attentions(subject):
    model = subject.make()
    model.set_attn_implementation("eager")
    out = told(model, subject.inputs(rows=1), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == len(out.attentions) == NEW
    assert {len(step) for step in out.hidden_states} == {model.config.text_config.num_hidden_layers + 1}
    assert all(step[-1].shape[1] == 1 for step in out.hidden_states[1:])


def test_sample_generate(subject, model):
    outs = []
    for _ in range(2):
        torch.manual_seed(1)
        outs.append(generated(model, subject.inputs(), do_sample=True, temperature=1.5))
    assert torch.equal(*outs)


def test_sample_generate_dict_output(subject, model):
    torch.manual_seed(1)
    out = told(model, subject.inputs(), do_sample=True, num_return_sequences=2)
    assert out.sequences.shape[0] == 4


def test_beam_search_generate(subject, model):
    """Never a less likely answer than the greedy one."""
    inputs = subject.inputs()
    beams = told(model, inputs, num_beams=3, length_penalty=0.0)
    greedy = told(model, inputs)
    scores = torch.stack([logits.log_softmax(-1) for logits in greedy.logits], 1)
    likely = scores.gather(-1, greedy.sequences[:, -NEW:, None]).sum((1, 2))
    assert (beams.sequences_scores >= likely - 1e-4).all()


def test_beam_search_generate_dict_outputs_use_cache(subject, model):
    cached = told(model, subject.inputs(), num_beams=3)
    assert torch.equal(cached.sequences, told(model, subject.inputs(), num_beams=3, use_cache=False).sequences)


def test_beam_sample_generate(subject, model):
    outs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        outs.append(generated(model, subject.inputs(), num_beams=2, do_sample=True, use_cache=use_cache))
    assert torch.equal(*outs)


def test_generate_without_input_ids(subject, model):
    """From images alone: the beginning token is the prompt."""
    pictures = subject.pictures(1)
    if subject is FOVEATED:
        pytest.skip("a question is needed: frames are looked at for it, and nothing says how many rows there are")
    start = torch.tensor([[model.config.text_config.bos_token_id]])
    found = model.generate(**pictures, input_ids=start, max_new_tokens=2, do_sample=False)
    assert found.shape == (1, 3)


def test_generate_from_inputs_embeds(subject, model):
    inputs = subject.inputs()
    wanted = told(model, inputs)
    ids = inputs.pop("input_ids")
    found = told(model, {**inputs, "inputs_embeds": model.get_input_embeddings()(ids).detach()})
    assert torch.equal(found.sequences, wanted.sequences[:, -NEW:])
    for one, other in zip(found.logits, wanted.logits):
        assert_close(one, other, relative=ROUNDING)


def test_generate_from_inputs_embeds_with_static_cache(subject, model):
    inputs = subject.inputs()
    wanted = generated(model, inputs)
    ids = inputs.pop("input_ids")
    given = {**inputs, "inputs_embeds": model.get_input_embeddings()(ids).detach()}
    assert torch.equal(generated(model, given, cache_implementation="static"), wanted[:, -NEW:])


def test_generate_with_static_cache(subject, model):
    static = told(model, subject.inputs(), cache_implementation="static")
    assert isinstance(static[CACHE], StaticCache)
    assert torch.equal(static.sequences, generated(model, subject.inputs()))


def test_generate_continue_from_past_key_values(subject, model):
    """A second call on the cache of the first gives what one call gives."""
    inputs = subject.inputs(rows=1)
    whole = generated(model, inputs)
    first = told(model, inputs, max_new_tokens=3, min_new_tokens=3)
    mask = torch.ones_like(first.sequences)
    second = {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first[CACHE]}
    assert torch.equal(generated(model, second, max_new_tokens=NEW - 3, min_new_tokens=NEW - 3), whole)


def test_generate_continue_from_inputs_embeds(subject, model):
    inputs = subject.inputs(rows=1)
    whole = generated(model, inputs)
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids).detach()
    first = told(model, {**inputs, "inputs_embeds": embeds}, max_new_tokens=3, min_new_tokens=3)
    longer = torch.cat([embeds, model.get_input_embeddings()(first.sequences).detach()], 1)
    second = {"inputs_embeds": longer, "attention_mask": torch.ones(longer.shape[:2]), "past_key_values": first[CACHE]}
    rest = generated(model, second, max_new_tokens=NEW - 3, min_new_tokens=NEW - 3)
    assert torch.equal(rest, whole[:, -(NEW - 3) :])


def test_past_key_values_format(subject, model):
    """Keys and values of the layers that attend, a row for each sequence; then the model's own layer."""
    cache = told(model, subject.inputs())[CACHE]
    config = model.config.text_config
    attending = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    assert len(attending) == kinds.count("full_attention")
    assert len(cache.layers) == config.num_hidden_layers + 1
    for layer in attending:
        assert layer.keys.shape[:2] == (2, config.num_key_value_heads)
        assert layer.keys.shape == layer.values.shape


def test_cache_dtype(subject):
    model = subject.make().bfloat16()
    inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in subject.inputs().items()}
    cache = told(model, inputs)[CACHE]
    assert {layer.keys.dtype for layer in cache.layers if getattr(layer, "keys", None) is not None} == {torch.bfloat16}


def test_assisted_decoding_matches_greedy_search(subject, model):
    inputs = subject.inputs(rows=1)
    assistant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in assistant.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    assistant.generation_config.num_assistant_tokens = 3
    wanted = generated(model, inputs, max_new_tokens=12, min_new_tokens=12)
    found = generated(model, inputs, max_new_tokens=12, min_new_tokens=12, assistant_model=assistant)
    assert torch.equal(found, wanted)


def test_prompt_lookup_decoding_matches_greedy_search(subject, model):
    inputs = subject.inputs(rows=1, columns=8)
    inputs["input_ids"][0, 4:] = inputs["input_ids"][0, :4]
    assert torch.equal(generated(model, inputs, prompt_lookup_num_tokens=3), generated(model, inputs))


def test_assisted_decoding_sample(subject, model):
    torch.manual_seed(0)
    inputs = subject.inputs(rows=1)
    out = generated(model, inputs, do_sample=True, assistant_model=copy.deepcopy(model))
    assert out.shape[1] == inputs["input_ids"].shape[1] + NEW


def test_left_padding_compatibility(subject, model):
    inputs = subject.inputs(rows=3)
    together = generated(model, inputs)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.equal(generated(model, alone)[0], together[row])


def test_prepare_inputs_for_generation_kwargs_forwards(subject, model):
    """Pixels are encoded once, before the first step, and no step sees them again."""
    seen = []

    def note(module, args, kwargs) -> None:
        seen.append({name for name, value in kwargs.items() if value is not None})

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    generated(model, subject.inputs())
    hook.remove()
    assert len(seen) == NEW
    assert not any(subject.pixels in names for names in seen)
    assert not any({"grids", "visual_tokens"} & names for names in seen[1:])


def test_generate_with_and_without_position_ids(subject, model):
    if subject is FOVEATED:
        pytest.skip("positions count what is there, frames first; there is no such argument")
    inputs = subject.inputs()
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        given, made = model(**inputs, position_ids=positions).logits, model(**inputs).logits
    kept = inputs["attention_mask"].bool()
    assert torch.equal(given[kept], made[kept])


def test_generate_methods_with_logits_to_keep(subject, model):
    inputs = subject.inputs()
    with torch.no_grad():
        every = model(**inputs).logits
        for keep in (1, 3):
            assert_close(model(**inputs, logits_to_keep=keep).logits, every[:, -keep:], relative=ROUNDING)


def test_inherits_generation_mixin(subject):
    assert subject.model_class.can_generate()


def test_generation_config_is_loaded_with_model(subject, tmp_path):
    model = subject.make()
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = [2, 7], 5
    model.save_pretrained(tmp_path)
    again = subject.model_class.from_pretrained(tmp_path).generation_config
    assert (again.eos_token_id, again.max_new_tokens) == ([2, 7], 5)


def test_stop_at_eos_pads_the_row(subject, model):
    inputs = subject.inputs()
    plain = generated(model, inputs)
    end = int(plain[0, -NEW + 1])
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=0)
    answer = out[0, inputs["input_ids"].shape[1] :].tolist()
    first = answer.index(end)
    assert first <= 1
    assert not any(answer[first + 1 :])


def test_stop_strings(subject, model):
    processor = subject.processor()
    inputs = subject.inputs(rows=1)
    answer = processor.tokenizer.decode(generated(model, inputs)[0, -NEW:])
    stop = StopStringCriteria(processor.tokenizer, [answer[1]])
    out = generated(
        model, inputs, min_new_tokens=None, eos_token_id=None, stopping_criteria=StoppingCriteriaList([stop])
    )
    assert out.shape[1] <= inputs["input_ids"].shape[1] + NEW


def test_logits_processors(subject, model):
    inputs = subject.inputs()
    length = inputs["input_ids"].shape[1]
    first = MinNewTokensLengthLogitsProcessor(length, NEW, model.generation_config.eos_token_id or 2)
    out = generated(model, inputs, min_new_tokens=None, logits_processor=LogitsProcessorList([first]))
    assert out.shape[1] == length + NEW


def test_streamer(subject, model):
    tokenizer = subject.processor().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    inputs = subject.inputs(rows=1)
    out = generated(model, inputs, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(out[0, -NEW:])


def test_reorder_cache(subject, model):
    """Rows of a cache may be chosen anew."""
    inputs = subject.inputs()
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        mask = torch.nn.functional.pad(inputs["attention_mask"].flip(0), (0, 1), value=1)
        token = torch.tensor([[9], [9]])
        found = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[:, -1]
        ids = torch.cat([inputs["input_ids"].flip(0), token], 1)
        images = {name: x.flip(0) for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
        wanted = model(input_ids=ids, attention_mask=mask, use_cache=False, **images).logits[:, -1]
    assert_close(found, wanted, relative=ROUNDING)


def test_prefill_in_chunks(subject, model):
    if subject is FOVEATED:
        pytest.skip("frames are one piece with the first text, and come once")
    inputs = subject.inputs(rows=1)
    assert torch.equal(generated(model, inputs, prefill_chunk_size=3), generated(model, inputs))


def test_generate_compilation_all_outputs(subject):
    if subject is FOVEATED:
        pytest.skip("its decoder has no compiled step; torch.compile(model.llm) compiles that alone")
    model = FIREBOLT.make()
    wanted = generated(model, subject.inputs())
    assert torch.equal(generated(model.compile_step(backend="eager"), subject.inputs()), wanted)


@pytest.mark.parametrize("implementation", ["quantized", "offloaded", "offloaded_static", "sliding_window"])
def test_other_caches(subject, model, implementation):
    with pytest.raises(ValueError, match="expected 'dynamic' or 'static'"):
        generated(model, subject.inputs(), cache_implementation=implementation)
    pytest.skip("what a model remembers beside keys and values cannot be quantised, offloaded or windowed: an error")


def test_contrastive_and_group_beams(subject):
    pytest.skip("contrastive search, DoLa, group and constrained beams are no longer part of transformers itself")
