"""Videos: frames and their times, of a file at chosen times, by PyAV.

Files are opened with care: nothing runs another program, no other file or address that a playlist may name is opened,
and what is missing, damaged, cut off or without pictures raises an error of one line that says what to do.
"""

import math
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..views.formats import begins_as_a_video
from ..views.images import open_image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream

PER_SECOND = 1.0
MOST_FRAMES = 64
# A file is cut off where it ends earlier than it says, by more than this share of it and this many seconds.
MISSING_SHARE, MISSING_SECONDS = 0.05, 0.5
GIF_TRAILER = b";"
# Formats whose duration is counted from time 0, even where the first frame comes later.
COUNTED_FROM_ZERO = ("matroska", "webm", "nut", "asf")
# Frames are decoded one after another up to the next one wanted, unless a keyframe lies this much further on.
SEEK_SECONDS = 2.0


class VideoError(ValueError):
    """Something that should be a video and cannot be read as one."""


@dataclass
class Video:
    """Frames [T] of a video, and when each was asked for, in seconds from its start.

    frames     images; those of `read_video` are upright, RGB
    duration   of the whole video in seconds, where it is known

    Raises ValueError where there is no frame, or not one time, a finite number, for each.
    """

    frames: list[Image.Image]
    times: list[float]
    duration: float | None = None

    def __post_init__(self):
        if not len(self.frames):
            raise ValueError("Video: frames is empty; expected at least one frame")
        if len(self.times) != len(self.frames):
            raise ValueError(
                f"Video: times has {len(self.times)} numbers; expected {len(self.frames)}, one for each frame"
            )
        if bad := [time for time in self.times if not math.isfinite(time)]:
            raise ValueError(f"Video: times has {bad[0]}; expected seconds")

    @property
    def width(self) -> int:
        return self.frames[0].width

    @property
    def height(self) -> int:
        return self.frames[0].height


@dataclass
class _Timeline:
    """Times of a video stream's packets, from their headers alone: presentation times in seconds, in order."""

    times: list[float]
    keyframes: list[float]
    start: float
    end: float
    known: bool  # whether the file gives times at all; else a steady rate is assumed


def read_video(
    path: str | PathLike, frames: int | None = None, per_second: float = PER_SECOND, most: int = MOST_FRAMES
) -> Video:
    """Read the frames of the video file at `path` that a model gets.

    `per_second` frames a second from the start; where that is more than `most`, as many spread over the whole video.
    With `frames`, that many spread over the whole: one in the middle of each of as many equal parts.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: there is no file to read at `path`.
        VideoError: what is there is no video, has no pictures, is damaged or cut off; or PyAV is not installed.
        ValueError: a number of frames below 1.
    """
    for name, number in (("frames", frames), ("per_second", per_second), ("most", most)):
        if number is not None and not number > 0:
            raise ValueError(f"read_video: {name} is {number}; expected a number above 0")
    path = Path(path)
    _check_file(path)
    with _opened(path) as (container, stream):
        timeline = _timeline(container, stream, path)
    duration = timeline.end - timeline.start
    times = sample_times(duration, frames, per_second, most)
    try:
        pictures = _pictures(path, timeline, times, seek=True)
    except _Lost:
        pictures = _pictures(path, timeline, times, seek=False)
    return Video(pictures, times, duration)


def sample_times(duration: float, frames: int | None, per_second: float, most: int) -> list[float]:
    """Choose the times to look at a video of `duration` seconds; see `read_video`."""
    if frames is None:
        frames = max(1, int(duration * per_second + 1 - 1e-6))
        if frames <= most:
            return [i / per_second for i in range(frames)]
        frames = most
    return [(i + 0.5) * duration / frames for i in range(frames)]


class _Lost(Exception):
    """A jump in the file did not lead to where it should."""


class _Elsewhere(Exception):
    """The file is a list of other files."""


def _check_file(path: Path) -> None:
    try:
        about = path.stat()
        if stat.S_ISREG(about.st_mode):
            path.open("rb").close()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; check the path of the video") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{path} does not exist, since a part of the path is a file; check it") from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read; give yourself permission (chmod u+r)") from None
    except OSError as error:
        raise VideoError(f"{path} cannot be opened ({error.strerror}); check the path of the video") from None
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(f"{path} is a directory; name one video file in it")
    if not stat.S_ISREG(about.st_mode):
        raise VideoError(f"{path} is not a regular file; name a video file")
    if about.st_size == 0:
        raise VideoError(f"{path} is empty; copy or download the video again")


def _pyav():
    try:
        import av
        import av.error
        import av.logging
        import av.stream
    except ModuleNotFoundError:
        raise VideoError("reading videos needs PyAV; pip install 'firebolt-vl[video]'") from None
    av.logging.set_level(None)  # FFmpeg would write to the terminal
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The file's container and its video stream; FFmpeg's errors become VideoErrors."""
    av = _pyav()

    def refuse(url: str, *_):
        raise _Elsewhere(url)

    try:
        with path.open("rb") as file, av.open(file, "r", io_open=refuse) as container:
            yield container, _video_stream(container, path)
    except _Elsewhere as error:
        raise VideoError(f"{path} is a list of other files ({error}); name the video itself") from None
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} is not a video that can be read, or is damaged or cut off ({error.strerror}); save or download it "
            "again, as MP4 or WebM"
        ) from None


def _video_stream(container: "InputContainer", path: Path) -> "VideoStream":
    av = _pyav()
    shown = [
        stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not shown:
        what = "only sound" if container.streams.audio else "no video stream"
        raise VideoError(f"{path} has {what} in it; name a file with pictures")
    stream = shown[0]
    if stream.codec_context is None:
        raise VideoError(f"{path} is in a format that this PyAV cannot decode; save it as MP4 or WebM")
    pixels = stream.codec_context.width * stream.codec_context.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise VideoError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels a frame; scale the video down")
    stream.thread_type = "AUTO"
    return stream


def _timeline(container: "InputContainer", stream: "VideoStream", path: Path) -> _Timeline:
    """Read when each frame comes, from the packets' headers: nothing is decoded."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    times, keyframes, known, length = [], [], True, 1 / rate
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the end
        moment, unit = packet.pts if packet.pts is not None else packet.dts, packet.time_base
        if known and moment is not None and unit is not None:
            time = float(moment * unit)
        else:
            known, time = False, len(times) / rate
        if packet.duration and unit is not None:
            length = float(packet.duration * unit)
        times.append(time)
        if packet.is_keyframe:
            keyframes.append(time)
    if not times:
        raise VideoError(f"{path} has no frame in it; copy or download the video again")
    times.sort()
    start, end = times[0], times[-1] + length
    said = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if said is None and container.duration and len(container.streams) == 1:
        said = container.duration / 1_000_000
    if said is not None and any(name in container.format.name for name in COUNTED_FROM_ZERO):
        said -= max(start, 0)
    if "gif" in container.format.name and path.read_bytes()[-64:].rstrip(b"\0")[-1:] != GIF_TRAILER:
        raise VideoError(f"{path} is cut off: its end mark is missing; copy or download it again")
    if said is not None and said - (end - start) > max(MISSING_SECONDS, MISSING_SHARE * said):
        raise VideoError(
            f"{path} is cut off: {end - start:.1f} of its {said:.1f} seconds are there; copy or download it again"
        )
    return _Timeline(times, sorted(keyframes), start, end, known)


def _pictures(path: Path, timeline: _Timeline, times: Sequence[float], seek: bool) -> list[Image.Image]:
    """The frame on screen at each of the rising `times`: the last one that does not come later."""
    pictures: list[Image.Image] = []
    seek = seek and timeline.known and bool(timeline.keyframes)
    with _opened(path) as (container, stream):
        decoded = _decoded(container, stream, timeline)
        shown = ahead = None  # (time, frame) on screen, and the one after it
        moment = timeline.start
        for wanted in times:
            moment = timeline.times[max(0, bisect_right(timeline.times, timeline.start + wanted + 1e-6) - 1)]
            position = ahead[0] if ahead is not None else timeline.start
            keyframe = timeline.keyframes[max(0, bisect_right(timeline.keyframes, moment) - 1)] if seek else position
            if stream.time_base and keyframe > position + SEEK_SECONDS:
                container.seek(round(keyframe / stream.time_base), stream=stream)
                decoded = _decoded(container, stream, timeline)
                shown, ahead = None, next(decoded, None)
                if ahead is None or ahead[0] > moment + 1e-6:
                    raise _Lost
            elif ahead is None and shown is None:
                ahead = next(decoded, None)
            while ahead is not None and (shown is None or ahead[0] <= moment + 1e-6):
                shown, ahead = ahead, next(decoded, None)
            if shown is None:
                raise VideoError(f"{path} has no frame that can be decoded; save it again, as MP4 or WebM")
            pictures.append(_upright(shown[1]))
        if shown is not None and abs(shown[0] - moment) > max(
            MISSING_SECONDS, MISSING_SHARE * (timeline.end - timeline.start)
        ):
            raise VideoError(
                f"{path} is damaged: what comes after {shown[0]:.1f} s cannot be decoded; download it again"
            )
    return pictures


def _decoded(
    container: "InputContainer", stream: "VideoStream", timeline: _Timeline
) -> Iterator[tuple[float, "VideoFrame"]]:
    """(time in seconds, frame) from where the container stands."""
    for number, frame in enumerate(container.decode(stream)):
        if not timeline.known:
            yield timeline.times[min(number, len(timeline.times) - 1)], frame
        elif frame.pts is not None and frame.time_base is not None:
            yield float(frame.pts * frame.time_base), frame
        else:
            yield timeline.start, frame


def _upright(frame: "VideoFrame") -> Image.Image:
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def open_image_or_video(path: str | PathLike, frames: int | None = None) -> Image.Image | Video:
    """Open the image or the video at `path`, whichever it is by its first bytes; an animated image is its first frame.

    `frames` and what is raised: as in `read_video`, and in `images.open_image`.
    """
    return read_video(path, frames) if begins_as_a_video(path) else open_image(path)


__all__ = ["Video", "VideoError", "begins_as_a_video", "open_image_or_video", "read_video", "sample_times"]
