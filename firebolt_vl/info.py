"""Description of this installation: versions, devices, and which implementation each op takes on each of them."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

from rich.console import Console
from rich.text import Text

from . import __version__, embedded_checkpoint

LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
WIDTH = 24


def collect() -> dict:
    """Versions, those of them that no test was run with, devices and for each op its implementation on each device.

    Of the CPU also `dtypes`, measured, `float32_products`, who makes them, and `slow_halves`, the dtypes that it has no
    products in; of a GPU its `memory_bytes`.
    """
    import torch

    from . import speeds
    from .kernels.implementation import OPS, implementation
    from .kernels.linear import ONEDNN, SLOW_HALVES

    devices = [
        {
            "device": "cpu",
            "name": _processor_name(),
            "threads": torch.get_num_threads(),
            "dtypes": speeds.told(),
            "float32_products": "oneDNN" if ONEDNN else "PyTorch's own choice",
            "slow_halves": sorted(str(dtype).removeprefix("torch.") for dtype in SLOW_HALVES),
        }
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "memory_bytes": card.total_memory,
            }
        )
    ops = {op: {entry["device"]: implementation(op, entry["device"])._asdict() for entry in devices} for op in OPS}
    versions = installed_versions()
    return {
        "versions": versions,
        "untested": untested(versions),
        "devices": devices,
        "ops": ops,
        "embedded_checkpoint": _embedded_bytes(),
    }


def installed_versions() -> dict[str, str | None]:
    """Versions of this package, of Python, of the libraries that answers depend on, and of CUDA."""
    import torch

    versions = {"firebolt-vl": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    versions["torch"] = torch.__version__
    versions["cuda"] = torch.version.cuda
    return versions


def untested(versions: dict[str, str | None]) -> dict[str, str]:
    """List libraries whose versions are not tested, each with the tested ones, such as "<5.25,>=5.23"."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("firebolt-vl") or ()]
    except PackageNotFoundError:  # run from a folder that was never installed
        return {}
    return {
        one.name: str(one.specifier)
        for one in wanted
        if versions.get(one.name) and not one.specifier.contains(versions[one.name], prereleases=True)
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _embedded_bytes() -> int | None:
    """Size of the embedded checkpoint; None where there is none."""
    try:
        return sum(path.stat().st_size for path in embedded_checkpoint().iterdir() if path.is_file())
    except FileNotFoundError:
        return None


def show(found: dict, console: Console) -> None:
    def line(name: str, *rest: str) -> None:
        console.print(Text(f"{name:<{WIDTH}}", "bold") + Text("  ".join(rest)))

    for library, number in found["versions"].items():
        wanted = found["untested"].get(library)
        line(library, number or "not there", *([f"not tested: {wanted} is"] if wanted else []))
    size = found["embedded_checkpoint"]
    line("tiny checkpoint", f"{size / 1e6:.1f} MB" if size is not None else "not in this copy; `make tiny` trains it")
    for entry in found["devices"]:
        console.print()
        if "memory_bytes" in entry:
            details = f"compute capability {entry['capability']}, {entry['memory_bytes'] / 2**30:.0f} GiB"
        else:
            details = f"{entry['threads']} threads in use"
        line(entry["device"], f"{entry['name']}, {details}")
        for dtype, speed in entry.get("dtypes", {}).items():
            times = f"{speed['token_ms']:.1f} ms a token, {speed['prompt_ms']:.0f} ms a prompt through the same weights"
            line(f"  {dtype}", f"{times}: a large checkpoint in it runs in {speed['runs_in']}")
        if "float32_products" in entry:
            line("  linear layers", f"float32 by {entry['float32_products']}")
        if slow := entry.get("slow_halves"):
            line("", f"no products in {' and '.join(slow)} here: several rows in float32, training slow")
        for op, implementations in found["ops"].items():
            chosen = implementations[entry["device"]]
            line(f"  {op}", f"{chosen['name']:<8}", chosen["why"])
    if len(found["devices"]) == 1:
        console.print(Text("\nThis PyTorch sees no CUDA device.", "dim"))
