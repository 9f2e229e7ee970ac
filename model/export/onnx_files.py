"""Parts of a model as ONNX graphs, whose large weights lie in one file beside them."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..firebolt.parts import ExportPart
from .block_weights import Rounding, round_products

# What ONNX Runtime, OpenVINO and onnxruntime-web all take, and PyTorch's exporter writes without converting.
OPSET = 18
WEIGHTS = "weights.bin"
# Smaller tensors stay in their graph. Others begin at a multiple of this, where a file can be mapped into memory.
PAGE = 4096


class ExportError(ValueError):
    """A model that cannot be exported here; one line that says what to do."""


def write_onnx(
    parts: Mapping[str, ExportPart], folder: Path, rounded: Mapping[str, Rounding] | None = None
) -> dict[str, str]:
    """Write each part as NAME.onnx into a folder, and the weights of all as one file. Returns name -> file name.

    rounded   part -> how its products are rounded, for parts that have their weights in blocks (`round_products`)

    Raises ExportError without the packages that write ONNX.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  # which PyTorch's exporter imports later, and tells of in many lines
    except ImportError as error:
        raise ExportError(
            f"export needs {error.name}, which is not installed; pip install 'firebolt-vl[onnx]'"
        ) from None
    files = {name: f"{name}.onnx" for name in parts}
    with (folder / WEIGHTS).open("wb") as file, quietly(), torch.no_grad():
        weights = _Weights(file, folder)
        for name, part in parts.items():
            graph = _graph(part)
            if rounded is not None and name in rounded:
                round_products(graph, rounded[name])
            weights.take_from(graph)
            onnx_ir.save(graph, folder / files[name])
    return files


def _graph(part: ExportPart) -> Any:
    """The part as a model of onnx_ir, its open sizes by their names."""
    import onnx_ir

    program = torch.export.export(part.module, part.arguments, dynamic_shapes=part.dynamic_shapes)
    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
    )
    assert written is not None  # with dynamo
    model: Any = written.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # where in which file of this machine it comes from
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = part.inputs.get(value.name) or part.outputs[value.name]
        value.shape = onnx_ir.Shape(shape)
    return model


class _Weights:
    """A file of tensors, each once, however many graphs have it."""

    def __init__(self, file: BinaryIO, folder: Path):
        self.file, self.folder = file, folder
        self.places: dict[tuple, int] = {}

    def take_from(self, model: Any) -> None:
        """Move the large constants of a graph into the file, and let the graph say where they lie."""
        import onnx_ir

        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < PAGE:
                continue
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS,
                self._place(tensor),
                tensor.nbytes,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=self.folder,
            )

    def _place(self, tensor: Any) -> int:
        content = tensor.tobytes()
        key = (len(content), hashlib.sha256(content).digest())
        if key not in self.places:
            self.file.write(b"\0" * (-self.file.tell() % PAGE))
            self.places[key] = self.file.tell()
            self.file.write(content)
            self.file.flush()  # the graph is checked against it when it is saved
        return self.places[key]


@contextmanager
def quietly() -> Iterator[None]:
    """Silence exporters, which tell of packages that are not there, of old names and of constants that they leave."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


__all__ = ["ExportError", "quietly", "write_onnx"]
