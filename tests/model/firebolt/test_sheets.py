"""All views of an image in `pixel_values`: the grids of five inputs, whatever a trainer slices and passes on."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from numerics import assert_close
from PIL import Image
from tiny_models import make_model, make_processor

from firebolt_vl.model import FireboltConfig, FireboltProcessor
from firebolt_vl.model.firebolt.sheets import view_places

TEXT = ["what is it?", "no image", "two of them", "one"]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def both(images, text=TEXT, **settings):
    """Inputs of one batch, packed and not."""
    processor = make_processor(**settings)
    packed, separate = (
        processor(images=images, text=text, return_tensors="pt", padding=True, packed=packed)
        for packed in (True, False)
    )
    return packed, separate


def pixels(inputs):
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


def images_of_rows():
    return [picture(32, 32, 1), None, [picture(20, 90, 2), picture(90, 20, 3)], picture(16, 40, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_tiles": 7},
        {"tiling": "compatible", "tile_overlap": 2},
        {"tiling": "compatible", "do_resize": False, "tile_size": 10},
        {"tile_size": 40},
    ],
    ids=str,
)
def test_packed_views_give_the_same_grids_bit_for_bit(settings):
    packed, separate = both(images_of_rows(), **settings)
    for inputs, option in ((packed, True), (separate, False)):
        assert set(inputs) == set(make_processor(packed=option).model_input_names)
    assert packed["pixel_attention_mask"].tolist() == [1, 0, 2, 1]
    model = make_model()
    with torch.no_grad():
        found, wanted = model.get_grids(**pixels(packed)), model.get_grids(**pixels(separate))
        # Compatible tiling in its own size leaves room for the tiles of an image of the size.
        tiles = separate["tile_mask"].shape[-1]
        room = packed["image_position_ids"].shape[1] - 1
        kept = torch.arange(found.mask.shape[1]) % (1 + room) <= tiles
        for ours, theirs in zip(found[:4], wanted[:4]):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours[:, kept], theirs)
        assert not found.mask[:, ~kept].any()


@pytest.mark.parametrize("connector", ["cmm", "prepend", "cross_attend"])
def test_packed_views_give_the_same_logits_and_answers(connector):
    model = make_model(connector)
    packed, separate = both(images_of_rows())
    with torch.no_grad():
        assert torch.equal(model(**packed).logits, model(**separate).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    for beams in (1, 2):
        answers = [model.generate(**inputs, num_beams=beams, **options) for inputs in (packed, separate)]
        assert torch.equal(*answers)
    if connector == "cmm":
        found, wanted = (model.ground(**inputs).weights for inputs in (packed, separate))
        assert torch.equal(found, wanted)


def test_a_batch_may_be_cut_into_rows_and_their_images():
    """As trl cuts it: pixel_values and image_position_ids by images, everything else by rows."""
    model = make_model().double()
    whole, _ = both(images_of_rows())
    first = 0
    with torch.no_grad():
        wanted = model(**whole).logits
        for row, count in enumerate(whole["pixel_attention_mask"].tolist()):
            part = {name: value[row : row + 1] for name, value in whole.items()}
            for name in ("pixel_values", "image_position_ids"):
                part[name] = whole[name][first : first + count]
            first += count
            kept = whole["attention_mask"][row].bool()
            assert_close(model(**part).logits[0, kept], wanted[row, kept], relative=1e-6)


def test_batches_made_one_by_one_can_be_joined():
    processor = make_processor(packed=True)
    rows = [processor(images=[image], text=["what?"], return_tensors="pt") for image in images_of_rows() if image]
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    wanted = processor(images=[image for image in images_of_rows() if image], text=["what?"] * 3, return_tensors="pt")
    assert set(joined) == set(wanted)
    for name in joined:
        assert torch.equal(joined[name], wanted[name])


def test_an_old_chat_goes_on_with_packed_views():
    model = make_model()
    packed, separate = both([picture(32, 32), None], ["what is it?", "and you?"])
    asked = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    for inputs in (packed, separate):
        first = model.generate(**inputs, **asked)
        again = {**inputs, "input_ids": torch.cat([first.sequences, inputs["input_ids"]], dim=1)}
        again["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(2, 3).long()], dim=1)
        again["attention_mask"] = torch.cat([again["attention_mask"], torch.ones_like(inputs["input_ids"])], dim=1)
        again.update(past_key_values=first.past_key_values)
        model.generate(**again, **asked)
    packed["pixel_attention_mask"] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="other rows with an image"):
        model.generate(**packed, past_key_values=first.past_key_values)


def test_views_lie_beside_each_other():
    places = view_places(64, 32, 5)
    covered = np.zeros((64, 64 + 3 * 32), dtype=int)
    for y0, x0, y1, x1 in places:
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert view_places(16, 40, 2).tolist() == [[0, 0, 16, 16], [0, 16, 40, 56], [0, 56, 40, 96]]


def test_the_option_is_saved_and_loaded(tmp_path):
    make_processor(packed=True).save_pretrained(tmp_path)
    assert FireboltProcessor.from_pretrained(tmp_path).image_processor.packed
    make_processor().save_pretrained(tmp_path)
    assert not FireboltProcessor.from_pretrained(tmp_path).image_processor.packed
    assert FireboltProcessor.from_pretrained(tmp_path, packed=True).image_processor.packed


def replaced(inputs, **changes):
    inputs = {**inputs, **changes}
    return {name: value for name, value in inputs.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_position_ids": None, "pixel_attention_mask": None}, "pixel_tiles is not given with pixel_values"),
        ({"image_position_ids": None}, "pixel_tiles is not given with pixel_values"),
        ({"pixel_attention_mask": None}, "pixel_attention_mask is not given with image_position_ids"),
        ({"pixel_attention_mask": torch.tensor([1, 1, 1, 0])}, r"pixel_attention_mask is \[1, 1, 1, 0\]; expected 4"),
        ({"pixel_attention_mask": torch.tensor([1, -1, 3, 1])}, r"pixel_attention_mask is \[1, -1, 3, 1\]"),
        ({"pixel_attention_mask": torch.ones(4, 1)}, r"pixel_attention_mask has shape \[4, 1\]; expected \[B\]"),
        ({"image_position_ids": torch.zeros(4, 5, 4)}, r"image_position_ids has shape \[4, 5, 4\]"),
        ({"image_position_ids": torch.zeros(3, 5, 2, 4)}, r"image_position_ids has shape \[3, 5, 2, 4\]"),
        ({"image_position_ids": torch.full((4, 5, 2, 4), -1)}, "no global view"),
        ({"tile_mask": torch.ones(4, 4)}, "tile_mask and image_position_ids are both given"),
    ],
)
def test_what_cannot_be_is_an_error(changes, message):
    packed, _ = both(images_of_rows())
    with pytest.raises(ValueError, match=message):
        make_model()(**replaced(packed, **changes))


def test_views_off_the_sheet_are_an_error():
    packed, _ = both([picture(32, 32)], ["what?"])
    packed["image_position_ids"] = packed["image_position_ids"] * 2
    with pytest.raises(ValueError, match="not on a sheet"):
        make_model()(**packed)
    packed, _ = both([picture(32, 32)], ["what?"])
    packed["image_position_ids"][0, 2, 0, 2] -= 1
    with pytest.raises(ValueError, match="a tile of another size"):
        make_model()(**packed)


def test_a_global_view_alone_is_never_taken_for_all_of_an_image():
    _, separate = both([picture(32, 32), None], ["what?", "why?"])
    model = make_model()
    alone = replaced(separate, pixel_tiles=None, tile_mask=None, grid_boxes=None)
    with pytest.raises(ValueError, match=r"let the image processor put them all there \(packed=True\)"):
        model(**alone)
    with pytest.raises(ValueError, match="pixel_tiles is not given"):
        model.generate(**alone, max_new_tokens=2)
    assert model.get_grids(**pixels(alone), tile_mask=torch.zeros(2, 0)).mask.shape == (2, 1)  # who means it says so


def test_no_token_stands_for_an_image():
    config = FireboltConfig()
    assert config.image_token_id == -1
    processor = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor([config.image_token_id])])
    scores = torch.randn(2, 7)
    assert torch.equal(processor(torch.zeros(2, 1).long(), scores), scores)


def test_transformers_names_our_models_whoever_imported_it_first():
    code = """
import transformers as first
import transformers.processing_utils
import transformers as second
import firebolt_vl.model as ours
for module in (first, second):
    assert module.FireboltForConditionalGeneration is ours.FireboltForConditionalGeneration
    assert module.FoveatedVLM is ours.FoveatedVLM
"""
    subprocess.run([sys.executable, "-c", code], check=True)
