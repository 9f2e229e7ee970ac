"""Configurations around the defaults, tried by prediction: what a launcher should state while no GPU was asked."""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from tempfile import TemporaryDirectory

from ...kernels.configurations import Answer, answering
from ...kernels.launch import Launch
from ..cases import Case
from ..compile import CHIPS, pool_of_compilers, specialise
from ..sweep import Trial, asked, climb
from .chips import Chip
from .compiled import Compiled, compile_for_prediction
from .model import predict
from .recorded import record_modes

MODES = ("forward", "backward")


def trials(subjects: Sequence[tuple[str, Case, str]], chip: Chip, processes: int) -> Iterator[list[Trial]]:
    """Yield what was tried for each op, size and dtype, in any order."""
    with TemporaryDirectory(prefix="firebolt-predict-") as folder, pool_of_compilers(processes, folder) as pool:
        for future in as_completed([pool.submit(trials_of, *subject, chip) for subject in subjects]):
            yield future.result()


def trials_of(op: str, case: Case, dtype: str, chip: Chip) -> list[Trial]:
    """Try the configurations of each kernel of an op at a size, in this process."""
    clock, found = _Clock(op, case, dtype, chip), []
    questions = asked(lambda: record_modes(op, case, dtype))
    for mode in MODES:
        started = {launch.kernel.fn.__name__ for launch in clock.launches(mode, lambda question: question.default)}
        for question in questions:
            if question.kernel in started:
                found += climb(op, str(case), mode, question, clock)
    return found


class _Clock:
    """Predicted microseconds of an op's own kernels; what was compiled once is kept."""

    def __init__(self, op: str, case: Case, dtype: str, chip: Chip):
        self.op, self.case, self.dtype, self.chip = op, case, dtype, chip
        self.compiled: dict[str, Compiled | str] = {}

    def __call__(self, mode: str, answer: Answer) -> tuple[float, float]:
        return self._us(mode, lambda question: question.default), self._us(mode, answer)

    def launches(self, mode: str, answer: Answer) -> list[Launch]:
        with answering(answer):
            modes, _ = record_modes(self.op, self.case, self.dtype)
        return modes[mode].launches

    def _us(self, mode: str, answer: Answer) -> float:
        return sum(self._us_of(launch) for launch in self.launches(mode, answer))

    def _us_of(self, launch: Launch) -> float:
        """Predict a launch. Raises RuntimeError for a kernel that does not compile, spills or needs too much."""
        job = specialise(launch, self.op, str(self.case), self.dtype, self.chip.target)
        if job.key() not in self.compiled:
            self.compiled[job.key()] = compile_for_prediction(job)
        compiled = self.compiled[job.key()]
        if isinstance(compiled, str):
            raise RuntimeError(compiled)
        if compiled.spilled or compiled.shared > CHIPS[job.target].shared_limit:
            raise RuntimeError(f"spills {compiled.spilled} bytes, or {compiled.shared} of shared memory are too many")
        return predict(launch, compiled, self.chip).total_us
