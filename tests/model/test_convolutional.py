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

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "kernel_size": 3, "image_size": 32}


def tower(**given) -> ConvolutionalTower:
    torch.manual_seed(0)
    return ConvolutionalTower(ConvolutionalTowerConfig(**{**SMALL, **given})).eval()


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("patch", "side"), [(4, 32), (8, 32), (16, 64), (8, 45)])
def test_a_patch_is_a_square_of_whole_pixels(patch, side):
    with torch.no_grad():
        seen = tower(patch_size=patch)(images(side))
    assert seen.last_hidden_state.shape == (2, (side // patch) ** 2, 24)
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
    """Of one block of 3 x 3 patches: those beside it, and of each the 11 pixels about its centre that the stem sees:
    1, 2, 4 and again 4 of its convolutions."""
    model, image = tower(num_hidden_layers=1), images(96, 1).requires_grad_()
    # Norms over the whole image carry a little of every pixel everywhere.
    for norm in (*model.stem.norms, model.stem.refine_norm):
        norm.forward = lambda x: x
    model(image).last_hidden_state[0, 6 * 12 + 6].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min(), rows.max()) == (48 - 8 - 11, 48 + 8 + 11)


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
        ({"hidden_size": 30}, "hidden_size is 30; expected a multiple of 4"),
        ({"patch_size": 12}, "patch_size is 12; expected a power of two, at least 4"),
        ({"patch_size": 2}, "patch_size is 2; expected a power of two"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"num_channels": 0}, "num_channels is 0; expected a whole number, at least 1"),
        ({"hiden_size": 8}, "did you mean hidden_size"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalTowerConfig(**given)
