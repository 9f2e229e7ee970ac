"""Clocks of a sweep: what calls an op, forward or backward, and how long it takes by two sets of configurations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ...kernels import use_implementation
from ...kernels.configurations import Answer, answering
from .. import kernels as measuring
from ..cases import OPS, Case, inputs
from ..compile import run_backward, run_forward
from ..silent import silent_driver
from ..sweep import Clock
from ..timing import Run, quantile, time_in_turns
from .steps import Scale


class Swept(NamedTuple):
    """An op at a size, as a sweep needs it."""

    run: Callable[[str], object]
    """Calls it in a mode."""
    clock: Clock
    check: Callable[[Answer], str | None]
    """What is wrong with its values and gradients by some configurations, or None."""


@contextmanager
def swept(op: str, case: Case, dtype: str, scale: Scale) -> Iterator[Swept]:
    """An op on the GPU; in a rehearsal with a driver that launches nothing, whose times are the host's."""
    if scale.device == "cuda":
        yield _swept(op, case, dtype, scale)
        return
    with silent_driver(), use_implementation("triton"):
        yield _swept(op, case, dtype, scale)._replace(check=lambda answer: None)


def _swept(op: str, case: Case, dtype: str, scale: Scale) -> Swept:
    call = inputs(op, case, dtype, scale.device)
    leaves = OPS[op].leaves(call)

    def run(mode: str) -> Run:
        if mode == "backward":
            return Run(lambda outputs: run_backward(leaves, outputs), lambda: run_forward(op, leaves))
        return Run(lambda _: _without_gradients(lambda: run_forward(op, leaves)))

    def once(mode: str) -> None:
        one = run(mode)
        one.work(one.prepare())

    def by(mode: str, answer: Answer) -> Run:
        one = run(mode)

        def work(prepared: object) -> None:
            with answering(answer):
                one.work(prepared)

        return one._replace(work=work)

    def both(mode: str, answer: Answer) -> tuple[float, float]:
        runs = {"default": by(mode, lambda question: question.default), "other": by(mode, answer)}
        times = time_in_turns(runs, scale.device, scale.sweep_seconds)
        return 1000 * quantile(times["default"], 0.5), 1000 * quantile(times["other"], 0.5)

    def check(answer: Answer) -> str | None:
        with answering(answer):
            return measuring.op_subject(op, case, dtype, scale.device).check()

    return Swept(once, both, check)


def _without_gradients(run: Callable[[], object]) -> None:
    with torch.no_grad():
        run()
