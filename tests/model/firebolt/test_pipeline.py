"""transformers' image-text-to-text pipeline on a saved checkpoint, with images as people pass them."""

import logging

import pytest
import torch
from PIL import Image
from tiny_models import write_checkpoint
from transformers import AutoModelForMultimodalLM, pipeline

from firebolt_vl.model import FireboltForConditionalGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    return folder


@pytest.fixture(scope="module")
def answer(folder):
    """The pipeline; what it was loaded with is all it needs."""
    return pipeline("image-text-to-text", model=str(folder), max_new_tokens=4)


def chat(*images, text="what?"):
    content = [*({"type": "image", **image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_nothing_is_logged_about_an_unsupported_class(folder, caplog):
    transformers = logging.getLogger("transformers")
    propagate, transformers.propagate = transformers.propagate, True
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            answer = pipeline("image-text-to-text", model=str(folder), max_new_tokens=2)
            answer(chat({"path": str(folder / "red.png")}), return_full_text=False)
    finally:
        transformers.propagate = propagate
    # LFM2 notes that an optional package of faster convolutions is not installed.
    records = [record for record in caplog.records if not record.name.endswith("hub_kernels")]
    assert [record.getMessage() for record in records] == []


def test_an_image_by_path_or_in_memory_or_beside_the_text_gets_the_same_answer(answer, folder):
    path = str(folder / "red.png")
    image = Image.open(path)
    forms = [{"url": path}, {"path": path}, {"image": image}, {"image": path}]
    answers = [answer(chat(form), return_full_text=False)[0]["generated_text"] for form in forms]
    assert len(set(answers)) == 1
    text = answer.processor.apply_chat_template(chat(), add_generation_prompt=True)
    beside = answer(images=image, text=text, return_full_text=False, add_special_tokens=False)
    assert beside[0]["generated_text"] == answers[0]


def test_chats_with_no_one_and_several_images(answer, folder):
    red, wide = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (90, 30), "blue")
    chats = [
        chat(text="no image"),
        chat({"image": red}),
        chat({"image": red}, {"image": wide}),
        chat({}, text="forgotten"),
    ]
    one_by_one = [answer(one, return_full_text=False)[0]["generated_text"] for one in chats]
    batched = answer(chats, return_full_text=False, batch_size=1)
    assert [reply[0]["generated_text"] for reply in batched] == one_by_one


def test_the_answer_is_the_models_own(answer, folder):
    messages = chat({"path": str(folder / "red.png")})
    inputs = answer.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        tokens = answer.model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    wanted = answer.processor.decode(tokens, skip_special_tokens=True)
    assert answer(messages, return_full_text=False)[0]["generated_text"] == wanted
    assert answer(messages)[0]["generated_text"][-1] == {"role": "assistant", "content": wanted}


def test_the_class_of_any_modality_finds_the_model(folder):
    assert type(AutoModelForMultimodalLM.from_pretrained(folder)) is FireboltForConditionalGeneration


def test_the_pipeline_of_any_modality_knows_the_model(folder, caplog):
    pytest.importorskip("torchvision")  # which that pipeline asks for
    transformers = logging.getLogger("transformers")
    propagate, transformers.propagate = transformers.propagate, True
    try:
        with caplog.at_level(logging.ERROR, logger="transformers"):
            answers = pipeline("any-to-any", model=str(folder), max_new_tokens=2)
            found = answers(chat({"path": str(folder / "red.png")}), return_full_text=False)
    finally:
        transformers.propagate = propagate
    assert not caplog.records
    assert isinstance(found[0]["generated_text"], str)
