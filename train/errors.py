"""Errors for which a training does not begin, or ends before its last step."""


class ConfigError(ValueError):
    """A key or value that cannot be; the message names it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what is kept."""


class Stopped(KeyboardInterrupt):
    """The user stopped a training; the message says what is kept."""
