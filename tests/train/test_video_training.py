"""Training on rows of any number of images, and on videos, with a Firebolt that knows times."""

import pytest
import torch
from conversations import picture, row, write_rows
from post_trainings import run as run_post
from post_trainings import told as told_post
from safetensors.torch import load_file
from tiny_models import make_model, make_processor
from trainings import config, losses, run
from videos import write_video

from firebolt_vl.model import Video
from firebolt_vl.train.conversations import AnswerLoss, ConversationsJob, blank_image
from firebolt_vl.train.data import Collator

IMAGES = [{"image": "0.png"}, {"video": "clip.mp4"}, {}, {"image": ["1.png", "0.png", "1.png"]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_model(grid_times=True).save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for number in range(2):
        picture(number).save(folder / "data" / f"{number}.png")
    write_video(folder / "data" / "clip.mp4", seconds=4)
    rows = [row(f"what is {n}?", f"it is {n}", rejected="no", **IMAGES[n % 4]) for n in range(8)]
    write_rows(folder / "data" / "rows.jsonl", rows)
    return folder


def loss_of(job) -> AnswerLoss:
    blank = dict(job.processor.image_processor([[blank_image(job.processor)]], return_tensors="pt"))
    return AnswerLoss(job.model, blank, False).eval()


def test_a_batch_has_the_loss_of_its_rows(folder):
    """An image, a video, nothing, three images: in one batch, and each alone."""
    job = ConversationsJob(config(folder))
    loss, collate = loss_of(job), Collator(job.dataset, job.processor)
    together = collate((0, 1, 2, 3))
    assert together.inputs["image_mask"].sum(1).tolist() == [1, 4, 0, 3]
    assert together.inputs["image_times"][1].tolist() == [0, 1, 2, 3]
    assert together.inputs["image_numbers"].tolist() == [[0] * 4, [0] * 4, [0] * 4, [0, 1, 2, 0]]
    with torch.no_grad():
        alone = sum(loss(**collate((number,)).inputs) for number in range(4))
        torch.testing.assert_close(loss(**together.inputs), alone, rtol=1e-4, atol=1e-4)
        still = {**together.inputs, "image_times": torch.zeros(4, 4)}
        assert not torch.allclose(loss(**still), alone, rtol=1e-4, atol=1e-4)


def test_a_video_is_read_as_frames_of_one_video(folder):
    dataset = ConversationsJob(config(folder, frames=2)).dataset
    (video,) = dataset[1].images
    assert isinstance(video, Video)
    assert video.times == [1, 3]


def test_a_run_learns_the_map_of_times(folder):
    out = run(folder, "learns", max_steps=2, train=["connector"])
    assert len(losses(out)) == 2
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    assert not torch.equal(
        before["model.connector.positions.time.weight"], after["model.connector.positions.time.weight"]
    )


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trl_trains_on_videos_too(folder, kind):
    pytest.importorskip("trl")
    lines = told_post(run_post(folder, kind, f"trl-{kind}", max_steps=2, frames=3))
    assert len(lines) >= 2


def test_a_model_that_puts_images_in_the_text_takes_a_video_where_it_knows_times(folder, tmp_path):
    for knows in (True, False):
        place = tmp_path / str(knows)
        make_model("routed_mean", grid_times=knows).save_pretrained(place)
        make_processor().save_pretrained(place)
        reading = ConversationsJob(config(folder, model=str(place), max_bad_share=1.0)).dataset
        assert len(reading) == (8 if knows else 6)
        if not knows:
            assert reading.problems.by_kind == {"row with a video": 2}


def test_packed_rows_with_videos_have_the_losses_of_padded_ones(folder):
    padded, packed = (
        losses(run(folder, f"packing-{packing}", max_steps=2, packing=packing)) for packing in (False, True)
    )
    assert packed == pytest.approx(padded, rel=1e-4)
