"""Predictions for the GPU that an op is being measured on."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from ..cases import OPS
from ..kernels import device_name


def predicted_ms(
    op: str, dtype: str, modes: Sequence[str], quick: bool, device: str
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Predict the times of an op by size and mode, in words, and tell what is missing; nothing of both on a CPU."""
    if device != "cuda" or op not in OPS:
        return {}, []
    name = device_name(device)
    if find_spec("triton") is None:
        return {}, [f"{op}: nothing is predicted without Triton"]
    from .chips import BytesOnly, chip_of_device
    from .compiled import disassembler
    from .report import predictions, subjects_of_cases

    chip = chip_of_device(name)
    if chip is None or not (isinstance(chip, BytesOnly) or disassembler()):
        missing = "nvdisasm" if chip is not None else f"the numbers of {name}"
        return {}, [f"{op}: nothing is predicted without {missing}"]
    rows = predictions(subjects_of_cases([op], [dtype], quick, modes), chip, os.cpu_count() or 1)
    missing = [f"{op} {row.case} {row.mode}: not predicted: {row.problem}" for row in rows if row.problem]
    known = {(row.case, row.mode): row.us for row in rows if not row.problem}
    return {at: f"{us / 1000:.3f}" for at, us in known.items() if us is not None}, missing
