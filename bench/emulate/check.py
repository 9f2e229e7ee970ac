"""An op at a small size, forward and backward in the emulator, held to the error budget of its definition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import use_implementation
from .. import kernels as measuring
from ..budget import Error, errors
from ..cases import Case, Inputs, inputs
from ..kernels import random_cotangents, values_and_gradients
from .ptx import UnknownPTX
from .run import Emulation, emulating


@dataclass(frozen=True)
class Row:
    """The result of a case."""

    op: str
    case: str
    dtype: str
    target: str
    kernels: tuple[str, ...] = ()
    programs: int = 0
    instructions: int = 0
    """Executed, each counted once for all threads of a program."""
    values: tuple[float, ...] = ()
    """Errors of the outputs as shares of what the budget allows."""
    gradients: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()

    def described(self) -> str:
        return f"{self.op}: {self.case}, {self.dtype}, {self.target}"


def check(op: str, case: Case, dtype: str, target: str, seed: int = 0) -> Row:
    """Run a case; whatever goes wrong is a problem of its row."""
    names = op, str(case), dtype, target
    try:
        emulation, judged = run(op, case, dtype, target, seed)
    except (UnknownPTX, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return Row(*names, problems=(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}",))
    problems = [f"{finding} ({count} times)" for finding, count in emulation.findings.items()]
    problems += [str(error) for error in judged if not error.within]
    return Row(
        *names,
        kernels=tuple(dict.fromkeys(launch.kernel for launch in emulation.launches)),
        programs=sum(launch.programs for launch in emulation.launches),
        instructions=sum(launch.instructions for launch in emulation.launches),
        values=tuple(share(error) for error in judged if error.name.startswith("output")),
        gradients=tuple(share(error) for error in judged if error.name.startswith("gradient")),
        problems=tuple(problems),
    )


def share(error: Error) -> float:
    return round(error.error / error.allowed, 3) if error.allowed else float(error.error > 0)


def run(op: str, case: Case, dtype: str, target: str, seed: int = 0, **options: Any) -> tuple[Emulation, list[Error]]:
    """Values and gradients of an op in the emulator, whose further options are given, and their errors."""
    args, named = inputs(op, case, dtype, seed=seed)
    named.pop("k_spectrum", None)  # `functions` makes it of k
    call = Inputs(args, named)
    if "strided" in case.options:
        call = call.map(transposed)
    public, definition = functions(op, case)
    with emulating(target, seed, **options) as emulation, use_implementation("triton"):
        found = values_and_gradients(public, call)
    outputs = [tensor for name, tensor in found.items() if name.startswith("output")]

    def defined(tensors: Sequence[Tensor]) -> list[Tensor]:
        changed = iter(tensors)
        same = call.map(lambda _: next(changed))
        return list(values_and_gradients(definition, same, tensors[-len(outputs) :]).values())

    tensors = [*call.tensors(), *random_cotangents(outputs)]
    halves = "fast" in case.options and dtype != "float32"
    arithmetic = getattr(torch, dtype) if halves else torch.float32
    terms = spectrum_size(case) if "spectrum" in case.options else 1
    judged = errors(list(found.values()), defined, tensors, names=list(found), terms=terms, arithmetic=arithmetic)
    return emulation, list(judged)


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers, the last two axes the other way round in memory."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def functions(op: str, case: Case) -> tuple[Callable, Callable]:
    """An op and its definition. A convolution by a spectrum gets it of its taps, so that both have their gradient."""
    public, definition = measuring.functions(op)
    if "spectrum" not in case.options:
        return public, definition

    def by_spectrum(u: Tensor, k: Tensor, d_skip: Tensor, **options: Any) -> Tensor:
        return public(u, k, d_skip, k_spectrum=torch.fft.rfft(k, spectrum_size(case)), **options)

    return by_spectrum, definition


def spectrum_size(case: Case) -> int:
    return max(512, 2 ** (2 * case.sizes["L"] - 1).bit_length())
