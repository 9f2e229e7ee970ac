"""Feature-wise modulation (FiLM) of tokens by what they see of the grids, on the way into the SSM and out of it."""

from .op import film_residual, grounded_film

__all__ = ["film_residual", "grounded_film"]
