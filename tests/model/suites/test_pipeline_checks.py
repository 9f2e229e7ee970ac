"""What transformers asks of a model in its pipelines (its PipelineTesterMixin), for both models. Names are theirs."""

import pytest
import torch
from transformers import pipeline


@pytest.fixture(scope="module")
def folder(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    subject.make().save_pretrained(folder)
    subject.processor().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pipeline_image_text_to_text(subject, folder, dtype):
    """By a path alone: one question, several, a conversation, and settings of a call."""
    ask = pipeline("image-text-to-text", model=folder, dtype=dtype)
    assert ask.model.dtype == dtype
    image = subject.picture()
    one = ask(images=image, text="what?", max_new_tokens=3)
    assert isinstance(one[0]["generated_text"], str)
    two = ask(images=[[image], [image]], text=["what?", "which?"], max_new_tokens=3)
    assert len(two) == 2
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    said = ask(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
    assert isinstance(said[0]["generated_text"], str)


def test_pipeline_batch_size(subject, folder):
    ask = pipeline("image-text-to-text", model=folder)
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": subject.picture(row)}, {"type": "text", "text": text}],
            }
        ]
        for row, text in enumerate(("what?", "which digit?", "where?"))
    ]
    told = {"max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    alone = [ask(text=chat, **told)[0]["generated_text"] for chat in chats]
    together = [one[0]["generated_text"] for one in ask(text=chats, batch_size=3, **told)]
    assert together == alone


@pytest.mark.parametrize(
    "reason",
    [
        "text_generation, feature_extraction: transformers has them for models of text or of images alone",
        "audio, segmentation, detection, depth, video_classification, zero_shot: neither model does that",
    ],
    ids=lambda reason: reason.partition(":")[0],
)
def test_not_here(reason):
    pytest.skip(reason)
