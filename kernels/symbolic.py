"""Sizes that stand for many: dimensions that an export leaves open (`torch.export.Dim`)."""

import torch

LONGEST = 2**20


def varies(*sizes: int) -> bool:
    """Tell whether one of these sizes is open: then nothing may be chosen by it, and no loop may end with it.

    Under `torch.compile` sizes count as numbers: a choice by them becomes a guard, and another size compiles anew.
    """
    return any(isinstance(size, torch.SymInt) for size in sizes)


def power_of_two(size: int) -> int:
    """Return the least power of two that is at least `size`, whatever an open size may be.

    Raises ValueError for an open size without an upper bound.
    """
    longer = 1
    # Not bit_length, for which a graph would be compiled for each size.
    if not varies(size):
        while longer < size:
            longer *= 2
        return longer
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # which imports SymPy

    while not statically_known_true(size <= longer):
        longer *= 2
        if longer > LONGEST:
            raise ValueError(
                "export: a dimension of time has no upper bound; expected torch.export.Dim(name, max=...), since the "
                "kernel of a state-space model is made for the longest text"
            )
    return longer
