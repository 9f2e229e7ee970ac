"""The kernels as a package of the hub's library: alone, beside the installed package, and loaded by the library."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hub_ops
import pytest
import torch
from commands import assert_refused

from firebolt_vl import hub_kernels, kernels
from firebolt_vl.bench.cases import OPS, Case, correlation, gated, inputs, modes, residual, sequence
from firebolt_vl.kernels.common.registered import namespace

# The Python whose library `kernels` is asked; `make test-hub` makes one that has it.
PYTHON = os.environ.get("FIREBOLT_HUB_PYTHON")
SEEN = correlation(1, 3, 5, 2, D=8, H=2, D_h=4)
# As small as they can be: Triton's interpreter takes its time.
SMALL = {
    "correlation_context": SEEN,
    "grounded_film": SEEN,
    "film_residual": residual(1, 3, 5, D=8),
    "vandermonde": modes(1, 4, 6),
    "cauchy": modes(1, 4, 6),
    "fft_conv": Case({"B": 1, "D": 2, "L": 6}),
    "diagonal_scan": sequence(1, 1, 6, 4),
    "selective_scan": sequence(1, 2, 6, 4),
    "selective_state_update": Case({"B": 1, "D": 2, "N": 4}),
    "gated_scan": gated(1, 6, 2),
}


def arguments():
    """For each op: its name, small arguments, and whether it has gradients."""
    found = {}
    for op, case in SMALL.items():
        args, kwargs = inputs(op, case, "float32")
        found[op] = op, args, kwargs, not OPS[op].in_place
    x, weight, bias = (torch.arange(1.0, n + 1).sin() for n in (6, 12, 4))
    found["linear"] = "linear", (x.view(2, 3), weight.view(4, 3), bias), {}, True
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "kernels"
    built = hub_kernels.export_kernels(str(out))
    assert built.builds == [f"torch-{backend}" for backend in hub_kernels.BACKENDS]
    return out


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """Call with HOW to load the kernels, and what Python: the results of `hub_ops`."""
    place = tmp_path_factory.mktemp("ops")
    torch.save(arguments(), place / "arguments")

    def run(how, python=sys.executable):
        command = [python, hub_ops.__file__, how, folder, place / "arguments", place / how]
        named = f"{hub_ops.REPOSITORY}={folder}"
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "LOCAL_KERNELS": named}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return torch.load(place / how)

    return run


@pytest.fixture(scope="module")
def wanted(results):
    return results("installed")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        for ours, theirs in zip(found[name], wanted[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0, equal_nan=True, msg=lambda text, n=name: n + text)


def test_every_public_op_is_asked():
    assert {op for op, *_ in arguments().values()} == set(kernels.__all__) - {"reference", "use_implementation"}


@pytest.mark.triton
def test_a_copy_computes_what_the_installed_package_does(results, wanted):
    assert_same(results("copy"), wanted)


@pytest.mark.triton
def test_copies_and_the_installed_package_do_not_disturb_each_other(results, wanted):
    assert_same(results("beside"), wanted)


@pytest.fixture
def with_library():
    """The Python of an environment with the library; not by its name alone, which our folder has too."""
    if PYTHON is not None:
        return PYTHON
    try:
        version("kernels")
    except PackageNotFoundError:
        pytest.skip("the library kernels is not installed; make test-hub has it")
    return sys.executable


@pytest.mark.triton
@pytest.mark.parametrize("how", ["library", "named"])
def test_the_library_loads_it(how, results, wanted, with_library):
    assert_same(results(how, with_library), wanted)


def test_the_library_confirms_the_digests(folder, with_library):
    code = """
import sys
from pathlib import Path
from kernels._rust import Digest, Metadata
builds = sorted(Path(sys.argv[1], "build").iterdir())
for build in builds:
    metadata = Metadata.read_from_file(build / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, build))
    assert (metadata.name.python_name, metadata.version) == ("firebolt_vl_kernels", 1)
    assert str(metadata.backend.backend_type).lower() == build.name.removeprefix("torch-")
print(len(builds))
"""
    done = subprocess.run([with_library, "-c", code, folder], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(hub_kernels.BACKENDS))), done.stderr


def test_a_build_has_the_kernels_and_nothing_else(folder):
    source = Path(kernels.__file__).parent
    expected = {file.relative_to(source).as_posix() for file in source.rglob("*.py")}
    expected |= {f"measured/{file.name}" for file in source.glob("measured/*.json")}
    ids = set()
    for backend in hub_kernels.BACKENDS:
        build = folder / "build" / f"torch-{backend}"
        files = {file.relative_to(build).as_posix() for file in build.rglob("*") if file.is_file()}
        described = json.loads((build / "metadata.json").read_text())
        assert {name for name in files if "__pycache__" not in name} == expected | {"metadata.json"}
        assert described["digest"]["files"].keys() == expected
        ids.add(described["id"])
    assert len(ids) == len(hub_kernels.BACKENDS)


def test_measured_configurations_travel(tmp_path, monkeypatch):
    (tmp_path / "measured").mkdir()
    for name in ("__init__.py", "measured/nvidia-h100.json", "measured/notes.txt", "other.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    assert list(hub_kernels.sources()) == ["__init__.py", "measured/nvidia-h100.json"]


def test_other_files_are_another_module():
    one, other = (hub_kernels.metadata("cpu", {"__init__.py": content}) for content in (b"1", b"2"))
    assert one["id"] != other["id"]
    assert one["id"].isidentifier()
    assert one == hub_kernels.metadata("cpu", {"__init__.py": b"1"})


def test_the_installed_package_alone_has_its_namespace():
    assert namespace("firebolt_vl.kernels") == "firebolt_vl"
    assert namespace("vendored.firebolt_vl.kernels") == "vendored_firebolt_vl_kernels"
    assert namespace("_firebolt_vl_kernels_cpu_0a1b") == "_firebolt_vl_kernels_cpu_0a1b"


def test_the_command_writes_a_new_folder(firebolt, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    assert_refused(firebolt("export", "kernels", "there"), 2, "OUT is there, which exists already; name a new folder")
    told = "--checkpoint is tiny with kernels, which belong to none; leave it out"
    assert_refused(firebolt("export", "kernels", "out", "--checkpoint", "tiny"), 2, told)
    done = firebolt("export", "kernels", "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["builds"][0] == "torch-cpu"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: kernels\n")
    assert not list(tmp_path.glob(".*"))
