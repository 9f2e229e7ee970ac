"""Token-grid correlation: scores, top-k softmax, mean over heads, context."""

from .op import correlation_context

__all__ = ["correlation_context"]
