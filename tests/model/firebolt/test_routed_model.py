"""Firebolt-VL with the routed connector, and with patches for grids."""

import pytest
import torch
from numerics import assert_close
from tiny_models import IMAGE_TOKEN, make_config, make_model, make_pixels, make_text
from transformers import DynamicCache

from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.model.firebolt import grounding

ROUNDING = 2e-5


def batch(rows: int = 3, images: int | None = None, lengths=(9, 6, 8)) -> dict[str, torch.Tensor]:
    """Row 1, if there is one, has no image."""
    inputs = {**make_text(list(lengths)[:rows]), **make_pixels(rows, images)}
    inputs["image_mask"][1:2] = False
    return inputs


def with_tokens(inputs: dict) -> dict[str, torch.Tensor]:
    """An image token for each image, in the rows that have some."""
    for row, mask in enumerate(inputs["image_mask"]):
        start = int(inputs["attention_mask"][row].argmax())
        for number in range(int(mask.sum())):
            inputs["input_ids"][row, start + 1 + 2 * number] = IMAGE_TOKEN
    return inputs


def generated(model, inputs, **options):
    return model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip


def assert_same(found, wanted) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits):
        assert_close(ours, theirs, relative=ROUNDING)


@pytest.mark.parametrize("grids", ["patches", "both"])
def test_patches_are_the_last_hidden_state_in_one_call_of_the_tower(grids, monkeypatch):
    model, inputs = make_model(grids=grids), batch()
    pixels = {name: inputs[name] for name in make_pixels(1)}
    tower, calls = model.model.vision_tower, []
    with torch.no_grad():
        wanted = tower(inputs["pixel_values"]).last_hidden_state
        forward = tower.forward
        monkeypatch.setattr(tower, "forward", lambda p, **kw: (calls.append(p.shape), forward(p, **kw))[1])
        seen = model.get_grids(**pixels)
    views = 5 if grids == "both" else 0
    assert seen.features.shape == (3, views + 16, 24)
    assert_close(seen.features[[0, 2], views:], wanted[[0, 2]], relative=1e-5)
    assert not seen.mask[1].any()
    assert (seen.features[1] == 0).all()
    assert seen.boxes[0, views].tolist() == [0, 0, 0.25, 0.25]
    assert seen.boxes[0, views + 6].tolist() == [0.25, 0.5, 0.5, 0.75]
    assert calls == [(2, 3, 32, 32), (8, 3, 16, 16)][: 2 if views else 1]
    if views:
        with torch.no_grad():
            alone = make_model().get_grids(**pixels)
        assert_close(seen.features[:, :5], alone.features, relative=1e-5)
        assert torch.equal(seen.boxes[:, :5], alone.boxes)


def test_both_need_no_boxes_of_a_usual_tiling():
    model, inputs = make_model(grids="both"), batch()
    boxes = inputs.pop("grid_boxes")
    with torch.no_grad():
        seen = model.get_grids(**{name: inputs[name] for name in make_pixels(1) if name in inputs})
    assert_close(seen.boxes[:, :5], boxes, relative=1e-6)


def test_patches_of_several_images_carry_their_number():
    model, inputs = make_model(grids="patches"), make_pixels(2, images=3)
    with torch.no_grad():
        seen = model.get_grids(**inputs)
    assert seen.features.shape == (2, 48, 24)
    assert seen.images[0].tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_a_tower_has_no_head_where_patches_alone_are_read():
    given = make_config().vision_config
    assert given.vision_use_head
    model = make_model(grids="patches")
    assert not [name for name, _ in model.named_parameters() if ".head." in name]
    views = make_config().to_dict() | {"vision_config": {**given.to_dict(), "vision_use_head": False}}
    with pytest.raises(ValueError, match="expected True, since a view's grid is the output of the pooling head"):
        type(model.config)(**views)
    with pytest.raises(ValueError, match="grids is 'pixels'; expected one of views, patches, both"):
        make_config(grids="pixels")


@pytest.mark.parametrize("connector", ["cmm", "prepend", "cross_attend", "routed", "routed_text", "routed_original"])
@pytest.mark.parametrize("grids", ["patches", "both"])
def test_cached_generation_from_patches_equals_uncached(connector, grids):
    model, inputs = make_model(connector, grids=grids), batch()
    cached = generated(model, inputs)
    assert_same(cached, generated(model, inputs, use_cache=False))
    assert_same(generated(model, inputs, cache_implementation="static"), cached)


@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
@pytest.mark.parametrize("route_by", ["score", "text"])
def test_means_at_image_tokens_are_cached_exactly(chunk, route_by):
    """Row 0 has two images, row 2 has one, row 1 none."""
    model, inputs = make_model("routed_mean", route_by=route_by), batch(images=2)
    inputs["image_mask"][2, 1] = False
    inputs = with_tokens(inputs)
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    cached = generated(model, inputs, **options)
    assert_same(cached, generated(model, inputs, use_cache=False))
    assert_same(generated(model, inputs, num_beams=1, cache_implementation="static"), cached)


def test_each_image_stands_where_the_next_of_its_tokens_is():
    """The decoder's inputs are the text's but for those places, which hold the means of the images in turn."""
    model, inputs = make_model("routed_mean"), with_tokens(batch(1, images=2))
    inputs["input_ids"][0, -1] = IMAGE_TOKEN  # a third one, for which there is no image
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        pixels = model.get_grids(**{name: inputs[name] for name in make_pixels(1)})
        text = model.get_input_embeddings()(inputs["input_ids"])
        means = model.model.connector(
            text, pixels.features, None, pixels.mask, pixels.boxes, grid_images=pixels.images
        )[:, :2]
    wanted = text.clone()
    wanted[0, 1], wanted[0, 3] = means[0, 0], means[0, 1]
    assert_close(seen[0], wanted, relative=1e-5)


def test_a_row_with_more_images_than_tokens_is_an_error():
    model, inputs = make_model("routed_mean"), with_tokens(batch(images=2))
    inputs["input_ids"][0][inputs["input_ids"][0] == IMAGE_TOKEN] = 7
    with pytest.raises(ValueError, match="input_ids has 0 image tokens in row 0; expected one in the prompt for each"):
        model(**inputs)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="inputs_embeds is given; expected input_ids"):
        model(inputs_embeds=embeds, **inputs)
    with pytest.raises(ValueError, match="image_token_id is 260; expected less than 260"):
        make_config("routed_mean", image_token_id=260)


@pytest.mark.parametrize("insert", ["prepend", "mean_at_token"])
def test_a_row_without_an_image_bypasses_or_sees_a_black_one_as_written(insert):
    token = {"insert": insert, "image_token_id": IMAGE_TOKEN}
    text = {**make_text([6, 6])}
    text["input_ids"][:, 2] = IMAGE_TOKEN
    pixels = make_pixels(2)
    pixels["image_mask"][1] = False
    black = {**make_pixels(1), "pixel_values": torch.full((1, 3, 32, 32), -1.0)}
    row = {name: tensor[1:] for name, tensor in text.items()}
    for written in (False, True):
        model = make_model("routed", grids="patches", original_behaviour=written, ssm="s4d", **token)
        with torch.no_grad():
            found = model(**text, **pixels).logits[1:]
            alone, shown = model(**row).logits, model(**row, **black).logits
        assert_close(found, alone, relative=ROUNDING)
        assert_close(found, shown, relative=ROUNDING) if written else None
        assert ((found - shown).abs().max() < 1e-3) == written
        assert_same(generated(model, row), generated(model, row, use_cache=False))
        assert_same(generated(model, row, cache_implementation="static"), generated(model, row))


def test_the_balance_is_a_part_of_the_loss_in_training_alone():
    model, inputs = make_model("routed", balance_weight=0.5), batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        plain = model(**inputs, labels=labels)
        trained = model.train()(**inputs, labels=labels)
        half = model(**inputs, labels=labels, num_items_in_batch=2 * (labels[:, 1:] != -100).sum())
    assert plain.balance is None
    assert 1.9 < trained.balance < 4
    assert_close(trained.loss, plain.loss + 0.5 * trained.balance, relative=1e-6)
    assert_close(half.loss, trained.loss / 2, relative=1e-6)
    model(**inputs, labels=labels).loss.backward()
    assert model.model.connector.experts.router.weight.grad.abs().max() > 0
    silent = make_model("routed", balance_weight=0.0).train()
    with torch.no_grad():
        assert_close(silent(**inputs, labels=labels).loss, plain.loss, relative=1e-6)


def test_a_configuration_and_its_weights_go_to_files_and_back(tmp_path):
    model, inputs = make_model("routed_mean", grids="both", order="score"), with_tokens(batch())
    model.save_pretrained(tmp_path)
    loaded = FireboltForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.config.connector_config() == model.config.connector_config()
    assert loaded.config.grids == "both"
    with torch.no_grad():
        assert_close(loaded(**inputs).logits, model(**inputs).logits, relative=1e-6)


def test_occlusion_grounds_in_patches():
    model, inputs = make_model("routed_text", grids="patches"), make_text([5, 4])
    found = model.ground(**inputs, **make_pixels(2), method="occlusion", max_new_tokens=2)
    assert found.effects.shape == (2, 16)
    assert found.boxes[0, 5].tolist() == [0.25, 0.25, 0.5, 0.5]


def test_a_turn_on_the_cache_needs_no_other_image():
    model, inputs = make_model("routed_mean"), with_tokens(batch(1))
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        whole = model(**inputs, use_cache=False).logits
        first = {name: inputs[name] for name in make_pixels(1)}
        parts, start = [], 0
        for end in (4, 9):
            now = {"input_ids": inputs["input_ids"][:, start:end], "attention_mask": inputs["attention_mask"][:, :end]}
            parts.append(model(**now, **first, past_key_values=cache, use_cache=True).logits)
            first, start = {}, end
    assert_close(torch.cat(parts, 1), whole, relative=ROUNDING)


def test_occlusion_of_many_grids_is_that_of_few_at_a_time(monkeypatch):
    model, inputs = make_model(grids="both"), {**make_text([5, 4]), **make_pixels(2)}
    answer = torch.tensor([[7, 8, 2], [9, 2, 2]])
    whole = model.ground(**inputs, method="occlusion", answer_ids=answer).effects
    monkeypatch.setattr(grounding, "MOST_ROWS", 3)
    assert whole.shape == (2, 21)
    assert_close(model.ground(**inputs, method="occlusion", answer_ids=answer).effects, whole, relative=1e-4)


def test_a_crop_into_the_prompt_takes_an_image_back_with_its_token():
    model, inputs = make_model("routed_mean"), with_tokens(batch(1, images=2))
    cache = DynamicCache(config=model.config.text_config)
    cache.activate_past_recording()
    ids, prompt = inputs["input_ids"], torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        whole = model(**inputs, use_cache=False).logits
        images = {name: inputs[name] for name in make_pixels(1)}
        model(input_ids=ids[:, :5], **images, prompt_mask=prompt, past_key_values=cache, use_cache=True)
        cache.crop(-3)
        rest = model(input_ids=ids[:, 2:], prompt_mask=prompt, past_key_values=cache, use_cache=True).logits
    assert (ids[0] == IMAGE_TOKEN).nonzero().flatten().tolist() == [1, 3]
    assert_close(rest, whole[:, 2:], relative=ROUNDING)
