"""Weights of a graph's products in 8 and 4 bits, by blocks of 32, for ONNX Runtime's MatMulNBits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu.int4 import ZERO as ZERO_OF_4_BITS
from ..cpu.int4 import one_a_byte, rounded_to_4_bits

BLOCK = 32
LARGEST, ZERO = 127, 128
ROWS = 4096
HEAD_BITS = 8
# Inputs are rounded to 8 bits by blocks too, where the CPU has integer products.
INTEGER_INPUTS = 4
MICROSOFT = "com.microsoft"


def rounded_to_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round W [N,K] -> codes [N,K'] uint8, K' the next multiple of 32, and scales [N,K'/32] float32.

    A block's scale is s = max|w| / 127, a code c = round(w / s) + 128, and W = s (c - 128) (docs/mathematics.md,
    (10.2)). A block of zeros has s = 0 and codes 128.
    """
    codes, scales = [], []
    for rows in weight.split(ROWS):
        blocks = F.pad(rows.float(), (0, -rows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        scale = blocks.abs().amax(-1) / LARGEST
        code = (blocks / scale.masked_fill(scale == 0, 1)[..., None]).round_().add_(ZERO)
        codes.append(code.to(torch.uint8).flatten(1))
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def in_blocks(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round W [N,K] as `bits` says -> the bytes of a row's codes [N,K' bits/8] and scales [N,K'/32] float32."""
    if not weight.isfinite().all():
        raise ValueError("export: model has weights that are inf or nan; expected finite ones")
    codes, scales = rounded_to_8_bits(weight) if bits == 8 else rounded_to_4_bits(weight)
    return codes, scales.float()


def out_of_blocks(weight: Tensor, bits: int) -> Tensor:
    """Compute the weights that a graph has in the place of W [N,K], in its dtype."""
    codes, scales = in_blocks(weight, bits)
    values = codes.float() - ZERO if bits == 8 else one_a_byte(codes).float() - ZERO_OF_4_BITS
    dense = (values.unflatten(1, (-1, BLOCK)) * scales[..., None]).flatten(1)
    return dense[:, : weight.shape[1]].to(weight.dtype)


class Rounding(NamedTuple):
    """Bits, 8 or 4, that the products of a graph are rounded to, but for those with the weights [N,K] in `kept`."""

    bits: int
    kept: Sequence[Tensor] = ()

    def keeps(self, weight: np.ndarray) -> bool:
        return any(one.shape == weight.shape and np.array_equal(one.numpy(force=True), weight) for one in self.kept)


def round_products(model: Any, rounding: Rounding) -> None:
    """Give the products with constant weights of a graph (onnx_ir) their weights in blocks, in place.

    Products that make "logits" and rows of embeddings are in 8 bits: they are the same weights where these are tied.
    """
    bits = rounding.bits
    for node in list(model.graph):
        if node.op_type == "MatMul" and (weight := _transposed_constant(node.inputs[1])) is not None:
            if rounding.keeps(weight):
                continue
            _replace_product(model.graph, node, weight, HEAD_BITS if _makes_logits(node) else bits)
        elif node.op_type == "Gather" and (rows := _constant(node.inputs[0])) is not None and rows.ndim == 2:
            _replace_lookup(model.graph, node, rows)
    model.opset_imports.setdefault(MICROSOFT, 1)
    _forget_unused(model.graph)


def _constant(value: Any) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _transposed_constant(value: Any) -> np.ndarray | None:
    """W [N,K] of a product with W^T, a constant or the transposed of one."""
    if (folded := _constant(value)) is not None:
        return folded.T if folded.ndim == 2 else None
    made_by = value.producer()
    if made_by is None or made_by.op_type != "Transpose":
        return None
    weight = _constant(made_by.inputs[0])
    return weight if weight is not None and weight.ndim == 2 else None


def _makes_logits(node: Any) -> bool:
    """Tell whether what comes of a product is the graph's logits, reshaped at most."""
    value = node.outputs[0]
    while value.name != "logits":
        (*users,) = {use.node for use in value.uses()}
        if len(users) != 1 or users[0].op_type not in ("Squeeze", "Reshape", "Identity"):
            return False
        value = users[0].outputs[0]
    return True


def _replace_product(graph: Any, node: Any, weight: np.ndarray, bits: int) -> None:
    import onnx_ir

    codes, scales = in_blocks(torch.from_numpy(np.ascontiguousarray(weight)), bits)
    (rows, columns), name = weight.shape, node.outputs[0].name
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": BLOCK, "accuracy_level": INTEGER_INPUTS}
    packed = codes.unflatten(1, (scales.shape[1], -1))
    product = onnx_ir.node(
        "MatMulNBits",
        [
            node.inputs[0],
            _initializer(graph, f"{name}.codes", packed),
            _initializer(graph, f"{name}.scales", scales.flatten()),
        ],
        attributes,
        domain=MICROSOFT,
    )
    _take_place(graph, node, [product])


def _replace_lookup(graph: Any, node: Any, rows: np.ndarray) -> None:
    """Look up codes and scales in the place of rows, and multiply them."""
    import onnx_ir

    codes, scales = in_blocks(torch.from_numpy(np.ascontiguousarray(rows)), 8)
    width, name, index = rows.shape[1], node.outputs[0].name, node.inputs[1]
    made: list[Any] = []

    def then(kind: str, *inputs: Any, **attributes: int) -> Any:
        made.append(onnx_ir.node(kind, list(inputs), attributes))
        return made[-1].outputs[0]

    def constant(part: str, *numbers: int) -> Any:
        return _initializer(graph, f"{name}.{part}", torch.tensor(numbers))

    found = then("Cast", then("Gather", _initializer(graph, f"{name}.codes", codes), index), to=1)
    zero = _initializer(graph, f"{name}.zero", torch.tensor(float(ZERO)))
    blocks = then("Reshape", then("Sub", found, zero), constant("blocks", 0, 0, -1, BLOCK))
    scale = then("Gather", _initializer(graph, f"{name}.scales", scales), index)
    values = then("Mul", blocks, then("Unsqueeze", scale, constant("last", -1)))
    values = then("Reshape", values, constant("row", 0, 0, -1))
    if codes.shape[1] != width:
        then("Slice", values, constant("from", 0), constant("to", width), constant("axis", 2))
    _take_place(graph, node, made)


def _initializer(graph: Any, name: str, tensor: Tensor) -> Any:
    import onnx_ir

    held = onnx_ir.tensor(tensor.numpy(), name=name)
    value = onnx_ir.Value(name=name, const_value=held, shape=onnx_ir.Shape(tensor.shape))
    value.dtype = held.dtype
    graph.register_initializer(value)
    return value


def _take_place(graph: Any, node: Any, made: list[Any]) -> None:
    """Put nodes where one is; what it made is what the last of them makes."""
    import onnx_ir

    last = made[-1].outputs[0]
    last.shape, last.dtype = node.outputs[0].shape, node.outputs[0].dtype
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, [last])


def _forget_unused(graph: Any) -> None:
    """Remove transpositions that nothing reads any more, and constants."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


__all__ = ["Rounding", "in_blocks", "out_of_blocks", "round_products", "rounded_to_8_bits"]
