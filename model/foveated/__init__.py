"""The foveated model: one visual token for each frame, and a decoder that decides where to look next."""

from ..video import Video, VideoError, read_video
from .answering_foveated import FoveatedVLM
from .configuration_foveated import FoveatedVLMConfig
from .image_processing_foveated import FoveatedImageProcessor
from .loss import preference_loss, sequence_log_probabilities
from .processing_foveated import FoveatedProcessor
from .visual_tokens import VisualTokens

__all__ = [
    "FoveatedImageProcessor",
    "FoveatedProcessor",
    "FoveatedVLM",
    "FoveatedVLMConfig",
    "Video",
    "VideoError",
    "VisualTokens",
    "preference_loss",
    "read_video",
    "sequence_log_probabilities",
]
