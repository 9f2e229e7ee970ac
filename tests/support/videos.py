"""Small video files, written where they are needed."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def grey(index: int, count: int, size: int = 64) -> np.ndarray:
    """A frame whose level says when it comes: from 0 to 255 over the video."""
    return np.full((size, size, 3), round(255 * index / count), dtype=np.uint8)


def write_video(
    path: Path,
    seconds: float = 5,
    rate: int = 10,
    codec: str = "mpeg4",
    gop: int = 12,
    picture=grey,
    sound: bool = False,
    offset: float = 0,
) -> Path:
    """`picture(index, count)` for each frame; the container is that of the suffix. `seconds` = 0: no pictures.

    The first frame comes at `offset` seconds.
    """
    count = round(seconds * rate)
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100) if sound else None
        if count:
            first = picture(0, count)
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt, stream.gop_size = "yuv420p", gop
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(picture(index, count), "rgb24")
                frame.pts, frame.time_base = index + round(offset * rate), Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 4096), dtype=np.float32), format="fltp", layout="stereo")
            silence.sample_rate = 44100
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path
