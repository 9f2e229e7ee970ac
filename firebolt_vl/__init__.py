"""Firebolt-VL: a fast, small vision-language model, its drop-in modulator layer and the kernels under it."""

from pathlib import Path

from .version import __version__


def embedded_checkpoint() -> Path:
    """The folder of the small trained model that ships inside the package.

    Raises:
        FileNotFoundError: this copy of the package was made without it.
    """
    folder = Path(__file__).parent / "tiny"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError("the embedded checkpoint is not in this copy of firebolt_vl; `make tiny` trains it")
    return folder


__all__ = ["__version__", "embedded_checkpoint"]
