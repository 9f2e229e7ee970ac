"""The meaning of each PTX instruction, in families of one file each."""

from . import arithmetic, logic, matrix, transfer, warp, wgmma
from .table import OPCODES, build, predicate

__all__ = ["OPCODES", "arithmetic", "build", "logic", "matrix", "predicate", "transfer", "warp", "wgmma"]
