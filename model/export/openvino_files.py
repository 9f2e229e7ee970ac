"""Parts of a model as OpenVINO's graphs, made of the ONNX ones."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ..firebolt.parts import ExportPart
from .onnx_files import ExportError, write_onnx


def write_openvino(parts: Mapping[str, ExportPart], folder: Path) -> dict[str, str]:
    """Write each part as NAME.xml and NAME.bin into a folder, in float32. Returns name -> file name.

    By way of ONNX, so that both engines compute the same operators. Raises ExportError without the packages.
    """
    try:
        import openvino
    except ImportError:
        raise ExportError(
            "export needs openvino, which is not installed; pip install 'firebolt-vl[openvino]'"
        ) from None
    files = {name: f"{name}.xml" for name in parts}
    with TemporaryDirectory(dir=folder.parent, prefix=".firebolt-") as between:
        written = write_onnx(parts, Path(between))
        for name, file in files.items():
            graph = openvino.convert_model(Path(between) / written[name])
            openvino.save_model(graph, folder / file, compress_to_fp16=False)
    return files


__all__ = ["write_openvino"]
