"""Graphs of an engine as functions of named NumPy arrays."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Failure, told
from .signal_stack import signal_stack_kept

Arrays = dict[str, np.ndarray]
Graph = Callable[[Arrays], Arrays]


def open_onnx(file: Path, threads: int | None = None) -> Graph:
    """Open an ONNX graph for ONNX Runtime on a CPU. Raises Failure as `onnx_session` does."""
    session = onnx_session(file, threads)
    inputs, outputs = ([one.name for one in ends] for ends in (session.get_inputs(), session.get_outputs()))

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, {name: arrays[name] for name in inputs})))

    return run


def onnx_session(file: Path, threads: int | None = None) -> Any:
    """Open an ONNX graph as a session of ONNX Runtime on a CPU.

    Raises Failure without ONNX Runtime, and for a file that it cannot read.
    """
    try:
        import onnxruntime
    except ImportError:
        raise Failure(
            "the engine onnx needs onnxruntime, which is not installed; pip install 'firebolt-vl[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        threads = _whole_number(os.environ["OMP_NUM_THREADS"])
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the runtime makes of a broken file
        raise Failure(f"{file} cannot be loaded: {told(error)}") from None


def open_openvino(file: Path, threads: int | None = None) -> Graph:
    """Open a graph for OpenVINO on a CPU, in float32. Raises Failure without it, and for a file that it cannot read."""
    try:
        import openvino
    except ImportError:
        raise Failure(
            "the engine openvino needs openvino, which is not installed; pip install 'firebolt-vl[openvino]'"
        ) from None
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        with signal_stack_kept():
            graph = openvino.Core().compile_model(file, "CPU", settings)
    except Exception as error:
        raise Failure(f"{file} cannot be loaded: {told(error)}") from None
    inputs = {port.get_any_name() for port in graph.inputs}

    def run(arrays: Arrays) -> Arrays:
        results = graph({name: arrays[name] for name in inputs})
        # Copies: the memory of the results is used again by the next call.
        return {port.get_any_name(): np.array(results[port]) for port in graph.outputs}

    return run


def _whole_number(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


OPENERS: dict[str, Callable[..., Graph]] = {"onnx": open_onnx, "openvino": open_openvino}
