"""The foveated model: one visual token for each frame, and a decoder that decides where to look next."""

from .configuration_foveated import FoveatedVLMConfig
from .loss import preference_loss, sequence_log_probabilities
from .modeling_foveated import FoveatedVLM, VisualTokens

__all__ = ["FoveatedVLM", "FoveatedVLMConfig", "VisualTokens", "preference_loss", "sequence_log_probabilities"]
