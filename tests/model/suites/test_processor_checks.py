"""What transformers asks of a processor (its ProcessorTesterMixin), for both models. Names are theirs."""

import inspect
import json

import numpy as np
import pytest
import torch
from numerics import assert_close
from suite_subjects import FIREBOLT, FOVEATED
from transformers import AutoProcessor

CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a digit"}]},
    {"role": "user", "content": [{"type": "text", "text": "which?"}]},
]


def assert_same_batch(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def call(processor, subject, rows: int = 2, **given):
    images = [subject.picture(seed) for seed in range(rows)]
    return processor(images=images, text=["what?", "which digit?"][:rows], return_tensors="pt", padding=True, **given)


def test_processor_from_and_save_pretrained(subject, tmp_path):
    processor = subject.processor()
    processor.save_pretrained(tmp_path)
    for door in (subject.processor_class, AutoProcessor):
        again = door.from_pretrained(tmp_path)
        assert type(again) is subject.processor_class
        assert again.to_dict() == processor.to_dict()
        assert_same_batch(call(again, subject), call(processor, subject))


def test_processor_to_json_string(subject):
    processor = subject.processor()
    assert json.loads(processor.to_json_string())["processor_class"] == subject.processor_class.__name__


def test_save_load_pretrained_additional_features(subject, tmp_path):
    """Arguments of from_pretrained reach the tokenizer and the image processor."""
    subject.processor().save_pretrained(tmp_path)
    again = subject.processor_class.from_pretrained(tmp_path, padding_side="right", image_mean=[0.1, 0.2, 0.3])
    assert again.tokenizer.padding_side == "right"
    assert list(again.image_processor.image_mean) == [0.1, 0.2, 0.3]


def test_processor_from_pretrained_vs_from_components(subject, tmp_path):
    processor = subject.processor()
    processor.save_pretrained(tmp_path)
    parts = subject.processor_class(
        subject.image_processor_class.from_pretrained(tmp_path), processor.tokenizer, processor.chat_template
    )
    assert_same_batch(call(parts, subject), call(processor, subject))


def test_model_input_names(subject):
    """What a call gives is what the class says that it gives."""
    processor = subject.processor()
    assert set(call(processor, subject)) <= set(processor.model_input_names)


def test_tokenizer_decode_defaults(subject):
    processor = subject.processor()
    ids = processor.tokenizer("what digit?").input_ids
    assert processor.decode(ids) == processor.tokenizer.decode(ids) == "what digit?"
    assert processor.batch_decode([ids]) == ["what digit?"]


def test_tokenizer_defaults_preserved(subject):
    """What the tokenizer was made with holds, unless the call says otherwise."""
    processor = subject.processor(padding_side="right")
    batch = call(processor, subject)
    assert batch["attention_mask"][0, 0] == 1
    assert call(processor, subject, padding_side="left")["attention_mask"][0, 0] == 0
    assert processor.tokenizer.padding_side == "right"


def test_image_processor_defaults_preserved_by_image_kwargs(subject):
    processor = subject.processor()
    plain = call(processor, subject)[subject.pixels]
    black = call(processor, subject, images_kwargs={"rescale_factor": 0.0})[subject.pixels]
    assert black.std() < plain.std()
    assert_close(call(processor, subject)[subject.pixels], plain, relative=0.0)


@pytest.mark.parametrize("structured", [False, True])
def test_kwargs_overrides_default_kwargs(subject, structured):
    text, image = {"padding": "max_length", "max_length": 40}, {"rescale_factor": 0.0}
    given = {"text_kwargs": text, "images_kwargs": image} if structured else {**text, **image}
    processor = subject.processor()
    batch = processor(images=[subject.picture()], text=["what?"], return_tensors="pt", **given)
    assert batch["input_ids"].shape == (1, 40)
    assert not batch[subject.pixels].std((-1, -2)).any()  # black all over


def test_doubly_passed_kwargs(subject):
    with pytest.raises((ValueError, TypeError)):
        call(subject.processor(), subject, images_kwargs={"rescale_factor": 1.0}, rescale_factor=0.5)


def test_unknown_kwargs(subject):
    """Without effect, as in transformers, which names them in its log."""
    assert_same_batch(call(subject.processor(), subject, nonsense=1), call(subject.processor(), subject))


def test_args_overlap_kwargs(subject):
    """Images first, then text, also by position."""
    processor, image = subject.processor(), subject.picture()
    by_place = processor([image], ["what?"], return_tensors="pt")
    assert_same_batch(by_place, processor(images=[image], text=["what?"], return_tensors="pt"))


def test_processor_with_multiple_inputs(subject):
    with pytest.raises((ValueError, TypeError)):
        subject.processor()()


def test_processor_text_has_no_visual(subject):
    """Text alone gives no image inputs; so does a row without an image."""
    batch = subject.processor()(text=["what?"], return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert set(subject.processor()(images=[None], text=["what?"], return_tensors="pt")) == set(batch)


def test_if_input_has_mismatching_tokens_and_mm_data(subject):
    with pytest.raises(ValueError, match="rows; expected 1"):
        subject.processor()(images=[[subject.picture()], [subject.picture()]], text=["what?"], return_tensors="pt")


def test_nested_images(subject):
    """An image for each text: flat, or nested in a list of one."""
    images = [subject.picture(0), subject.picture(1)]
    processor = subject.processor()
    text = ["what?", "which?"]
    flat = processor(images=images, text=text, return_tensors="pt", padding=True)
    nested = processor(images=[[image] for image in images], text=text, return_tensors="pt", padding=True)
    assert_same_batch(flat, nested)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_return_tensors(subject, tensors):
    batch = subject.processor()(images=[subject.picture()], text=["what?"], return_tensors=tensors)
    kind = {None: list, "np": np.ndarray, "pt": torch.Tensor}[tensors]
    assert isinstance(batch["input_ids"], kind)


def test_chat_template_save_loading(subject, tmp_path):
    processor = subject.processor(chat_template="{{ messages[0]['content'] }}")
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    assert subject.processor_class.from_pretrained(tmp_path).chat_template == processor.chat_template


def test_chat_template_saving_rejects_path_traversal(subject, tmp_path):
    processor = subject.processor()
    processor.chat_template = {"default": "{{ 1 }}", "../out": "{{ 2 }}"}
    with pytest.raises((ValueError, OSError)):
        processor.save_pretrained(tmp_path / "inside")
    assert not (tmp_path / "out.jinja").exists()


def test_apply_chat_template_image(subject):
    """Rendered and tokenised in one go, as in two."""
    processor, image = subject.processor(), subject.picture()
    shown = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
    once = processor.apply_chat_template(
        shown, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = processor.apply_chat_template(shown, add_generation_prompt=True)
    twice = processor(images=[image], text=[text], return_tensors="pt", add_special_tokens=False)
    assert torch.equal(once["input_ids"], twice["input_ids"])
    assert torch.equal(once[subject.pixels], twice[subject.pixels])


def test_apply_chat_template_batched(subject):
    processor = subject.processor()
    texts = processor.apply_chat_template([CHAT, CHAT[:1]], add_generation_prompt=True)
    assert texts == [processor.apply_chat_template(one, add_generation_prompt=True) for one in (CHAT, CHAT[:1])]


def test_apply_chat_template_assistant_mask(subject):
    """One on what the assistant says, and only there."""
    processor = subject.processor()
    chat = [{**message, "content": [c for c in message["content"] if c["type"] == "text"]} for message in CHAT]
    batch = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    said = processor.tokenizer.decode(batch["input_ids"][0][batch["assistant_masks"][0].bool()])
    assert said.startswith("a digit")
    assert "which" not in said


def test_chat_template_jinja_kwargs(subject):
    processor = subject.processor(chat_template="{{ greeting }}")
    assert processor.apply_chat_template(CHAT, greeting="hello") == "hello"


def test_apply_chat_template_continue_final_message(subject):
    processor = subject.processor()
    text = processor.apply_chat_template(CHAT[:2], continue_final_message=True)
    assert text.rstrip().endswith("a digit")


def test_valid_processor_kwargs_set(subject):
    kinds = subject.processor_class.valid_processor_kwargs.__annotations__
    assert kinds["images_kwargs"] is subject.image_processor_class.valid_kwargs


def test_call_arguments_default_none(subject):
    parameters = inspect.signature(subject.processor_class.__call__).parameters
    assert all(parameters[name].default is None for name in ("images", "text"))


def test_apply_chat_template_video(subject):
    if subject is FIREBOLT:
        with pytest.raises(ValueError, match="videos"):
            subject.processor()(videos=[[subject.picture()]], text=["what?"])
        pytest.skip("it takes images; a video of one is an error")
    clip = [subject.picture(seed) for seed in range(3)]
    batch = FOVEATED.processor()(videos=[clip], text=["what?"], return_tensors="pt")
    assert batch["frames"].shape[:2] == (1, 3)


def test_audio(subject):
    pytest.skip("neither model hears")


def test_replacement_offsets_and_num_multimodal_tokens(subject):
    pytest.skip("no token of the text stands for an image, so none is counted or replaced")
