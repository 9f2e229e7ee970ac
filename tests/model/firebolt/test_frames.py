"""Videos through the connector: frames and their times, alone and in a batch, at once and as they come."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_model, make_processor, make_text
from transformers import DynamicCache
from videos import write_video

from firebolt_vl.model import Video, read_video

GRIDS = 5


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 60, (count, 2))
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def some_video(count: int, seed: int = 0) -> Video:
    frame = pictures(count, seed)
    return Video([image.resize((40, 32)) for image in frame], [0.5 + second for second in range(count)])


def seen_by(model, rows, **settings):
    inputs = make_processor(**settings).image_processor(rows, return_tensors="pt")
    with torch.no_grad():
        return inputs, model.get_grids(**inputs)


def logits_of(model, ids, **images):
    with torch.no_grad():
        return model(input_ids=ids, **images, use_cache=False).logits


def test_the_frames_of_a_video_are_images_with_a_time_of_one_number():
    photo, video = pictures(1, 3)[0], some_video(3)
    inputs = make_processor().image_processor([[photo, video, photo], [video], [None]], return_tensors="pt")
    assert inputs["image_numbers"].tolist() == [[0, 1, 1, 1, 2], [0, 0, 0, 0, 0], [0] * 5]
    assert inputs["image_times"].tolist() == [[0, 0.5, 1.5, 2.5, 0], [0.5, 1.5, 2.5, 0, 0], [0] * 5]
    assert inputs["image_mask"].sum(1).tolist() == [5, 3, 0]
    frames = make_processor().image_processor([video.frames], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"][1:2, :3], frames["pixel_values"])
    assert "image_times" not in frames


def test_frames_of_a_file_come_with_their_times(tmp_path):
    video = read_video(write_video(tmp_path / "a.mp4", 3, 10))
    inputs = make_processor()(images=[[video]], text=["what?"], return_tensors="pt")
    assert inputs["image_times"].tolist() == [[0, 1, 2]]
    assert inputs["pixel_values"].shape[1] == 3
    assert torch.equal(
        make_processor()(images=video, text="what?", return_tensors="pt")["image_times"], inputs["image_times"]
    )


@pytest.mark.parametrize("grids", ["views", "patches", "both"])
def test_each_grid_has_the_number_and_the_second_of_its_frame(grids):
    model = make_model(grids=grids, grid_times=True)
    _, seen = seen_by(model, [[pictures(1)[0], some_video(2)], [None]])
    each = seen.mask.shape[1] // 3
    assert seen.images[0].tolist() == [0] * each + [1] * 2 * each
    assert seen.times[0].tolist() == [0.0] * each + [0.5] * each + [1.5] * each
    assert not seen.mask[1].any()


def test_packed_frames_give_the_same_grids():
    model = make_model(grid_times=True)
    rows = [[some_video(2), *pictures(1)], [None], [some_video(3, 1)]]
    packed, found = seen_by(model, rows, packed=True)
    _, wanted = seen_by(model, rows)
    assert set(packed) == {"pixel_values", "image_position_ids", "pixel_attention_mask"}
    for name, one, other in zip(found._fields, found, wanted):
        kept = wanted.mask if one.dim() == 2 else wanted.mask[..., None].expand_as(one)
        assert torch.equal(one[kept], other[kept]), name


def test_times_change_what_is_answered_and_a_model_without_them_sees_images_in_order():
    video = some_video(4)
    ids = make_text([6])["input_ids"]
    forwards, backwards = (Video(video.frames, times) for times in (video.times, video.times[::-1]))
    processor = make_processor().image_processor
    with_times, without = make_model(grid_times=True), make_model()
    both = [dict(processor([[one]], return_tensors="pt")) for one in (forwards, backwards)]
    found = [logits_of(with_times, ids, **images) for images in both]
    assert not torch.allclose(*found, atol=1e-3)
    found = [logits_of(without, ids, **images) for images in both]
    assert torch.equal(*found)
    assert torch.equal(found[0], logits_of(without, ids, **processor([video.frames], return_tensors="pt")))


@pytest.mark.parametrize("connector", ["cmm", "cross_attend", "prepend", "routed"])
def test_rows_of_any_number_of_images_and_frames_give_what_each_gives_alone(connector):
    model = make_model(connector, grid_times=True)
    rows = [[some_video(4)], pictures(1), [*pictures(2, 1), some_video(2, 2)], []]
    text = make_text([5, 7, 6, 4])
    processor = make_processor().image_processor
    found = logits_of(
        model,
        **{"ids": text["input_ids"]},
        attention_mask=text["attention_mask"],
        **processor(rows, return_tensors="pt"),
    )
    for row, images in enumerate(rows):
        kept = text["attention_mask"][row].bool()
        alone = processor([images], return_tensors="pt") if images else {}
        wanted = logits_of(model, text["input_ids"][row : row + 1, kept], **alone)
        torch.testing.assert_close(found[row : row + 1, kept], wanted, rtol=1e-4, atol=1e-4)


def test_a_video_is_generated_from_as_the_full_forward_says():
    model = make_model(grid_times=True)
    text = make_text([5, 7])
    images = make_processor().image_processor([[some_video(3)], pictures(1)], return_tensors="pt")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached, plain = (model.generate(**text, **images, **options, use_cache=each) for each in (True, False))
    assert torch.equal(cached, plain)
    beams = model.generate(**text, **images, **options, num_beams=2)
    assert beams.shape == cached.shape


class Conversation:
    """Calls of a model on one cache, and the inputs of the decoder that they should have come to."""

    def __init__(self, model):
        self.model = model
        self.cache = DynamicCache(config=model.config.text_config)
        self.logits, self.mask = [], None

    @torch.no_grad()
    def say(self, ids, mask=None, **images):
        mask = torch.ones_like(ids) if mask is None else mask
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        made = self.model(input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **images)
        self.logits.append(made.logits)

    def show(self, *frames, **given):
        images = make_processor().image_processor([list(frames)], return_tensors="pt")
        self.model.add_grids(self.cache, **images, **given)


@pytest.mark.parametrize("connector", ["cmm", "cross_attend"])
def test_frames_that_come_one_by_one_equal_those_that_come_at_once(connector):
    model = make_model(connector, grid_times=True)
    video, (first, second) = some_video(4), make_text([6, 5], seed=3)["input_ids"]
    frames = [Video([frame], [time]) for frame, time in zip(video.frames, video.times)]
    begin = make_processor().image_processor([[frames[0]]], return_tensors="pt")
    one_by_one, at_once = Conversation(model), Conversation(model)
    for conversation in (one_by_one, at_once):
        conversation.say(first[None], **begin)
    for frame in frames[1:]:
        one_by_one.show(frame)
    at_once.show(Video(video.frames[1:], video.times[1:]))
    for conversation in (one_by_one, at_once):
        conversation.say(second[None])
    torch.testing.assert_close(one_by_one.logits[1], at_once.logits[1], rtol=1e-5, atol=1e-5)
    # And what all of them give before any text, where the first turn is said after them.
    late = Conversation(model)
    late.say(first[None], **begin)
    late.say(second[None])
    assert not torch.allclose(late.logits[1], at_once.logits[1], atol=1e-3)


def test_what_follows_a_frame_is_what_the_decoder_says_to_the_connectors_two_pieces():
    """Worked out without the cache: pieces of the connector's own, one whole forward of the decoder."""
    model = make_model(grid_times=True)
    video = some_video(3)
    ids = make_text([11], seed=1)["input_ids"]
    begin = make_processor().image_processor([[Video(video.frames[:1], video.times[:1])]], return_tensors="pt")
    rest = Video(video.frames[1:], video.times[1:])
    conversation = Conversation(model)
    conversation.say(ids[:, :6], **begin)
    conversation.show(rest)
    conversation.say(ids[:, 6:10])
    conversation.say(ids[:, 10:])

    connector, text = model.model.connector, model.get_input_embeddings()(ids)
    with torch.no_grad():
        early = model.get_grids(**begin)
        late = model.get_grids(**make_processor().image_processor([[rest]], return_tensors="pt"))
        before, state = connector.prefill(text[:, :6], **early.given)
        after, _ = connector.prefill(text[:, 6:], state=connector.add_grids(state, **late.given))
        wanted = model.lm_head(
            model.model.language_model(inputs_embeds=torch.cat([before, after], 1)).last_hidden_state
        )
    torch.testing.assert_close(torch.cat(conversation.logits, 1), wanted, rtol=1e-4, atol=1e-4)


def test_a_row_without_an_image_begins_with_its_first_frame():
    """Its earlier text reaches the decoder as it is, and it gives the same beside a row that had an image."""
    model = make_model(grid_times=True)
    text = make_text([6, 4], seed=5)
    photo, frame = pictures(1)[0], Video(pictures(1, 4), [2.0])
    processor = make_processor().image_processor
    more = make_text([5, 5], seed=6)["input_ids"]

    both = Conversation(model)
    both.say(text["input_ids"], text["attention_mask"], **processor([[photo], None], return_tensors="pt"))
    model.add_grids(both.cache, **processor([[None], [frame]], return_tensors="pt"))
    both.say(more)

    alone = Conversation(model)
    alone.say(text["input_ids"][1:, 2:])
    alone.show(frame)
    alone.say(more[1:])
    torch.testing.assert_close(both.logits[0][1:, 2:], alone.logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.logits[1][1:], alone.logits[1], rtol=1e-4, atol=1e-4)

    never = Conversation(model)
    never.say(text["input_ids"][:1], **processor([[photo]], return_tensors="pt"))
    never.say(more[:1])
    torch.testing.assert_close(both.logits[1][:1], never.logits[1], rtol=1e-4, atol=1e-4)


def test_generation_goes_on_after_a_frame_and_takes_beams():
    model = make_model(grid_times=True)
    video = some_video(2)
    ids = make_text([6], seed=2)["input_ids"]
    begin = make_processor().image_processor([[Video(video.frames[:1], [0.0])]], return_tensors="pt")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cache = DynamicCache(config=model.config.text_config)
    first = model.generate(input_ids=ids, **begin, **options, past_key_values=cache)
    model.add_grids(cache, **make_processor().image_processor([[Video(video.frames[1:], [1.0])]], return_tensors="pt"))
    asked = torch.cat([first, ids], 1)
    again = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **options, past_key_values=cache)
    assert torch.equal(again[:, : asked.shape[1]], asked)
    assert again.shape[1] == asked.shape[1] + 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"connector": "prepend"}, "connector 'prepend'"),
        ({"fusion": "concat"}, "fusion 'concat'"),
    ],
)
def test_images_cannot_be_added_where_they_stand_in_the_text(kind, words):
    model = make_model(**kind)
    images = make_processor().image_processor([pictures(1)], return_tensors="pt")
    conversation = Conversation(model)
    conversation.say(make_text([4])["input_ids"], **images)
    with pytest.raises(ValueError, match=words):
        model.add_grids(conversation.cache, **images)


def test_wrong_calls_are_refused():
    model = make_model()
    images = make_processor().image_processor([pictures(1)], return_tensors="pt")
    conversation = Conversation(model)
    with pytest.raises(ValueError, match="past_key_values has no call in it"):
        model.add_grids(conversation.cache, **images)
    conversation.say(make_text([4])["input_ids"], **images)
    with pytest.raises(ValueError, match="pixel_values and grids are not given"):
        model.add_grids(conversation.cache)
    with pytest.raises(ValueError, match="image_times is given without image_numbers"):
        model.add_grids(conversation.cache, **images, image_times=torch.zeros(1))
    numbers = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"image_times has shape \[1, 1, 2\]; expected \[1, 1\]"):
        model.add_grids(conversation.cache, **images, image_numbers=numbers, image_times=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="frames is empty"):
        Video([], [])
    with pytest.raises(ValueError, match="times has 1 numbers; expected 2"):
        Video(pictures(2), [0.0])
    with pytest.raises(ValueError, match="times has nan; expected seconds"):
        Video(pictures(1), [float("nan")])
