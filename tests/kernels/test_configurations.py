"""Configurations of kernels: who is asked, which file counts, and what a bad one does."""

import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from triton_kernels import MARKS, check_against_definition

from firebolt_vl import kernels
from firebolt_vl.kernels import configurations, use_implementation
from firebolt_vl.kernels.configurations import answering, configured, files_of, read_table, size_class
from firebolt_vl.kernels.launch import recording

pytestmark = MARKS
DEFAULT = {"BLOCK_D": 64, "num_warps": 4}
KERNEL = SimpleNamespace(fn=SimpleNamespace(__name__="a_kernel"))
ON_GPU = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda:0"))


def entry(**changed):
    known = {"kernel": "a_kernel", "dtype": "bfloat16", "size": "L=512", "set": {"BLOCK_D": 32, "num_warps": 8}}
    return known | changed


@pytest.fixture
def chip(monkeypatch, tmp_path):
    """Write the file of a GPU: for everyone, or for this machine."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A Chip 80GB")
    monkeypatch.setenv("FIREBOLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(configurations, "MEASURED", tmp_path / "measured")
    configurations._table.cache_clear()

    def write(*entries, of_this_machine=False):
        file = files_of("A Chip 80GB")[of_this_machine]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"configurations": entries}))
        return file

    yield write
    configurations._table.cache_clear()


def asked(L=512):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return configured(KERNEL, ON_GPU, {"L": L}, DEFAULT)


def test_sizes_of_a_class_have_the_next_power_of_two_in_common():
    assert size_class({"L": 512, "N": 1}) == size_class({"L": 257, "N": 1}) == "L=512 N=1"
    assert size_class({"L": 513, "N": 24}) == "L=1024 N=32"


def test_without_a_file_and_on_a_cpu_the_default_counts(chip):
    assert asked() is DEFAULT
    chip(entry())
    assert configured(KERNEL, torch.ones(1), {"L": 512}, DEFAULT) is DEFAULT


def test_a_file_counts_for_its_kernel_dtype_and_size_class(chip):
    chip(entry(), entry(kernel="other", set={"BLOCK_D": 1}), entry(dtype="float32", set={"BLOCK_D": 1}))
    assert asked(512) == asked(300) == {"BLOCK_D": 32, "num_warps": 8}
    assert asked(513) is DEFAULT


def test_the_file_of_the_machine_comes_before_that_of_the_package(chip):
    chip(entry(), entry(size="L=64", set={"BLOCK_D": 16, "num_warps": 2}))
    assert chip(entry(set={"BLOCK_D": 128, "num_warps": 4}), of_this_machine=True).name == "a-chip-80gb.json"
    assert asked(512) == {"BLOCK_D": 128, "num_warps": 4}
    assert asked(64) == {"BLOCK_D": 16, "num_warps": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'configurations'"),
        ('{"configurations": [{"kernel": "a_kernel"}]}', "KeyError: 'dtype'"),
        (json.dumps({"configurations": [entry(set={"BLOCK_D": 48})]}), "BLOCK_D is 48; expected a power of two"),
        (json.dumps({"configurations": [entry(set={"BLOCK_D": 0})]}), "BLOCK_D is 0; expected a power of two"),
        (json.dumps({"configurations": [entry(set={"num_warps": "4"})]}), "num_warps is '4'; expected a power of two"),
        (json.dumps({"configurations": [entry(set=[])]}), "AttributeError"),
    ],
)
def test_a_bad_file_is_one_line_and_the_default(chip, text, words):
    file = chip(entry())
    file.write_text(text)
    with pytest.raises(ValueError, match="is no table of configurations") as raised:
        read_table(text, "file")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.warns(UserWarning, match=f"configurations: {re.escape(str(file))}: .*; the defaults are used"):
        assert configured(KERNEL, ON_GPU, {"L": 512}, DEFAULT) is DEFAULT
    assert asked() is DEFAULT


def test_a_file_for_other_parameters_is_one_line_and_the_default(chip):
    chip(entry(set={"BLOCK_T": 32}))
    with pytest.warns(UserWarning, match="a_kernel has BLOCK_T in the file of this GPU; expected BLOCK_D, num_warps"):
        assert configured(KERNEL, ON_GPU, {"L": 512}, DEFAULT) is DEFAULT


def test_what_is_fixed_is_not_asked_for_and_kept(chip):
    chip(entry(set={"num_warps": 8}))
    assert configured(KERNEL, ON_GPU, {"L": 512}, DEFAULT, fixed=("BLOCK_D",)) == {"BLOCK_D": 64, "num_warps": 8}
    with answering(lambda question: {name: 2 * value for name, value in question.default.items()}):
        assert configured(KERNEL, ON_GPU, {"L": 512}, DEFAULT, ("BLOCK_D",)) == {"BLOCK_D": 64, "num_warps": 8}


def test_stages_need_be_no_power_of_two():
    [found] = read_table(json.dumps({"configurations": [entry(set={"num_stages": 3})]}), "file").values()
    assert found == {"num_stages": 3}


def spectra():
    """name -> (op, tensors, cotangents), with several blocks of each kind."""
    generator = torch.Generator().manual_seed(3)

    def made(*shape):
        return torch.complex(*torch.randn(2, *shape, generator=generator))

    log_z = torch.complex(-torch.rand(2, 20, generator=generator), 6 * torch.rand(2, 20, generator=generator))
    taps = torch.randn(2, 700, generator=generator)
    return {
        "vandermonde": (lambda c, log_z: kernels.vandermonde(c, log_z, 700), [made(2, 20), log_z], [taps]),
        "cauchy": (kernels.cauchy, [made(3, 2, 20), 4 + made(150), made(2, 20)], [made(3, 2, 150)]),
    }


def half(question):
    """Tiles half as large where a product allows it."""
    smallest = 16 if question.kernel.startswith("vandermonde") else 1
    return {
        name: value if name == "num_warps" else max(smallest, value // 2) for name, value in question.default.items()
    }


@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_another_configuration_gives_the_same_to_rounding(name):
    op, tensors, cotangents = spectra()[name]
    definition = getattr(kernels.reference, name)
    if name == "vandermonde":
        definition = lambda c, log_z: kernels.reference.vandermonde(c, log_z, 700)  # noqa: E731
    with answering(half):
        check_against_definition(op, tensors, cotangents, definition=definition)


def test_the_answer_is_what_is_launched_and_the_question_says_what_for():
    questions = []

    def narrow(question):
        questions.append(question)
        return question.default | {"WIDTH": 16}

    c = torch.ones(3, 20, dtype=torch.complex64)
    with recording() as launches, use_implementation("triton"), answering(narrow):
        kernels.vandermonde(c, c, 700)
    assert [launch.arguments["WIDTH"] for launch in launches] == [16]
    assert [question[:3] for question in questions] == [("vandermonde_kernel", "float32", "L=1024 N=32")]
    with recording() as launches, use_implementation("triton"):
        kernels.vandermonde(c, c, 700)
    assert [launch.arguments["WIDTH"] for launch in launches] == [questions[0].default["WIDTH"]]
