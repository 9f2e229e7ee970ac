"""Registration of an op and its gradients with PyTorch: schema, fake tensors, autograd, once for all ops.

A registered op is one node for autograd, `torch.compile` and `torch.export`, whatever its launchers do. Its backward
functions are registered ops too, so that a compiled graph has them whole.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import replay
from ..transforms import unobserved


def namespace(package: str) -> str:
    """Name the namespace in which a copy of this package, imported as `package`, registers its ops.

    It is "firebolt_vl" for the installed one. Any other copy, such as one that the hub's library `kernels` loaded, has
    one of its own: an op that is registered twice under one name runs, in both copies, as the second has it.
    """
    return "firebolt_vl" if package == "firebolt_vl.kernels" else re.sub(r"\W", "_", package)


NAMESPACE = namespace(__name__.rpartition(".common.")[0])


def contiguous_gradients(*tensors: Tensor | None) -> list[Tensor | None]:
    """Allocate for each tensor a contiguous one of its shape and dtype; None for None."""
    return [None if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors]


class Backward(NamedTuple):
    """A function that computes gradients of an op, to be registered as an op of its own."""

    name: str
    of: tuple[str, ...]
    """The arguments of the op that it differentiates. It runs if one of them needs a gradient."""
    function: Callable[..., Sequence[Tensor | None]]
    """Called with a list, which has the gradient of each output (or, of those that are kept, the output), and with the
    arguments of the op. Returns the gradients of `of` in their order, None for an argument that is None."""
    fake: Callable[..., Sequence[Tensor | None]] = contiguous_gradients
    """Called with the arguments `of`: allocates what `function` returns."""


def register(
    name: str,
    schema: str,
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    *backwards: Backward,
    kept: int = 0,
) -> Callable[..., Any]:
    """Register `name` in the namespace of this copy, `firebolt_vl::name` if it is installed, and its backward ops.

    One rule holds for gradients that are absent. Of an output that nothing depends on: zeros for the first output, in
    memory for one number; None for the others. Of an argument that is None: None.

    Arguments:
        schema: PyTorch's, without a name, such as "(Tensor x, Tensor? bias, SymInt L) -> Tensor". A default ("Tensor?
            y=None") is for an argument that the op did not always have, so that programs exported before still load;
            `forward` has the same default, since PyTorch leaves out what equals it. An argument that the op changes is
            "Tensor(a!) state".
        forward: called with the arguments of the schema. No output may share memory with an argument.
        fake: called alike; allocates the outputs.
        kept: how many of the last outputs are not for callers but for the backward functions, which get them as they
            are, in the place of their gradients.

    Returns: the op, called with the arguments of the schema. Without gradients it is `forward` itself.
    """
    arguments, _, returned = schema.removeprefix("(").partition(") -> ")
    all_given = ", ".join(argument.partition("=")[0] for argument in arguments.split(", "))
    names = [argument.split()[-1] for argument in all_given.split(", ")]
    count = returned.count("Tensor")
    forward = replay.replayed(forward)  # for compiled graphs, which call the op itself
    changed = [own for own, argument in zip(names, arguments.split(", ")) if "!" in argument]
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", forward, mutates_args=changed, schema=schema)
    op.register_fake(fake)
    steps = [_register_backward(backward, all_given, names, count, kept) for backward in backwards]

    def save(ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)
        ctx.first = outputs[0].shape, outputs[0].dtype
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.save_for_backward(*outputs[count - kept :], *tensors)

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        outputs, tensors = ctx.saved_tensors[:kept], ctx.saved_tensors[kept:]
        inputs = [other if tensor is None else tensor for tensor, other in zip(tensors, ctx.others)]
        first, *rest = grads[: count - kept]
        if first is None:
            shape, dtype = ctx.first
            first = next(x for x in tensors if x is not None).new_zeros((), dtype=dtype).expand(shape)
        found: list[Tensor | None] = [None] * len(inputs)
        for backward, positions in steps:
            if any(ctx.needs_input_grad[i] for i in positions):
                given = iter(backward(first, *rest, *outputs, *inputs))
                for i in positions:
                    found[i] = None if inputs[i] is None else next(given)
        return tuple(found)

    if steps:
        op.register_autograd(differentiate, setup_context=save)
    floats = [position for position, argument in enumerate(arguments.split(", ")) if argument.startswith("float ")]

    def call(*given: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_direct(given):
            return op(*given)
        if floats:
            given = tuple(float(value) if i in floats else value for i, value in enumerate(given))
        return forward(*given)

    return call


def _is_direct(given: Sequence[Any]) -> bool:
    """Tell whether a forward pass needs nothing of PyTorch's dispatcher, which takes longer than most launches: no
    gradient is wanted, every tensor is a plain one, and nobody looks at ops."""
    wants_gradients = torch.is_grad_enabled()
    for value in given:
        if isinstance(value, Tensor) and (
            type(value) not in (Tensor, Parameter)
            or (wants_gradients and value.requires_grad)
            or value.is_conj()
            or value.is_neg()
        ):
            return False
    return unobserved(modes=int(replay.is_noting()))


def _register_backward(
    backward: Backward, arguments: str, names: list[str], count: int, kept: int
) -> tuple[Callable[..., list[Tensor]], list[int]]:
    """Register a backward op; returns it, and the positions among `names` of the arguments that it differentiates."""
    positions = [names.index(name) for name in backward.of]
    grads = ["Tensor grad_0", *(f"Tensor? grad_{i}" for i in range(1, count - kept))]
    outputs = [f"Tensor output_{i}" for i in range(count - kept, count)]

    # An op returns no None: those of absent arguments are left out here, and known again by the arguments.
    def run(*given: Any) -> list[Tensor]:
        found = backward.function(list(given[:count]), *given[count:])
        return [gradient for gradient in found if gradient is not None]

    def fake(*given: Any) -> list[Tensor]:
        found = backward.fake(*(given[count + i] for i in positions))
        return [gradient for gradient in found if gradient is not None]

    schema = f"({', '.join([*grads, *outputs, arguments])}) -> Tensor[]"
    op = torch.library.custom_op(f"{NAMESPACE}::{backward.name}", run, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op, positions
