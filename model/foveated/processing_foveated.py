"""FoveatedProcessor: questions, images and videos -> the inputs of the foveated model."""

from os import PathLike
from typing import Any

from transformers.image_utils import is_valid_image
from transformers.processing_utils import ProcessingKwargs

from ..firebolt.processing_firebolt import FireboltProcessor, all_of_one_row, given
from ..video import Video, read_video
from .image_processing_foveated import Clip, FoveatedImagesKwargs, frame_rows


class FoveatedProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: FoveatedImagesKwargs  # pyright: ignore[reportIncompatibleVariableOverride]  # as in transformers


class FoveatedProcessor(FireboltProcessor):
    r"""The tokenizer and the image processor of a foveated model as one.

        processor(images=[image, None, [a, b]], text=["question", ...], return_tensors="pt", padding=True)
        processor(videos=["clip.mp4", None, [a, b]], text=["question", ...], num_frames=16, ...)

    gives `input_ids` and `attention_mask` [B,S] beside `frames` and `frame_mask`, those of
    `FoveatedImageProcessor.preprocess`; no frames if no row has any. A row has an image (shown as 8 equal frames),
    frames, a video or nothing; no token in its text stands for them.

    A video is the path of a file (1 frame a second, at most 64, or `num_frames` of them, or `fps` frames a second; see
    `read_video`), a list of frames, or an array of them. Padding and chat template: see FireboltProcessor.
    """

    valid_processor_kwargs = FoveatedProcessorKwargs
    visual_arguments = "images or videos"

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio=None, **kwargs
    ) -> Any:
        if isinstance(text, str):
            text = [text]
        if images is not None:
            images = self.image_processor.fetch_images(images)
            images = frame_rows([images] if all_of_one_row(images, text) else images)
        if given(videos) is not None:
            clips = self._clips(videos, {**kwargs.get("videos_kwargs", {}), **kwargs})
            images = clips if images is None else _either(images, clips)
        return images or None, text, None, given(audio)

    def _clips(self, videos, options: dict) -> list[Clip]:
        """The frames of each row's video, none where there is none."""
        rows = videos if isinstance(videos, list | tuple) and not _is_clip(videos) else [videos]
        return [self._clip(row, options) for row in rows]

    def _clip(self, video, options: dict) -> Clip:
        if isinstance(video, list | tuple) and not _is_clip(video):  # nested, as chat templates have it
            there = [one for one in video if one is not None]
            if len(there) > 1:
                raise ValueError(f"FoveatedProcessor: videos has {len(there)} for one text; expected at most one")
            video = there[0] if there else None
        if video is None:
            return Clip()
        if isinstance(video, str | PathLike):
            names = {"num_frames": "frames", "fps": "per_second"}
            told = {ours: options[theirs] for theirs, ours in names.items() if options.get(theirs) is not None}
            video = read_video(video, **told)
        if isinstance(video, Video):
            return Clip(video.frames)
        clip = Clip(self.image_processor.fetch_images(list(video)))
        if not clip:
            raise ValueError("FoveatedProcessor: videos has an empty list of frames; expected at least one frame")
        return clip

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        super().validate_inputs(images=images, text=text, audio=audio, **kwargs)


def _is_clip(video) -> bool:
    """A list of frames, or an array of them; not a list of videos."""
    if isinstance(video, list | tuple):
        return bool(video) and all(is_valid_image(frame) and getattr(frame, "ndim", 3) <= 3 for frame in video)
    return getattr(video, "ndim", 0) == 4


def _either(images: list, clips: list) -> list:
    """Row by row the one that has frames. Raises ValueError where both do."""
    if len(images) != len(clips):
        raise ValueError(
            f"FoveatedProcessor: images has {len(images)} rows and videos {len(clips)}; expected as many of both"
        )
    for row, (image, clip) in enumerate(zip(images, clips)):
        if image and clip:
            raise ValueError(f"FoveatedProcessor: images and videos are both given in row {row}; expected one of them")
    return [clip or image for image, clip in zip(images, clips)]


__all__ = ["FoveatedProcessor"]
