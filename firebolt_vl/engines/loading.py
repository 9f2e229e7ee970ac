"""Loading of an engine by its name."""

from pathlib import Path

from ..errors import Failure
from .answer import Engine

ENGINES = ("torch", "onnx", "openvino", "executorch")


def load_engine(checkpoint: str | Path | None = None, engine: str = "torch", *, threads: int | None = None) -> Engine:
    """Load what answers questions about images: `load_engine(DIR, "onnx").answer(image, question).text`.

    Arguments:
        checkpoint: with the engine "torch" what `firebolt ask --checkpoint` takes; else a folder that `firebolt export`
            wrote for that engine.
        engine: "torch", "onnx" (ONNX Runtime), "openvino" or "executorch". The second and the third need no PyTorch.
        threads: how many the engine's graphs run with; None: as many as it likes. Not for "torch", which has its own
            setting (torch.set_num_threads).

    Raises ValueError for another engine, Failure where something is missing or broken.
    """
    if engine not in ENGINES:
        raise ValueError(f"load_engine: engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    if engine == "torch":
        from ..checkpoint import locate
        from .torch_engine import TorchEngine

        if threads is not None:
            raise ValueError(f"load_engine: threads is {threads}; expected None with the engine torch")
        return TorchEngine.load(locate(None if checkpoint is None else str(checkpoint)))
    from .graph_engine import GraphEngine

    if checkpoint is None:
        raise Failure(f"checkpoint is not given; expected a folder that firebolt export {engine} wrote")
    if not Path(checkpoint).is_dir():
        raise Failure(f"checkpoint {checkpoint} is no folder; expected one that firebolt export {engine} wrote")
    return GraphEngine.load(Path(checkpoint), engine, threads)
