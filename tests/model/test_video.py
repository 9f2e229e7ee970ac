"""Videos from files: which frames come, and what is said where none do."""

import os
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from videos import grey, write_video

from firebolt_vl.model.video import VideoError, read_video, sample_times


def levels(video) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in video.frames]


def assert_shows(video, wanted_times, seconds: float, rate: int) -> None:
    """Each frame is the one on screen at its time: the level of `grey` says which it is."""
    assert video.times == pytest.approx(wanted_times)
    count = seconds * rate
    on_screen = [int(time * rate + 1e-6) for time in wanted_times]
    assert levels(video) == pytest.approx([255 * index / count for index in on_screen], abs=4)


@pytest.mark.parametrize(
    ("name", "codec", "seconds", "rate", "gop"),
    [
        ("a.mp4", "mpeg4", 5, 10, 12),
        ("a.mp4", "libx264", 40, 5, 20),
        ("a.mp4", "libx264", 12, 5, 1000),
        ("a.webm", "libvpx-vp9", 4, 10, 10),
        ("a.mkv", "libx264", 30, 5, 25),
        ("a.avi", "mpeg4", 5, 10, 12),
        ("a.ts", "libx264", 30, 5, 25),
    ],
)
def test_frames_are_those_on_screen(tmp_path, name, codec, seconds, rate, gop):
    """Also where the reader jumps from keyframe to keyframe, and where frames are stored out of order."""
    path = write_video(tmp_path / name, seconds, rate, codec, gop)
    video = read_video(path)
    assert_shows(video, list(range(seconds)), seconds, rate)
    assert video.duration == pytest.approx(seconds, abs=0.02)
    assert (video.width, video.height) == (64, 64)
    few = read_video(path, frames=3)
    assert_shows(few, [seconds * (i + 0.5) / 3 for i in range(3)], seconds, rate)
    assert_shows(read_video(path, per_second=0.5), list(range(0, seconds, 2)), seconds, rate)


def test_a_long_video_gives_64_frames_over_all_of_it(tmp_path):
    path = write_video(tmp_path / "long.mp4", 90, 2, "libx264", 10)
    assert_shows(read_video(path), [(i + 0.5) * 90 / 64 for i in range(64)], 90, 2)


def test_more_frames_than_there_are_repeat(tmp_path):
    video = read_video(write_video(tmp_path / "short.mp4", 0.3, 10), frames=9)
    assert len(video.frames) == 9
    assert len({round(level) for level in levels(video)}) == 3


@pytest.mark.parametrize(
    ("duration", "frames", "wanted"),
    [(0.04, None, [0.0]), (3.0, None, [0.0, 1.0, 2.0]), (3.1, None, [0.0, 1.0, 2.0, 3.0]), (8.0, 2, [2.0, 6.0])],
)
def test_sample_times(duration, frames, wanted):
    assert sample_times(duration, frames, 1.0, 64) == pytest.approx(wanted)


def test_an_animated_gif_is_a_video(tmp_path):
    images = [Image.fromarray(grey(i, 20)).convert("L") for i in range(20)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=200)
    assert levels(read_video(tmp_path / "a.gif")) == pytest.approx([0, 64, 128, 191], abs=3)


def test_a_phone_held_upright_gives_upright_frames(tmp_path):
    """The picture lies on its side in the file; the container says by how much it is to be turned."""

    def lying(index, count):
        picture = np.zeros((32, 64, 3), dtype=np.uint8)
        picture[:, :20] = 255  # at the left; turned clockwise by 90 degrees, at the top
        return picture

    path = write_video(tmp_path / "turned.mp4", 1, 10, picture=lying)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *clockwise)
    path.write_bytes(data)
    frame = np.asarray(read_video(path).frames[0])
    assert frame.shape == (64, 32, 3)
    assert frame[:16].mean() > 200
    assert frame[24:].mean() < 30


def test_sound_beside_the_pictures_does_not_matter(tmp_path):
    path = write_video(tmp_path / "both.mp4", 3, 10, sound=True)
    assert_shows(read_video(path), [0, 1, 2], 3, 10)


class TestRefusals:
    def refused(self, path, error, words: str) -> None:
        with pytest.raises(error, match=words) as raised:
            read_video(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)

    def test_no_file(self, tmp_path):
        self.refused(tmp_path / "no.mp4", FileNotFoundError, "does not exist; check the path of the video")
        self.refused(tmp_path, IsADirectoryError, "is a directory")
        os.mkfifo(tmp_path / "pipe")
        self.refused(tmp_path / "pipe", VideoError, "not a regular file")

    def test_no_video(self, tmp_path):
        (tmp_path / "empty.mp4").touch()
        self.refused(tmp_path / "empty.mp4", VideoError, "is empty")
        (tmp_path / "text.mp4").write_text("not a video " * 200)
        self.refused(tmp_path / "text.mp4", VideoError, "is not a video that can be read")
        self.refused(write_video(tmp_path / "sound.mp4", 0, sound=True), VideoError, "has only sound in it")

    @pytest.mark.parametrize(
        ("name", "codec", "share"),
        [("a.mp4", "mpeg4", 0.5), ("a.mkv", "libx264", 0.5), ("a.webm", "libvpx-vp9", 0.7), ("a.avi", "mpeg4", 0.6)],
    )
    def test_cut_off(self, tmp_path, name, codec, share):
        def noise(index, count):
            return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)

        path = write_video(tmp_path / name, 6, 10, codec, picture=noise)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        self.refused(path, VideoError, "cut off")

    def test_a_gif_that_is_cut_off(self, tmp_path):
        images = [Image.fromarray(grey(i, 20)).convert("L") for i in range(20)]
        path = tmp_path / "a.gif"
        images[0].save(path, save_all=True, append_images=images[1:], duration=200)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(path, VideoError, "cut off")

    def test_a_playlist_does_not_open_other_files(self, tmp_path):
        part = write_video(tmp_path / "part.ts", 3, 10, "libx264")
        path = tmp_path / "list.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{part}\n#EXT-X-ENDLIST\n")
        self.refused(path, VideoError, "a list of other files")

    def test_frames_too_large(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", 1)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        self.refused(path, VideoError, "more than 1,000 pixels a frame")

    def test_pyav_is_not_installed(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", 1)
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(VideoError, match=r"pip install 'firebolt-vl\[video\]'"):
            read_video(path)

    @pytest.mark.parametrize("given", [{"frames": 0}, {"per_second": -1.0}, {"most": 0}])
    def test_numbers_below_one(self, tmp_path, given):
        with pytest.raises(ValueError, match=r"read_video: \w+ is .*; expected a number above 0"):
            read_video(tmp_path / "a.mp4", **given)


@pytest.mark.parametrize("offset", [0.4, 1, 60])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("nut", "mpeg4"), ("asf", "mpeg4"), ("flv", "flv")],
)
def test_a_first_frame_that_comes_late_is_the_start(tmp_path, suffix, codec, offset):
    """As in what was cut with its time stamps kept; also then what is cut off is noticed."""
    path = write_video(tmp_path / f"a.{suffix}", 4, 10, codec, offset=offset)
    video = read_video(path, frames=2)
    assert video.duration == pytest.approx(4, abs=0.15)
    assert levels(video) == pytest.approx([255 / 4, 255 * 3 / 4], abs=9)
    data = path.read_bytes()
    if suffix in ("mkv", "webm", "flv"):  # they tell their length before what they hold
        path.write_bytes(data[: int(0.6 * len(data))])
        with pytest.raises(VideoError, match=r"cut off|damaged"):
            read_video(path)
