"""One operator, three implementations: the definition, the form for CPUs, the Triton kernels in Triton's interpreter.

Each is compared with the definition in float64, values and gradients. The interpreter runs a kernel line by line in
NumPy, so that its arithmetic can be looked at without a GPU; of its speed it says nothing.

    python examples/three_implementations.py
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before the import

import torch
from torch import Tensor

from firebolt_vl.kernels import grounded_film, use_implementation

B, T, G, H, D_H, D, TOP_K = 2, 9, 5, 2, 8, 24, 3


def inputs(generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments of grounded_film in float64; their names and shapes are those of its docstring."""
    shapes = {
        "x": (B, T, D),
        "q": (B, T, H, D_H),
        "k": (B, G, H, D_H),
        "table": (B, G, 2 * D),
        "bias": (2 * D,),
        "gate": (1,),
        "ln_weight": (D,),
        "ln_bias": (D,),
    }
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def values_and_gradients(given: dict[str, Tensor], dtype: torch.dtype, upstream: Tensor) -> dict[str, Tensor]:
    """The op's output x_f, and the gradient of sum(x_f * upstream) by each argument."""
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in given.items()}
    x_f, _ = grounded_film(**leaves, top_k=TOP_K)
    gradients = torch.autograd.grad((x_f * upstream.to(dtype)).sum(), list(leaves.values()))
    return {"x_f": x_f.detach(), **{f"d {name}": gradient for name, gradient in zip(leaves, gradients)}}


def main() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Print each error over the largest value; return the exact results, and each implementation's in float32."""
    generator = torch.Generator().manual_seed(0)
    given = inputs(generator)
    upstream = torch.randn(B, T, D, dtype=torch.float64, generator=generator)
    with use_implementation("reference"):
        exact = values_and_gradients(given, torch.float64, upstream)
    found = {}
    for name in ("reference", "pytorch", "triton"):
        with use_implementation(name):
            found[name] = values_and_gradients(given, torch.float32, upstream)

    print(f"{'error in float32':<18}" + "".join(f"{name:>12}" for name in found))
    for key, value in exact.items():
        errors = ((results[key] - value).abs().max() / value.abs().max() for results in found.values())
        print(f"{key:<18}" + "".join(f"{error.item():>12.1e}" for error in errors))
    return exact, found


if __name__ == "__main__":
    main()
