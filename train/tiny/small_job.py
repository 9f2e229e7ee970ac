"""Common ground of the trainings of small models: modules that learn, and their two optimisers."""

from collections.abc import Mapping
from typing import ClassVar

from accelerate import Accelerator

from ..loop import Job
from ..states import States
from .optimizers import Optimizers


class SmallJob(Job):
    """A job whose modules learn by `Optimizers`, all of them together.

    learning   names of the attributes whose modules learn; what the first one is changes in training, such as dropout
    """

    learning: ClassVar[tuple[str, ...]] = ("model",)
    optimizers: Optimizers

    def prepare(self, accelerator: Accelerator) -> None:
        for name in self.learning:
            setattr(self, name, accelerator.prepare(getattr(self, name)))
        self.optimizers.prepare(accelerator)

    def start(self, step: int) -> None:
        getattr(self, self.learning[0]).train()

    def positions(self) -> Mapping[str, object]:
        """Return what knows a place in the data, where there is such a thing, by name."""
        return {}

    def states(self) -> States:
        modules = {name: getattr(self, name) for name in self.learning}
        return States(modules, self.optimizers.parts, self.positions())
