"""What a generation step is made of: the short convolution as products, the growing keys and values."""

import copy

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from transformers import DynamicCache, Lfm2Model
from transformers.cache_utils import DynamicLayer

from firebolt_vl.model.compat import CACHE, GrowingLayer, StepwiseShortConv, extend, short_convolution
from firebolt_vl.model.firebolt.cache_firebolt import ConnectorCacheLayer


def decoders(bias: bool, dtype=torch.float64):
    """transformers' own decoder and ours with the same parameters."""
    model = tiny_models.make_model(text={"conv_bias": bias}).to(dtype)
    ours = model.model.language_model
    theirs = Lfm2Model(model.config.text_config).to(dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours, model.config.text_config


@pytest.mark.parametrize("kernel", [False, True], ids=["", "beside a kernel"])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_short_convolutions_step_is_that_of_transformers(bias, kernel, monkeypatch):
    monkeypatch.setattr(short_convolution, "HAS_KERNEL", kernel)
    theirs, ours, config = decoders(bias)
    assert any(type(module) is StepwiseShortConv for module in ours.modules())
    assert not any(type(module) is StepwiseShortConv for module in theirs.modules())
    text = torch.randn(2, 9, 32, dtype=torch.float64)
    caches = DynamicCache(config=config), DynamicCache(config=config)
    for part in (text[:, :4], *text[:, 4:].split(1, dim=1)):
        wanted, found = (
            decoder(inputs_embeds=part, use_cache=True, **{CACHE: cache}).last_hidden_state
            for decoder, cache in zip((theirs, ours), caches)
        )
        # Its norms compute in float32 whatever the dtype.
        assert_close(found, wanted, relative=1e-5)
        for mine, original in zip(caches[1].layers, caches[0].layers):
            if hasattr(original, "conv_states"):
                assert_close(mine.conv_states[0], original.conv_states[0], relative=1e-5)


@torch.no_grad()
def test_the_short_convolutions_step_is_summed_in_float32():
    theirs, ours, config = decoders(False, torch.bfloat16)
    exact, _, _ = decoders(False)
    convolutions = [
        next(module for module in decoder.modules() if hasattr(module, "conv_kernel_size"))
        for decoder in (exact, theirs, ours)
    ]
    convolutions[0].load_state_dict(convolutions[1].state_dict())
    errors = []
    for seed in range(8):
        text = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(seed)).bfloat16()
        found = []
        for convolution in convolutions:
            cache = DynamicCache(config=config)
            steps = (text.to(convolution.in_proj.weight.dtype)).split([4, 1], dim=1)
            found.append([convolution(part, **{CACHE: cache}) for part in steps][-1].double())
        errors.append([(given - found[0]).norm() for given in found[1:]])
    theirs_error, ours_error = torch.tensor(errors).norm(dim=0)
    assert ours_error <= 1.2 * theirs_error


def random_pair(batch: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 2, length, 4, generator=generator) for _ in range(2))


EVENT = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 5)),
    st.tuples(st.just("crop"), st.integers(0, 3)),
    st.tuples(st.just("reorder"), st.permutations(range(3))),
    st.tuples(st.just("repeat"), st.just(None)),
    st.tuples(st.just("copy"), st.just(None)),
    st.tuples(st.just("inference"), st.integers(1, 3)),
    st.tuples(st.just("reset"), st.just(None)),
)


@given(events=st.lists(EVENT, max_size=12), margin=st.integers(0, 4))
@torch.no_grad()
def test_a_growing_layer_is_a_dynamic_layer(events, margin):
    ours, theirs = GrowingLayer(), DynamicLayer()
    ours.MARGIN = margin
    batch = 3
    for number, (event, argument) in enumerate([("update", 2), *events]):
        if event == "update":
            pair = random_pair(batch, argument, number)
            for found, wanted in zip(ours.update(*pair), theirs.update(*pair)):
                assert torch.equal(found, wanted)
        elif event == "inference":
            with torch.inference_mode():
                pair = random_pair(batch, argument, number)
                ours.update(*pair)
                theirs.update(*pair)
        elif event == "crop":
            forgotten = min(argument, max(theirs.get_seq_length() - 1, 0))
            for layer in (ours, theirs):
                layer.crop(-forgotten)
        elif event == "reorder":
            rows = torch.tensor(argument) % batch
            for layer in (ours, theirs):
                layer.reorder_cache(rows)
            batch = 3 if theirs.get_seq_length() else batch
        elif event == "repeat" and batch == 3:
            for layer in (ours, theirs):
                layer.batch_repeat_interleave(2)
                layer.batch_select_indices(torch.tensor([0, 3, 5]))
        elif event == "copy":
            left = copy.deepcopy(ours)
            ours, before = left, ours
            if before.is_initialized and before.get_seq_length():
                before.update(*random_pair(batch, 1, 99))  # what the copy came from goes its own way
        elif event == "reset":
            for layer in (ours, theirs):
                layer.reset()
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.is_initialized and theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_where_gradients_are_recorded_earlier_keys_are_left_alone():
    layer = GrowingLayer()
    pairs = [tuple(x.requires_grad_() for x in random_pair(1, 2, seed)) for seed in range(3)]
    kept = [layer.update(*pair)[0] for pair in pairs]
    sum(keys.square().sum() for keys in kept).backward()
    for times, pair in zip((3, 2, 1), pairs):
        assert_close(pair[0].grad, 2 * times * pair[0].detach(), relative=1e-6)


@torch.no_grad()
def test_a_step_writes_its_own_keys_and_copies_none():
    layer = GrowingLayer()
    layer.update(*random_pair(1, 5, 0))
    start = layer.keys.data_ptr()
    for seed in range(layer.MARGIN):
        layer.update(*random_pair(1, 1, seed))
        assert layer.keys.data_ptr() == start
    layer.update(*random_pair(1, 1, 0))
    assert layer.keys.data_ptr() != start


@torch.no_grad()
def test_decoding_keeps_the_keys_and_values_and_nothing_else_that_grows():
    model = tiny_models.make_model()
    cache = DynamicCache(config=model.config.text_config)
    memory = extend(cache, ConnectorCacheLayer)
    inputs = {**tiny_models.make_text([6]), **tiny_models.make_pixels(1)}
    model(**inputs, past_key_values=cache, prompt_mask=inputs["attention_mask"].bool())
    sizes = []
    for step in range(600):
        model(input_ids=torch.tensor([[5 + step % 200]]), past_key_values=cache, logits_to_keep=1)
        if step in (0, 599):
            attention = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if hasattr(layer, "keys"))
            storages = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for layer in cache.layers
                for tensor in tensors_of(vars(layer))
            }
            sizes.append((attention, sum(storages.values())))
    (first, all_first), (last, all_last) = sizes
    assert memory.columns == 606
    per_token = (last - first) / 599
    assert all_last - all_first <= (last - first) + GrowingLayer.MARGIN * per_token


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_of(inner)
    elif hasattr(value, "tensors"):
        yield from tensors_of(vars(value))
