"""The kernels as a package: names, signatures, checks, which implementation runs where."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from firebolt_vl import kernels
from firebolt_vl.kernels import reference
from firebolt_vl.kernels.checks import REAL, check_dtypes, check_shapes
from firebolt_vl.kernels.common.dtypes import compute_dtype
from firebolt_vl.kernels.implementation import OPS, _refusal, implementation, use_implementation

ROOT = Path(kernels.__file__).resolve().parents[1]


@pytest.mark.any_cpu
def test_the_kernels_are_loaded_once_where_their_folder_is_found_under_two_names():
    """In the repository root `import kernels` finds ./kernels too, and transformers looks for a package so named."""
    code = """
import torch, transformers, firebolt_vl.kernels as ours
from firebolt_vl.kernels import modulation
import kernels
assert kernels is ours and kernels.modulation is modulation
assert not transformers.utils.is_kernels_available()
assert kernels.fft_conv(torch.randn(2, 3, 50), torch.randn(3, 50)).shape == (2, 3, 50)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_public_names_are_the_ops_and_their_references():
    assert sorted(kernels.__all__) == sorted([*OPS, "linear", "reference", "use_implementation"])
    assert sorted(reference.__all__) == sorted([*OPS, "linear"])


@pytest.mark.parametrize("op", [*OPS, "linear"])
def test_a_reference_has_the_signature_of_its_op(op):
    public, definition = (inspect.signature(getattr(place, op)).parameters for place in (kernels, reference))
    assert list(public) == list(definition)
    for name, parameter in public.items():
        assert (parameter.kind, parameter.default) == (definition[name].kind, definition[name].default)


@pytest.mark.parametrize("op", OPS)
def test_every_op_says_what_runs_on_a_device(op):
    name, why = implementation(op, torch.device("cpu"))
    assert name == "pytorch"
    assert "CPU" in why
    name, why = implementation(op, "cuda:0")
    assert (name, "the Triton kernel" in why) == ("triton", True)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is one GPU, with the properties that the function is given."""

    def pretend(**properties):
        _refusal.cache_clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties))
        monkeypatch.setattr(torch.version, "hip", "7.0" if "gcnArchName" in properties else None)

    yield pretend
    _refusal.cache_clear()


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
def test_gpus_of_nvidia_before_8_0_run_the_pytorch_form(gpu, capability):
    gpu(major=capability[0], minor=capability[1])
    for device in ("cuda", "cuda:0"):
        name, why = implementation("cauchy", device)
        assert name == ("triton" if capability >= (8, 0) else "pytorch")
        assert ("need compute capability 8.0, and this GPU is of {}.{}".format(*capability) in why) == (
            name != "triton"
        )


@pytest.mark.parametrize("chip", ["gfx90a:sramecc+:xnack-", "gfx942:sramecc+:xnack-", "gfx950", "gfx1100"])
def test_gpus_of_amd_that_were_not_compiled_for_run_the_pytorch_form(gpu, chip):
    gpu(major=9, minor=4, gcnArchName=chip)
    name, why = implementation("cauchy", "cuda:0")
    known = chip.startswith(("gfx942", "gfx950"))
    assert name == ("triton" if known else "pytorch")
    assert (f"are compiled for gfx942 and gfx950, and this GPU is {chip.partition(':')[0]}:" in why) == (not known)
    with use_implementation("triton"):
        assert implementation("cauchy", "cuda:0").name == "triton"


def test_the_refused_gpu_is_known_while_a_function_is_compiled(gpu):
    gpu(major=7, minor=5)

    @torch.compile(backend="eager", fullgraph=True)
    def chosen(x):
        return 2 * x if implementation("cauchy", "cuda:0").name == "pytorch" else x

    assert chosen(torch.ones(1)).item() == 2


def test_an_implementation_can_be_chosen_for_a_region():
    u, k = torch.randn(2, 3, 50), torch.randn(3, 50)
    with use_implementation("reference"):
        assert implementation("fft_conv", "cpu").name == "reference"
        assert torch.equal(kernels.fft_conv(u, k), reference.fft_conv(u, k))
        with use_implementation("pytorch"):
            assert implementation("fft_conv", "cuda").name == "pytorch"
        assert implementation("fft_conv", "cuda").name == "reference"
    assert implementation("fft_conv", "cpu").name == "pytorch"
    with (
        pytest.raises(ValueError, match="name is 'cuda'; expected one of reference, pytorch, triton"),
        use_implementation("cuda"),
    ):
        pass


def test_an_op_that_does_not_exist_runs_nowhere():
    with pytest.raises(ValueError, match="op is 'fft'; expected one of correlation_context, grounded_film"):
        implementation("fft", "cpu")


def test_sizes_are_read_off_the_first_argument_that_has_them():
    x, y = torch.zeros(2, 3), torch.zeros(3, 5, 4)
    assert check_shapes("op", x=(x, "B D"), none=(None, "D"), y=(y, "D 5 L")) == {"B": 2, "D": 3, "L": 4}
    assert check_shapes("op", y=(y, "... L")) == {"L": 4}
    with pytest.raises(ValueError, match=r"op: y has shape \[3, 5, 4\]; expected \[B 5 L\] with B = 2"):
        check_shapes("op", x=(x, "B D"), y=(y, "B 5 L"))
    with pytest.raises(ValueError, match=r"op: x has shape \[2, 3\]; expected \[N N\]"):
        check_shapes("op", x=(x, "N N"))
    with pytest.raises(TypeError, match="op: x is float32; expected one of float64"):
        check_dtypes("op", (torch.float64,), x=x)


def test_halves_are_computed_in_float32_and_float64_stays():
    assert compute_dtype(*(torch.zeros(1, dtype=dtype) for dtype in REAL if dtype != torch.float64)) == torch.float32
    assert compute_dtype(torch.zeros(1), None, torch.zeros(1, dtype=torch.complex128)) == torch.float64
    assert compute_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32


def sequence_op_results():
    u, k = torch.randn(2, 8, 40), torch.randn(8, 40)
    modes, c = torch.polar(torch.rand(8, 4), torch.randn(8, 4)), torch.randn(8, 4, dtype=torch.complex64)
    delta, A, B = torch.rand(2, 8, 40), -torch.rand(8, 4), torch.randn(2, 4, 40)
    return {
        "vandermonde": lambda: kernels.vandermonde(c, modes.log(), 40),
        "cauchy": lambda: kernels.cauchy(c, torch.randn(9, dtype=torch.complex64), modes).abs(),
        "fft_conv": lambda: kernels.fft_conv(u, k),
        "fft_conv in time": lambda: kernels.fft_conv(u[..., :20], k),
        "diagonal_scan": lambda: kernels.diagonal_scan(u, modes, c, c)[0],
        "selective_scan": lambda: kernels.selective_scan(u, delta, A, B, B),
        "gated_scan": lambda: kernels.gated_scan(delta, u)[0],
        "selective_state_update": lambda: kernels.selective_state_update(
            torch.zeros(2, 8, 4), u[..., 0], delta[..., 0], A, B[..., 0], B[..., 0]
        ),
    }


@pytest.mark.parametrize("name", sequence_op_results())
def test_autocast_does_not_round_the_arithmetic_of_a_sequence_op(name):
    run = sequence_op_results()[name]
    torch.manual_seed(1)
    wanted = run()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", sequence_op_results())
def test_a_sequence_op_is_traced_without_a_break(name):
    run = sequence_op_results()[name]
    torch.manual_seed(1)
    wanted = run()
    torch.manual_seed(1)
    found = torch.compile(run, fullgraph=True, backend="eager")()
    assert torch.equal(found, wanted)
