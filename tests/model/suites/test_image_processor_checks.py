"""What transformers asks of an image processor (its ImageProcessingTestMixin), for both models. Names are theirs."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from suite_subjects import FIREBOLT
from transformers import AutoImageProcessor
from transformers.processing_utils import ImagesKwargs


def pixels(processor, subject, images, **given) -> torch.Tensor:
    return processor(images, return_tensors="pt", **given)[subject.pixels]


def test_image_processor_has_attributes(subject):
    processor = subject.image_processor()
    for name in ("do_resize", "do_rescale", "do_normalize", "size", "image_mean", "image_std", "resample"):
        assert getattr(processor, name) is not None, name


def test_image_processor_from_dict_with_kwargs(subject):
    described = subject.image_processor().to_dict()
    processor = subject.image_processor_class.from_dict(described, image_mean=[0.1, 0.1, 0.1])
    assert list(processor.image_mean) == [0.1, 0.1, 0.1]
    assert dict(processor.size) == dict(subject.image_processor().size)


def test_image_processor_to_json_string(subject):
    processor = subject.image_processor()
    said = json.loads(processor.to_json_string())
    for name, value in processor.to_dict().items():
        assert said[name] == (list(value) if isinstance(value, tuple) else value), name


def test_image_processor_from_and_save_pretrained(subject, tmp_path):
    processor = subject.image_processor(image_mean=[0.2, 0.3, 0.4])
    processor.save_pretrained(tmp_path)
    for door in (subject.image_processor_class, AutoImageProcessor):
        again = door.from_pretrained(tmp_path)
        assert type(again) is subject.image_processor_class
        assert again.to_json_string() == processor.to_json_string()


def test_init_without_params(subject):
    assert subject.image_processor_class().size


def test_cast_dtype_device(subject):
    batch = subject.image_processor()([subject.picture()], return_tensors="pt")
    assert batch[subject.pixels].dtype == torch.float32
    assert batch.to(torch.bfloat16)[subject.pixels].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["pil", "numpy", "pytorch"])
def test_call(subject, kind):
    """The same pixels of an image in any form; of one as of a list."""
    image = subject.picture()
    levels = np.asarray(image)
    form = {"pil": image, "numpy": levels, "pytorch": torch.from_numpy(levels.copy()).permute(2, 0, 1)}[kind]
    processor = subject.image_processor()
    wanted = pixels(processor, subject, image)
    assert torch.equal(pixels(processor, subject, form), wanted)
    assert torch.equal(pixels(processor, subject, [form, form])[:1], wanted)
    assert wanted.shape[-3:] == (3, subject.size, subject.size)


def test_call_numpy_4_channels(subject):
    """Transparent pixels lie on white or black, never beside three channels."""
    levels = np.dstack([np.asarray(subject.picture()), np.full((40, 60), 255, np.uint8)])
    processor = subject.image_processor()
    assert torch.equal(pixels(processor, subject, levels), pixels(processor, subject, subject.picture()))


def test_convert_to_rgb_mixed_input_batch(subject):
    image = subject.picture()
    mixed = [image.convert("L"), image.convert("RGBA"), image.convert("P"), image]
    batch = pixels(subject.image_processor(), subject, mixed)
    assert batch.shape[0] == 4
    assert batch.shape[-3] == 3


def test_image_processor_preprocess_arguments(subject):
    """Settings of a call override those of the processor, in that call alone."""
    processor = subject.image_processor()
    wanted = pixels(processor, subject, subject.picture())
    black = pixels(processor, subject, subject.picture(), rescale_factor=0.0)
    assert not torch.equal(black, wanted)
    assert torch.equal(pixels(processor, subject, subject.picture()), wanted)


def test_override_instance_attributes_does_not_affect_other_instances(subject):
    one, other = subject.image_processor(), subject.image_processor()
    one.size["height"] = 11
    one.image_mean = [9.0, 9.0, 9.0]
    assert other.size["height"] == subject.size
    assert list(other.image_mean) != [9.0, 9.0, 9.0]
    assert subject.image_processor_class().size["height"] != 11


def test_deepcopy(subject):
    processor = subject.image_processor()
    assert copy.deepcopy(processor).to_dict() == processor.to_dict()


def test_valid_kwargs_set(subject):
    """Each argument of its own is a setting, with a default."""
    own = set(subject.image_processor_class.valid_kwargs.__annotations__) - set(ImagesKwargs.__annotations__)
    assert own
    assert all(getattr(subject.image_processor(), name) is not None for name in own)
    assert "images" in inspect.signature(subject.image_processor_class.preprocess).parameters


def test_image_processor_properties(subject):
    """Sizes that cannot be are refused where they are set."""
    with pytest.raises(ValueError, match="size is"):
        subject.image_processor(size={"height": 20, "width": 30})


def test_nested_images(subject):
    image = subject.picture()
    processor = subject.image_processor()
    assert torch.equal(pixels(processor, subject, [[image], [image]]), pixels(processor, subject, [image, image]))
    if subject is FIREBOLT:
        assert pixels(processor, subject, [[image, image]]).shape[:2] == (1, 2)


@pytest.mark.parametrize(
    "reason",
    [
        "backends: one form, by Pillow and NumPy alone, so that pixels are the same on every machine",
        "compile: the same; nothing of it is a tensor",
        "post_process: neither model segments or detects",
    ],
    ids=lambda reason: reason.partition(":")[0],
)
def test_not_here(reason):
    pytest.skip(reason)
