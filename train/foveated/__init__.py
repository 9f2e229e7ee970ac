"""Training of the foveated model: three stages on the loop and the data of all others."""

from .parts import parameter_groups, preference_losses, preference_step, rate

__all__ = ["parameter_groups", "preference_losses", "preference_step", "rate"]
