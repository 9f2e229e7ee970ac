"""The cross-modal modulator, its state-space blocks, the connectors to compare it with and the state they decode with."""

from .mamba import Mamba
from .s4 import S4
from .s4d import S4D
from .state import DecodeState

__all__ = ["S4", "S4D", "DecodeState", "Mamba"]
