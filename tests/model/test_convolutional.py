"""The convolutional tower: shapes, places, files, and a Firebolt-VL around it."""

import pytest
import torch
from tiny_models import make_config

from firebolt_vl.model import (
    ConvolutionalTower,
    ConvolutionalTowerConfig,
    FireboltConfig,
    FireboltForConditionalGeneration,
)

SMALL = {"hidden_size": 32, "intermediate_size": 40, "stem_size": 12, "reaches": [1, 2], "image_size": 32}


def tower(**given) -> ConvolutionalTower:
    torch.manual_seed(0)
    return ConvolutionalTower(ConvolutionalTowerConfig(**{**SMALL, **given})).eval()


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("patch", "side"), [(4, 32), (8, 32), (12, 36), (16, 64), (8, 45)])
def test_a_patch_is_a_square_of_whole_pixels(patch, side):
    with torch.no_grad():
        seen = tower(patch_size=patch)(images(side))
    assert seen.last_hidden_state.shape == (2, (side // patch) ** 2, 32)
    assert torch.equal(seen.pooler_output, seen.last_hidden_state.mean(1))
    assert tower(vision_use_head=False)(images(32)).pooler_output is None


def test_pixels_beyond_the_last_whole_patch_are_not_looked_at():
    model, image = tower(), images(37)
    changed = image.clone()
    changed[..., 32:] = 9
    changed[..., 32:, :] = 9
    with torch.no_grad():
        assert torch.equal(model(image).last_hidden_state, model(changed).last_hidden_state)


def test_a_patch_sees_its_surroundings_and_no_more():
    """Of one block with a reach of 3: patches up to 3 away, and of each the 6 pixels about it that its stem sees: a
    quarter of 4, and about that a square of 2."""
    model, image = tower(reaches=[3]), images(96, 1).requires_grad_()
    # An image's mean and deviation carry a little of every pixel everywhere.
    model.stem.standardised = lambda pixels: pixels
    model(image).last_hidden_state[0, 6 * 12 + 6].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min(), rows.max()) == (48 - 24 - 4 - 2, 48 + 8 + 24 + 4 + 2 - 1)


def test_the_levels_of_an_image_do_not_matter():
    model, image = tower(), images(32)
    with torch.no_grad():
        first, second = (model(x).last_hidden_state for x in (image, 0.5 * image + 3))
    assert (first - second).abs().max() < 0.2 * first.std()


def test_a_firebolt_around_it_is_saved_and_loaded(tmp_path):
    text = make_config().text_config.to_dict()
    vision = {**SMALL, "model_type": ConvolutionalTowerConfig.model_type}
    torch.manual_seed(0)
    for grids in ("patches", "views"):
        config = FireboltConfig(text_config=text, vision_config=vision, grids=grids)
        model = FireboltForConditionalGeneration(config).eval()
        model.save_pretrained(tmp_path / grids)
        again = FireboltForConditionalGeneration.from_pretrained(tmp_path / grids)
        assert isinstance(again.model.vision_tower, ConvolutionalTower)
        given = {"input_ids": torch.tensor([[4, 5, 6]]), "pixel_values": images(32, 1)}
        given |= {"pixel_tiles": images(16, 4)[None]}
        with torch.no_grad():
            first, second = model(**given).logits, again(**given).logits
        assert torch.equal(first, second)


def test_learning_reaches_every_weight():
    model = tower()
    model.train()(images(32)).last_hidden_state.square().mean().backward()
    model(images(32)).last_hidden_state[..., 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 24}, "hidden_size is 24; expected a multiple of 16"),
        ({"patch_size": 10}, "patch_size is 10; expected a multiple of 4"),
        ({"stem_size": 0}, "stem_size is 0; expected a whole number, at least 1"),
        ({"reaches": []}, "reaches is \\[\\]; expected whole numbers, at least 1, one for each block"),
        ({"reaches": [2, 0]}, "reaches is \\[2, 0\\]; expected whole numbers"),
        ({"num_channels": 0}, "num_channels is 0; expected a whole number, at least 1"),
        ({"hiden_size": 8}, "did you mean hidden_size"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalTowerConfig(**given)
