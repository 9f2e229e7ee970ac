"""The cross-modal modulator, its state-space blocks, the connectors it is compared with and the decode state."""

from .config import CMMConfig
from .connectors import CrossAttend, Prepend
from .liquid import LiquidS4
from .mamba import Mamba
from .modulator import CrossModalModulator
from .positions import patch_boxes
from .routed import Routed
from .routed_config import RoutedConfig
from .s4 import S4
from .s4d import S4D
from .state import DecodeState

__all__ = [
    "S4",
    "S4D",
    "CMMConfig",
    "CrossAttend",
    "CrossModalModulator",
    "DecodeState",
    "LiquidS4",
    "Mamba",
    "Prepend",
    "Routed",
    "RoutedConfig",
    "patch_boxes",
]
