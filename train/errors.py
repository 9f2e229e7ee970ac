"""Why a training ends before its last step."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what is kept."""


class Stopped(KeyboardInterrupt):
    """The user stopped a training; the message says what is kept."""
