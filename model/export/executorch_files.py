"""Parts of a model as an ExecuTorch program: so many rows, an image in each, a text of open length up to a bound."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from ..firebolt.parts import ExportPart, Shape, example_part
from .onnx_files import ExportError, quietly

FILE = "model.pte"
GROWN = "P+T"


class Room(NamedTuple):
    """Sizes that a program is made for.

    rows        exactly so many texts at a time
    tiles       exactly so many of an image, of which any may be masked
    positions   prompt and answer have so many at most
    """

    rows: int
    tiles: int
    positions: int


class RollingPart(nn.Module):
    """A part whose caches come out as long as they went in: of P positions and T new ones, the last P."""

    def __init__(self, part: ExportPart):
        super().__init__()
        self.part = part.module
        self.axes = {
            name.removeprefix("next."): shape.index(GROWN) for name, shape in part.outputs.items() if GROWN in shape
        }

    def forward(self, *arguments: Any) -> tuple[Any, ...]:
        tokens, before = arguments[0].shape[1], arguments[-1]
        *told, after = self.part(*arguments)
        rolled = {name: after[name].narrow(axis, tokens, before[name].shape[axis]) for name, axis in self.axes.items()}
        return (*told, {**after, **rolled})


def bounded_parts(parts: Mapping[str, ExportPart], room: Room) -> dict[str, ExportPart]:
    """Make of the parts of `export_parts` ones in float32 whose sizes are those of `room`, but for "T", which is open.

    An image has its global view and all `room.tiles`, so that G is one number too. Caches have all P positions from
    the first token on, those that are not kept on the left: no size is 0, and a token costs the same wherever it is.
    """
    sizes = {"B": room.rows, "I": 1, "M": room.tiles, "1+M": 1 + room.tiles}
    sizes |= dict.fromkeys(("P", GROWN), room.positions)
    views = _sized(parts["grids"].inputs, sizes)
    grids = example_part(parts["grids"].module, {}, views, {}, torch.float32)
    with torch.no_grad():
        side: dict[str, Shape] = {name: tuple(one.shape) for name, one in grids.module(*grids.arguments).items()}
    bounded = {"grids": grids._replace(outputs=side)}
    of_grids, tokens = parts["grids"].outputs, Dim.DYNAMIC(min=1, max=room.positions)
    for name in ("prompt", "step"):
        part = parts[name]
        inputs = _sized({one: shape for one, shape in part.inputs.items() if one not in of_grids}, sizes)
        named = {one: inputs.pop(one) for one in ("input_ids", "attention_mask") if one in inputs}
        rolling = example_part(RollingPart(part), named, {**side, **inputs}, _sized(part.outputs, sizes), torch.float32)
        bounded[name] = rolling._replace(dynamic_shapes=(tree_map(lambda _: tokens, rolling.dynamic_shapes),))
    return bounded


def _sized(shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> dict[str, Shape]:
    return {
        name: tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)
        for name, shape in shapes.items()
    }


def write_executorch(parts: Mapping[str, ExportPart], folder: Path) -> dict[str, str]:
    """Write `bounded_parts` into a folder as one program, each a method of its name. Returns name -> file name.

    ExecuTorch's own kernels compute all. Raises ExportError without ExecuTorch, and where it has not all kernels.
    """
    check_executorch()
    with quietly():
        program = lowered(parts)
        with (folder / FILE).open("wb") as file:
            program.write_to_file(file)
    _check_loads(folder / FILE, list(parts))
    return dict.fromkeys(parts, FILE)


def _check_loads(file: Path, names: Sequence[str]) -> None:
    """Raise ExportError for a program with an operator that the runtime does not have, of which it tells on stderr."""
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    program = Runtime.get().load_program(file)
    for name in names:
        try:
            program.load_method(name)
        except RuntimeError as error:
            raise ExportError(f"export: ExecuTorch cannot run the program that it made ({error})") from None


def lowered(parts: Mapping[str, ExportPart]) -> Any:
    """Lower parts to a program (ExecutorchProgramManager), each a method of its name."""
    # Not installed where types are checked.
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        programs = {
            name: _folded(torch.export.export(part.module, part.arguments, dynamic_shapes=part.dynamic_shapes))
            for name, part in parts.items()
        }
        # The loop over time is no operator of the dialect that would be checked.
        config = EdgeCompileConfig(_check_ir_validity=False)
        edge = to_edge_transform_and_lower(programs, partitioner=[], compile_config=config)
        return edge.to_executorch()


def _folded(exported: Any) -> Any:
    """Put constants in the place of what depends on weights alone.

    Positions of a view that the tower was not made for are interpolated, with channels last in memory, which not all of
    ExecuTorch's kernels take: they want all constants contiguous too.
    """
    from executorch.exir.passes import constant_prop_pass as folding  # pyright: ignore[reportMissingImports]

    exported = folding.constant_prop_pass(exported, {torch.ops.aten.full.default})
    constants = exported.graph_signature.inputs_to_lifted_tensor_constants
    for node in exported.graph.find_nodes(op="placeholder"):
        if node.name in constants:
            name = constants[node.name]
            # Not `contiguous`, to which the stride of a size of 1 is nothing; the order of dimensions is told by it.
            exported.constants[name] = exported.constants[name].clone(memory_format=torch.contiguous_format)
            node.meta["val"] = node.meta["val"].clone(memory_format=torch.contiguous_format)
    return exported


def check_executorch() -> None:
    """Raise ExportError where ExecuTorch is not installed, or does not work beside this PyTorch."""
    if find_spec("executorch") is None:
        raise ExportError("export needs executorch, which is not installed; pip install 'firebolt-vl[executorch]'")
    try:
        with quietly():
            import_module("executorch.exir")
            import_module("executorch.runtime")
    except Exception as error:  # built for another PyTorch, it fails in many ways
        message = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(
            f"export: executorch cannot be imported beside PyTorch {torch.__version__} ({message}); docs/executorch.md "
            "has versions that go together"
        ) from None


__all__ = ["Room", "bounded_parts", "check_executorch", "lowered", "write_executorch"]
