"""The processes that a launcher started: which of them this is, as the environment says; the others are not asked.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK, an MPI its own names.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from .errors import Misuse

# This process, how many there are, and this process among those of its machine.
NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
)


class Rank(NamedTuple):
    """Process `number` (from 0) of `count`; on its machine it is process `local`."""

    number: int = 0
    count: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """True for the first process of a machine, the one that shows how far work has come."""
        return self.local == 0


ALONE = Rank()


def this_rank(environment: Mapping[str, str] | None = None) -> Rank:
    """Return which process of a launcher this is; ALONE where none started it. Raises Misuse.

    `environment` is by default the process's own.
    """
    found = os.environ if environment is None else environment
    for number_name, count_name, local_name in NAMES:
        if count_name not in found:
            continue
        count = _integer(found, count_name, "a number of processes, at least 1", 1)
        if count == 1:
            return ALONE
        number = _integer(found, number_name, f"the number of this process, from 0 to {count - 1}", 0, count)
        local = (
            _integer(found, local_name, "the number of this process on its machine", 0) if local_name in found else 0
        )
        return Rank(number, count, local)
    return ALONE


def _integer(found: Mapping[str, str], name: str, expected: str, least: int, end: int | None = None) -> int:
    text = found.get(name)
    try:
        value = int(text or "")
    except ValueError:
        value = least - 1
    if value < least or (end is not None and value >= end):
        said = "missing from the environment" if text is None else f"{text} in the environment"
        raise Misuse(f"{name} is {said}; expected {expected}, as torchrun and accelerate launch set it")
    return value
