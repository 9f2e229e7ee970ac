"""Parts of a model as OpenVINO's graphs, made of the ONNX ones."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ..firebolt.parts import ExportPart
from .onnx_files import ExportError, write_onnx


def write_openvino(parts: Mapping[str, ExportPart], folder: Path) -> dict[str, str]:
    """Write each part as NAME.xml and NAME.bin into a folder, in float32. Returns name -> file name.

    By way of ONNX, so that both engines compute the same operators. Raises ExportError without the packages.
    """
    check_openvino()
    with TemporaryDirectory(dir=folder.parent, prefix=".firebolt-") as between:
        written = write_onnx(parts, Path(between))
        return convert({name: Path(between) / file for name, file in written.items()}, folder)


def convert(graphs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Write ONNX graphs as OpenVINO's into a folder, as `write_openvino` does."""
    import openvino

    files = {name: f"{name}.xml" for name in graphs}
    for name, file in files.items():
        # Not openvino.convert_model, which reports its use to OpenVINO's makers where that is not switched off.
        graph = openvino.Core().read_model(graphs[name])
        openvino.save_model(graph, folder / file, compress_to_fp16=False)
    return files


def check_openvino() -> None:
    """Raise ExportError where OpenVINO is not installed."""
    if find_spec("openvino") is None:
        raise ExportError("export needs openvino, which is not installed; pip install 'firebolt-vl[openvino]'")


__all__ = ["convert", "write_openvino"]
