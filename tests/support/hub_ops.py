"""Every op on kept arguments, by a copy of the kernels that a process of its own loads; its results in a file.

    python hub_ops.py HOW FOLDER ARGUMENTS RESULTS

HOW: "installed" (FOLDER unused); "copy", imported as the hub's library does it; "beside", with the installed package
and then the same build from another folder imported after it, and with one op compiled; "library", by
`get_local_kernel`; "named", by `get_kernel` of the repository that LOCAL_KERNELS names.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import torch

REPOSITORY = "somebody/firebolt-vl-kernels"
FORMS = ("reference", "pytorch", "triton")


def imported(folder: Path):
    """Import a build from its files, as the library `kernels` does."""
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert hasattr(getattr(torch.ops, name), "fft_conv")  # in a namespace of its own
    return module


def loaded(how: str, folder: str):
    """Load the ops, and see to it that a copy of them is all that there is of the package."""
    build = Path(folder) / "build" / "torch-cpu"
    if how == "beside":
        ops = imported(build)
        import firebolt_vl.kernels

        again = imported(Path(shutil.copytree(build, "again")))
        assert again.fft_conv is ops.fft_conv  # the same build, whose modules are there already
        assert firebolt_vl.kernels.fft_conv is not ops.fft_conv
        assert hasattr(torch.ops.firebolt_vl, "fft_conv")
        return ops
    if how == "installed":
        import firebolt_vl.kernels

        return firebolt_vl.kernels
    sys.modules["firebolt_vl"] = None  # to import it is an error, even where it is installed
    if how == "copy":
        ops = imported(build)
        assert not hasattr(torch.ops.firebolt_vl, "fft_conv")
        return ops
    import kernels

    if how == "library":
        return kernels.get_local_kernel(Path(folder), backend="cpu")
    return kernels.get_kernel(REPOSITORY, version=1, backend="cpu")


def leaf(value):
    """A copy of an argument, of which a gradient is wanted if it can have one."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.clone().requires_grad_(value.is_floating_point() or value.is_complex())


def run(op, args, kwargs, has_gradients: bool):
    """Return the results of a call, and the gradients of its arguments where the op has them."""
    make = leaf if has_gradients else lambda value: value.clone() if isinstance(value, torch.Tensor) else value
    args, kwargs = [make(value) for value in args], {name: make(value) for name, value in kwargs.items()}
    found = op(*args, **kwargs)
    found = found if isinstance(found, tuple) else (found,)
    if not has_gradients:
        return [found, args[0]]
    leaves = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
    wanted = [y for y in found if y.requires_grad]
    gradients = torch.autograd.grad(wanted, leaves, [y.detach() for y in wanted], allow_unused=True)
    return [tuple(y.detach() for y in found), gradients]


def main() -> None:
    how, folder, arguments, results = sys.argv[1:]
    ops, found = loaded(how, folder), {}
    for name, (op, args, kwargs, has_gradients) in torch.load(arguments).items():
        for form in FORMS:
            with ops.use_implementation(form):
                found[f"{name}, {form}"] = run(getattr(ops, op), args, kwargs, has_gradients)
    convolve = ops.fft_conv
    if how == "beside":
        convolve = torch.compile(lambda u, k: ops.fft_conv(u, k), fullgraph=True, backend="aot_eager")
    u, k = torch.arange(12.0).view(1, 2, 6), torch.arange(8.0).view(2, 4)
    with ops.use_implementation("triton"):
        found["a convolution"] = run(convolve, (u, k), {}, True)
    torch.save(found, results)


if __name__ == "__main__":
    main()
