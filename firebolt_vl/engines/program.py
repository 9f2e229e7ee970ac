"""An ExecuTorch program as functions of named NumPy arrays."""

import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Failure, told
from .graphs import Arrays, Graph

Shapes = dict[str, dict[str, list]]


def open_program(file: Path, inputs: Shapes, outputs: Shapes, threads: int | None = None) -> dict[str, Graph]:
    """Open a program for ExecuTorch's runtime on a CPU: its method PART for each part of `inputs` and `outputs`.

    A program knows its tensors by their order alone, which is that of the names. Raises Failure without ExecuTorch, and
    for a file that it cannot read; so does a function for arrays of other sizes than the program was made for.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it imports what makes programs too, which tells of libraries for GPUs
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except Exception as error:  # built for another PyTorch, it fails in many ways
        if find_spec("executorch") is None:
            raise Failure(
                "the engine executorch needs executorch, which is not installed; pip install 'firebolt-vl[executorch]'"
            ) from None
        raise Failure(
            f"the engine executorch: executorch cannot be imported beside PyTorch {version('torch')} ({told(error)}); "
            "docs/executorch.md has versions that go together"
        ) from None
    finally:
        logging.disable(disabled)
    if threads is not None:
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        program = Runtime.get().load_program(file)
        return {part: _graph(file, program, part, inputs[part], outputs[part]) for part in inputs}
    except Exception as error:  # whatever the runtime makes of a broken file
        raise Failure(f"{file} cannot be loaded: {told(error)}") from None


def _graph(file: Path, program: Any, part: str, inputs: dict[str, list], outputs: dict[str, list]) -> Graph:
    import torch

    method = program.load_method(part)
    metadata = method.metadata
    most = {name: metadata.input_tensor_meta(i).sizes() for i, name in enumerate(inputs)}

    def run(arrays: Arrays) -> Arrays:
        for name, shape in inputs.items():
            _check_sizes(file, name, arrays[name].shape, shape, most[name])
        found = method.execute([torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs])
        return {name: tensor.numpy() for name, tensor in zip(outputs, found)}

    return run


def _check_sizes(file: Path, name: str, found: tuple[int, ...], shape: list, most: tuple[int, ...]) -> None:
    """Check an array's sizes: those of the shape, where they are open 1 at least and `most` at most. Raises Failure."""
    right = len(found) == len(shape) and all(
        1 <= size <= bound if isinstance(wanted, str) else size == wanted
        for size, wanted, bound in zip(found, shape, most)
    )
    if not right:
        wanted = ", ".join(f"1 to {bound}" if isinstance(one, str) else str(one) for one, bound in zip(shape, most))
        raise Failure(
            f"{file}: {name} has shape {list(found)}; expected [{wanted}], which the program was made for (rows: "
            "firebolt export executorch --batch)"
        )


__all__ = ["open_program"]
