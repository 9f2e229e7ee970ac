"""FoveatedProcessor: images, frames, videos and nothing in one batch; round trips; chat messages."""

import numpy as np
import pytest
import torch
from foveated import make_foveated, make_processor, picture
from transformers import AutoImageProcessor, AutoProcessor, pipeline
from videos import write_video

from firebolt_vl.model import FoveatedImageProcessor, FoveatedProcessor
from firebolt_vl.model.video import read_video

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def call(text, **given):
    return make_processor()(text=text, return_tensors="pt", padding=True, **given)


def counts(batch) -> list[int]:
    assert torch.equal(batch["frame_mask"].int().cummin(1).values, batch["frame_mask"].int())  # padding at the end
    assert batch["frames"][~batch["frame_mask"]].abs().sum() == 0
    return batch["frame_mask"].sum(1).tolist()


def test_an_image_is_shown_as_eight_equal_frames():
    batch = call("what?", images=picture())
    assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == {
        "input_ids": ((1, 5), torch.int64),
        "attention_mask": ((1, 5), torch.int64),
        "frames": ((1, 8, 3, 28, 28), torch.float32),
        "frame_mask": ((1, 8), torch.bool),
    }
    assert torch.equal(batch["frames"], batch["frames"][:, :1].expand(1, 8, 3, 28, 28))
    wanted = (np.asarray(picture()) / 255 - MEAN) / STD
    np.testing.assert_allclose(batch["frames"][0, 0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)


def test_the_defaults_are_the_models():
    batch = FoveatedImageProcessor()(picture(height=100, width=300), return_tensors="pt")
    assert batch["frames"].shape == (1, 8, 3, 224, 224)


def test_images_frames_videos_and_nothing_share_a_batch(tmp_path):
    a, b, c = picture(1), picture(2, 10, 40), picture(3)
    path = write_video(tmp_path / "a.mp4", 3)
    texts = ["one", "two and more", "three", "four", "5"]
    batch = call(texts, images=[a, None, [b, c], None, [a]], videos=[None, None, None, path, None])
    assert counts(batch) == [8, 0, 2, 3, 8]
    for row, frames in {0: [a] * 8, 2: [b, c], 3: read_video(path).frames}.items():
        alone = call("x", videos=[frames])
        assert torch.equal(alone["frames"][0], batch["frames"][row, : len(frames)])


def test_forms_of_a_video_are_equal(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    video = read_video(path)
    wanted = call("what?", videos=str(path))
    stack = np.stack([np.asarray(frame) for frame in video.frames])
    forms = [path, [path], [[path]], video, video.frames, [video.frames], stack, [stack], torch.from_numpy(stack)]
    forms[-1] = forms[-1].permute(0, 3, 1, 2)
    for form in forms:
        found = call("what?", videos=form)
        assert torch.equal(found["frames"], wanted["frames"]), form
        assert torch.equal(found["frame_mask"], wanted["frame_mask"])


@pytest.mark.parametrize("nothing", [[], [None, None], [[], [None]]], ids=str)
def test_videos_and_audio_in_which_nothing_came(nothing):
    wanted = call(["a", "b"], images=[picture(), None])
    found = call(["a", "b"], images=[picture(), None], videos=nothing, audio=nothing)
    assert list(found) == list(wanted)
    assert set(call(["a", "b"], images=nothing, videos=nothing, audio=nothing)) == {"input_ids", "attention_mask"}


def test_how_many_frames_of_a_video_can_be_chosen(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    assert counts(call("what?", videos=path, num_frames=5)) == [5]
    assert counts(call("what?", videos=path, fps=2)) == [6]
    assert counts(call("what?", videos=[picture()])) == [1]  # a video of one frame is one frame
    assert counts(call("what?", images=picture(), image_frames=2)) == [2]


def test_a_flat_list_of_images_is_the_frames_of_a_single_text():
    assert counts(call("what?", images=[picture(1), picture(2), picture(3)])) == [3]
    assert counts(call(["a", "b"], images=[picture(1), picture(2)])) == [8, 8]


def test_text_alone_has_no_frames():
    assert set(call(["one", "two"], images=[None, None])) == {"input_ids", "attention_mask"}


def test_saved_and_loaded_it_is_the_same(tmp_path):
    make_processor(image_frames=3).save_pretrained(tmp_path)
    make_foveated().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FoveatedProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FoveatedImageProcessor
    found = loaded(images=picture(), text="what?", return_tensors="pt")
    assert found["frames"].shape == (1, 3, 3, 28, 28)
    wanted = make_processor(image_frames=3)(images=picture(), text="what?", return_tensors="pt")
    assert torch.equal(found["frames"], wanted["frames"])


def test_chat_messages_with_an_image_and_with_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    processor = make_processor()
    for content, frames in (({"type": "image", "image": picture()}, 8), ({"type": "video", "path": str(path)}, 3)):
        message = {"role": "user", "content": [content, {"type": "text", "text": "what?"}]}
        batch = processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert counts(batch) == [frames]


def test_the_pipeline_answers(tmp_path):
    model = make_foveated()
    model.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path), max_new_tokens=4)
    message = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what?"}]}
    found = answer([message], return_full_text=False)[0]["generated_text"]
    processor = make_processor()
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert found == processor.decode(tokens, skip_special_tokens=True)


class TestRefusals:
    def refused(self, words: str, text="what?", **given):
        with pytest.raises((ValueError, TypeError), match=words):
            call(text, **given)

    def test_rows_that_do_not_fit(self):
        self.refused("FoveatedProcessor: images or videos has 1 rows; expected 2", text=["a", "b"], images=[picture()])
        self.refused(
            "images and videos are both given in row 0; expected one of them",
            images=[picture()],
            videos=[[picture(), picture()]],
        )
        self.refused(
            "images has 1 rows and videos 2; expected as many of both",
            text=["a", "b"],
            images=[picture()],
            videos=[None, [picture()]],
        )
        self.refused("videos has 2 for one text; expected at most one", videos=[["a.mp4", "b.mp4"]])
        self.refused("FoveatedProcessor: text is an empty list", text=[], images=[picture()])

    def test_what_is_no_image_or_video(self):
        self.refused("images is of type int; expected a Pillow image", images=3)
        self.refused("videos has an empty list of frames", videos=np.zeros((0, 4, 4, 3), dtype=np.uint8))
        with pytest.raises(FileNotFoundError, match=r"no\.mp4 does not exist; check the path of the video"):
            call("what?", videos="no.mp4")

    def test_sizes_that_cannot_be(self):
        with pytest.raises(ValueError, match=r"FoveatedImageProcessor: size is .*; expected an equal height and width"):
            FoveatedImageProcessor(size={"height": 28, "width": 14})
        with pytest.raises(ValueError, match="FoveatedImageProcessor: image_frames is 0; expected at least 1"):
            FoveatedImageProcessor(image_frames=0)
        with pytest.raises(ValueError, match="do_resize is False for an image of 30 x 28; expected 28 x 28"):
            call("what?", images=picture(width=30), do_resize=False)


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "batch"])
def test_a_clip_has_one_scale_of_levels(kind):
    """A dark frame of 0..255 alone would be taken for one of 0..1, and be white."""
    clip = np.stack([np.full((8, 8, 3), level, dtype=np.float32) for level in (0.0, 1.0, 200.0)])
    read = FoveatedImageProcessor(size={"height": 8, "width": 8})
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)
    given = {"array": [clip], "tensor": [tensor], "list": [list(clip)], "batch": clip[None]}[kind]
    wanted = read([clip.astype(np.uint8)])["frames"]
    assert np.array_equal(np.asarray(read(given)["frames"]), np.asarray(wanted))
