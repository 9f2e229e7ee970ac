"""Guesses of an assistant, or of a lookup, change how long an answer takes, and nothing of it: crops of the cache."""

import copy

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close
from PIL import Image
from transformers import DynamicCache

import firebolt_vl
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.model.compat import find_layer
from firebolt_vl.model.firebolt.cache_firebolt import ConnectorCacheLayer

KINDS = [
    ("cmm", "replace"),
    ("cmm", "concat"),
    ("cmm", "pool"),
    ("prepend", "replace"),
    ("cross_attend", "replace"),
    ("routed", "replace"),
]
MODELS = {kind: tiny_models.make_model(*kind) for kind in KINDS}
# Both sides are float32: a few hundred operations apart, never more than this.
ROUNDING = 2e-5


def prompt_of(length: int, seed: int) -> dict[str, torch.Tensor]:
    return {**tiny_models.make_text([length], seed=seed), **tiny_models.make_pixels(1)}


def near(model, seed: int):
    """A copy whose guesses are right now and then."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return model


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    length=st.integers(2, 14),
    seed=st.integers(0, 1000),
    guesses=st.sampled_from([1, 2, 3, 5, 11]),
    schedule=st.sampled_from(["constant", "heuristic"]),
    threshold=st.sampled_from([0.0, 0.4]),
)
def test_a_greedy_answer_with_an_assistant_is_the_answer_without(kind, length, seed, guesses, schedule, threshold):
    model, inputs = MODELS[kind], prompt_of(length, seed)
    assistant = near(model, seed)
    config = assistant.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = guesses, schedule
    config.assistant_confidence_threshold = threshold
    lengths = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **lengths, assistant_model=assistant), model.generate(**inputs, **lengths)
    )


@given(kind=st.sampled_from(KINDS), length=st.integers(6, 14), seed=st.integers(0, 1000), tokens=st.integers(1, 8))
@settings(max_examples=10)
def test_a_greedy_answer_with_a_lookup_is_the_answer_without(kind, length, seed, tokens):
    model, inputs = MODELS[kind], prompt_of(length, seed)
    half = length // 2
    inputs["input_ids"][0, half : 2 * half] = inputs["input_ids"][0, :half]  # something for the lookup to find
    lengths = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **lengths, prompt_lookup_num_tokens=tokens), model.generate(**inputs, **lengths)
    )


def test_the_embedded_model_assists_itself():
    folder = firebolt_vl.embedded_checkpoint()
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    processor = FireboltProcessor.from_pretrained(folder)
    image = Image.effect_noise((96, 96), 60).convert("RGB")
    inputs = processor(images=[image], text=["what digit is at the top left?"], return_tensors="pt")
    lengths = {"max_new_tokens": 12, "do_sample": False}
    plain = model.generate(**inputs, **lengths)
    for assistant in (model, near(model, seed=3)):
        assert torch.equal(model.generate(**inputs, **lengths, assistant_model=assistant), plain)
    assert torch.equal(model.generate(**inputs, **lengths, prompt_lookup_num_tokens=3), plain)


class Talk:
    """Two rows, the second padded on the left, whose columns come and go: calls on a cache, and the whole text."""

    def __init__(self, model):
        self.model = model
        inputs = {**tiny_models.make_text([6, 4]), **tiny_models.make_pixels(2)}
        self.ids, self.mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        self.images = inputs
        self.cache = DynamicCache(config=model.config.text_config)
        self.cache.activate_past_recording()
        self.call(self.ids, **self.images)

    def call(self, ids: torch.Tensor, **images) -> torch.Tensor:
        with torch.no_grad():
            return self.model(input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, **images).logits

    def say(self, columns: int, seed: int) -> torch.Tensor:
        new = torch.randint(4, 260, (2, columns), generator=torch.Generator().manual_seed(seed))
        self.ids = torch.cat([self.ids, new], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(new)], 1)
        return self.call(new)

    def forget(self, columns: int) -> None:
        self.cache.crop(-columns)
        left = self.ids.shape[1] - columns
        self.ids, self.mask = self.ids[:, :left], self.mask[:, :left]

    def whole(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False, **self.images).logits


# The other fusions read the prompt as a whole: what they made of it outlasts a crop into it.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1] == "replace"], ids=" ".join)
@given(data=st.data())
@settings(max_examples=10)
def test_what_is_cropped_was_never_there(kind, data):
    """Any number of columns of the calls since the last crop, those of the prompt too."""
    talk, start = Talk(MODELS[kind]), 3
    for _ in range(data.draw(st.integers(1, 3))):
        for columns in data.draw(st.lists(st.integers(1, 3), max_size=3)):
            talk.say(columns, seed=talk.ids.shape[1])
        talk.forget(data.draw(st.integers(0, talk.ids.shape[1] - start)))
        start = talk.ids.shape[1]
    said = talk.say(data.draw(st.integers(1, 2)), seed=99)
    assert_close(said, talk.whole()[:, -said.shape[1] :], relative=ROUNDING)


def test_a_crop_further_back_than_was_recorded_is_refused():
    talk = Talk(MODELS["cmm", "replace"])
    talk.forget(0)
    talk.say(2, seed=0)
    layer = find_layer(talk.cache, ConnectorCacheLayer)
    with pytest.raises(
        ValueError, match=r"tokens_to_remove is -3; expected at least -2, the columns that were recorded"
    ):
        layer.crop(-3)
    assert layer.columns == 8


def test_recording_may_begin_and_end_between_calls():
    """As transformers does where it looks for the end of an answer one step late."""
    talk = Talk(MODELS["cmm", "replace"])
    layer = find_layer(talk.cache, ConnectorCacheLayer)
    layer.record_past = False
    talk.say(2, seed=0)
    talk.cache.activate_past_recording()
    talk.say(1, seed=1)
    with pytest.raises(ValueError, match="expected at least -1"):
        layer.crop(-2)
    layer.crop(-1)
    assert layer.kept.tolist() == [8, 6]
