"""Common ground of the trainings of small models: modules that learn, and their two optimisers."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from accelerate import Accelerator

from ..loop import Job
from ..states import States
from .optimizers import Optimizers


class SmallJob(Job):
    """A job whose modules learn by `Optimizers`: all of them together, unless `schedules` says otherwise.

    learning   names of the attributes whose modules learn; what the first one is changes in training, such as dropout
    """

    learning: ClassVar[tuple[str, ...]] = ("model",)
    optimizers: Optimizers

    def prepare(self, accelerator: Accelerator) -> None:
        for name in self.learning:
            setattr(self, name, accelerator.prepare(getattr(self, name)))
        for optimizers in self.schedules():
            optimizers.prepare(accelerator)

    def schedules(self) -> Sequence[Optimizers]:
        """Return all optimisers of the job, each with a schedule of its own."""
        return [self.optimizers]

    def start(self, step: int) -> None:
        getattr(self, self.learning[0]).train()

    def positions(self) -> Mapping[str, object]:
        """Return what knows a place in the data, where there is such a thing, by name."""
        return {}

    def states(self) -> States:
        modules = {name: getattr(self, name) for name in self.learning}
        parts = [part for optimizers in self.schedules() for part in optimizers.parts]
        return States(modules, parts, self.positions())
