"""Choice of the implementation of an op for a device: the one place that decides it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_one_of
from .transforms import transformed

OPS = (
    "correlation_context",
    "grounded_film",
    "film_residual",
    "vandermonde",
    "cauchy",
    "fft_conv",
    "diagonal_scan",
    "selective_scan",
    "selective_state_update",
    "gated_scan",
)
NAMES = ("reference", "pytorch", "triton")
WIDE = (torch.float64, torch.complex128)
TRITON_INSTALLED = find_spec("triton") is not None
OLDEST_CAPABILITY = (8, 0)
"""Of NVIDIA's GPUs: the first with bfloat16 on tensor cores and copies that are not waited for."""
AMD_CHIPS = ("gfx942", "gfx950")
"""Of AMD's GPUs: those that the kernels are compiled for (`firebolt bench compile`)."""


class Implementation(NamedTuple):
    name: str
    """One of `NAMES`."""
    why: str
    """One sentence for people (`firebolt info` prints it)."""


_chosen: str | None = None


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """A region in which every op runs by the implementation `name`, whatever the device; for tests and comparisons.

    "reference" is the reference implementation, "pytorch" the exact form for CPUs, "triton" the kernels (on a CPU: in
    Triton's interpreter, so TRITON_INTERPRET=1 has to be set before they are imported). Where an op gets float64 or an
    empty tensor, "triton" means "pytorch".

    Raises ValueError for another name.
    """
    global _chosen
    check_one_of("use_implementation", "name", name, NAMES)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def implementation(op: str, device: torch.device | str) -> Implementation:
    """Return the implementation that runs for `op` (one of `OPS`) on tensors of `device`."""
    check_one_of("implementation", "op", op, OPS)
    kind = torch.device(device).type
    if _chosen == "reference":
        return Implementation("reference", "the reference implementation was asked for")
    if _chosen == "triton":
        return Implementation("triton", "the Triton kernel was asked for")
    if _chosen is not None:
        return Implementation("pytorch", "the exact PyTorch form was asked for")
    if kind == "cpu":
        return Implementation("pytorch", "on a CPU the exact PyTorch form runs; Triton kernels are for GPUs")
    if kind != "cuda" or not TRITON_INSTALLED:
        missing = f"Triton has no {kind} devices" if kind != "cuda" else "Triton is not installed"
        return Implementation("pytorch", f"{missing}: the PyTorch form runs on {kind}")
    if refusal := why_not_on(torch.device(device).index):
        return Implementation("pytorch", refusal)
    return Implementation("triton", "the Triton kernel; the PyTorch form for float64 and for empty tensors")


def why_not_on(index: int | None) -> str | None:
    """Say in one sentence why no kernel runs on the GPU with this number (None: the current one); None where they run.

    Each GPU is asked once in a process; of one that is not there nothing is known.
    """
    if not torch.cuda.device_count():
        return None
    return _refusal(torch.cuda.current_device() if index is None else index)


# As `torch.compiler.assume_constant_result` does, which would have everyone wait for the compiler's import.
why_not_on._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@cache
def _refusal(index: int) -> str | None:
    card = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        chip = card.gcnArchName.partition(":")[0]
        known = chip in AMD_CHIPS
        wanted, found = f"are compiled for {' and '.join(AMD_CHIPS)}", chip
    else:
        known = (card.major, card.minor) >= OLDEST_CAPABILITY
        wanted, found = "need compute capability {}.{}".format(*OLDEST_CAPABILITY), f"of {card.major}.{card.minor}"
    return None if known else f"the kernels {wanted}, and this GPU is {found}: the PyTorch form runs"


def choose(op: str, first: Tensor, *others: Tensor | None) -> str:
    """The name of what runs for `op` on these tensors (None is skipped), the first of which says on which device."""
    name = implementation(op, first.device).name
    if name == "triton" and transformed():  # the kernels know no torch.func
        return "pytorch"
    if name == "triton" and any(t is not None and (t.numel() == 0 or t.dtype in WIDE) for t in (first, *others)):
        return "pytorch"
    return name
