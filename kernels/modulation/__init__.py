"""Token-grid correlation, and feature-wise modulation (FiLM) of tokens by it."""

from .op import correlation_context, film_residual, grounded_film

__all__ = ["correlation_context", "film_residual", "grounded_film"]
