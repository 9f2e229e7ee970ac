"""Gradients of gradients, and torch.func's transforms, of functions that have a backward pass of their own."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Tell whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def unobserved(modes: int = 0) -> bool:
    """Tell whether nobody looks at the single ops that run: no compiler, exporter or tracer, no mode of PyTorch's
    dispatcher beside `modes` of our own, and no transform.

    Public are `torch.compiler.is_compiling`, which torch.export sets too, and `torch.jit.is_tracing`; for modes (fake
    tensors, `make_fx`, a default device) there is no public question.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] documented, but not in `__all__`
        or torch._C._len_torch_dispatch_stack() != modes
        or torch._C._len_torch_function_stack()
        or transformed()
    )


class WithFormula(Protocol):
    """An autograd function that has its forward pass also as `formula`, in plain operations."""

    apply: Callable[..., Any]
    formula: Callable[..., Any]


def apply(function: WithFormula, *arguments: Any) -> Any:
    """`function.apply`; under a transform, which no function with a backward pass of its own knows, its `formula`: the
    same in plain operations, which costs memory."""
    return function.formula(*arguments) if transformed() else function.apply(*arguments)


def gradients(formula: Callable, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of what `formula` makes of `inputs`, themselves differentiable: for a backward pass whose own gradients
    are wanted (create_graph=True), where grad mode is on. None for an input that needs none."""
    # Each a tensor of its own: inputs may depend on one another.
    own = [x.view_as(x) if x.requires_grad else x for x in inputs]
    outputs = formula(*own)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    known = [(output, grad) for output, grad in zip(outputs, grads) if grad is not None and output.requires_grad]
    ends, starts = zip(*known)
    wanted = [x for x in own if x.requires_grad]
    found = iter(torch.autograd.grad(ends, wanted, starts, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in own]
