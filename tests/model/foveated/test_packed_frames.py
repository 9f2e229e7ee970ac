"""Images of the foveated model in `pixel_values`, its base model, and labels that are shifted already."""

import pytest
import torch
from foveated import MODES, make_foveated, make_processor, picture
from numerics import assert_close
from torch import nn

from firebolt_vl.model import FoveatedProcessor, FoveatedVLMConfig

TEXT = ["what?", "no image", "two of them", "one"]


def images_of_rows():
    return [picture(1), None, [picture(2), picture(3)], picture(4, 10, 40)]


def both(images=None, text=TEXT):
    """Inputs of one batch, packed and not."""
    images = images_of_rows() if images is None else images
    return (
        make_processor(packed=packed)(images=images, text=text, return_tensors="pt", padding=True)
        for packed in (True, False)
    )


@pytest.mark.parametrize("mode", MODES)
def test_packed_images_give_the_same_logits_and_answers(mode):
    packed, separate = both()
    for inputs, option in ((packed, True), (separate, False)):
        assert set(inputs) == set(make_processor(packed=option).model_input_names)
    assert packed["pixel_values"].shape == (4, 3, 28, 28)
    assert packed["image_position_ids"].tolist() == [[0, 8], [0, 1], [1, 2], [0, 8]]
    assert packed["pixel_attention_mask"].tolist() == [1, 0, 2, 1]
    model = make_foveated(mode=mode)
    with torch.no_grad():
        assert torch.equal(model(**packed).logits, model(**separate).logits)
    answers = [model.generate(**inputs, max_new_tokens=3, do_sample=False) for inputs in (packed, separate)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("mode", MODES)
def test_the_base_model_gives_the_states_that_logits_are_made_of(mode):
    model = make_foveated(mode=mode)
    for inputs in both():
        with torch.no_grad():
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
            columns = inputs["input_ids"].shape[1]
            assert torch.equal(model.llm.lm_head(hidden), model(**inputs).logits[:, -columns:])
    assert isinstance(model.base_model, nn.Module)
    assert {id(p) for p in model.base_model.parameters()} == {id(p) for p in model.parameters()}
    assert not any("reader" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_shifted_labels_say_the_same_as_labels(mode, weight):
    model = make_foveated(mode=mode, lambda_coarse=weight).double()
    _, inputs = both()
    # The first token, which frames predict, is no next token.
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(1) <= 1, -100)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    wanted = model(**inputs, labels=labels).loss
    assert_close(model(**inputs, shift_labels=shifted).loss, wanted, relative=1e-6)
    assert_close(model(**inputs, shift_labels=shifted, labels=labels).loss, wanted, relative=1e-6)
    total = int((labels != -100).sum()) * 3
    assert_close(model(**inputs, shift_labels=shifted, num_items_in_batch=total).loss, wanted / 3, relative=1e-6)
    with pytest.raises(ValueError, match="loss_mask and labels are both given"):
        model(**inputs, shift_labels=shifted, loss_mask=torch.ones_like(labels))
    with pytest.raises(ValueError, match=r"shift_labels has shape \[4, 2\]; expected"):
        model(**inputs, shift_labels=shifted[:, :2])


def test_a_batch_may_be_cut_into_rows_and_their_images():
    model, first = make_foveated().double(), 0
    whole, _ = both()
    with torch.no_grad():
        wanted = model(**whole).logits
        for row, count in enumerate(whole["pixel_attention_mask"].tolist()):
            part = {name: value[row : row + 1] for name, value in whole.items()}
            for name in ("pixel_values", "image_position_ids"):
                part[name] = whole[name][first : first + count]
            first += count
            kept = whole["attention_mask"][row].bool()
            assert_close(model(**part).logits[0, kept], wanted[row, kept], relative=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_position_ids": None}, "image_position_ids is not given with pixel_values; expected"),
        ({"pixel_attention_mask": None}, "pixel_attention_mask is not given with image_position_ids"),
        ({"pixel_attention_mask": torch.tensor([1, 1, 1, 0])}, r"pixel_attention_mask is \[1, 1, 1, 0\]"),
        ({"image_position_ids": torch.ones(4, 3)}, r"image_position_ids has shape \[4, 3\]"),
        ({"image_position_ids": torch.tensor([[0, 8], [1, 2], [2, 3], [0, 8]])}, "one after another"),
        ({"image_position_ids": torch.tensor([[0, 8], [0, 1], [1, 1], [0, 8]])}, "one after another"),
        ({"frames": torch.zeros(4, 1, 3, 28, 28)}, "frames and pixel_values are both given"),
    ],
)
def test_what_cannot_be_is_an_error(changes, message):
    packed, _ = both()
    given = {name: value for name, value in {**packed, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        make_foveated()(**given)


def test_the_option_is_saved_and_no_token_stands_for_an_image(tmp_path):
    make_processor(packed=True).save_pretrained(tmp_path)
    assert FoveatedProcessor.from_pretrained(tmp_path).image_processor.packed
    assert FoveatedVLMConfig().image_token_id == -1


def test_flex_attention_is_refused():
    with pytest.raises(ValueError, match="flex_attention"):
        make_foveated().set_attn_implementation("flex_attention")
