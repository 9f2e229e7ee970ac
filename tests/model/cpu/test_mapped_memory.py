"""Pages of a mapped file are given back, and never what has been written to them."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from firebolt_vl.model.cpu.mapped_memory import PAGEMAP, release_file_pages

pytestmark = pytest.mark.skipif(not PAGEMAP.exists(), reason="this system has no page map")


@pytest.fixture
def mapped(tmp_path):
    save_file({"before": torch.zeros(5), "weight": torch.randn(1000, 1000)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        yield file.get_tensor("weight")


def of_files() -> int:
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_a_mapped_tensor_gives_its_pages_back_and_keeps_its_values(mapped):
    wanted = mapped.clone()
    before = of_files()
    released = release_file_pages(mapped)
    assert mapped.nbytes - 3 * mmap.PAGESIZE < released <= mapped.nbytes
    assert before - of_files() > 0.9 * released
    assert release_file_pages(mapped) == 0
    assert torch.equal(mapped, wanted)


@pytest.mark.parametrize("row", [1, 500, 998])
def test_what_has_been_written_to_stays(mapped, row):
    mapped[row] = 7
    wanted = mapped.clone()
    assert release_file_pages(mapped) == 0
    assert torch.equal(mapped, wanted)


def test_memory_of_no_file_stays():
    tensor = torch.randn(1000, 1000)
    wanted = tensor.clone()
    assert release_file_pages(tensor) == 0
    assert release_file_pages(torch.empty(0)) == 0
    assert release_file_pages(torch.empty(3, device="meta")) == 0
    assert torch.equal(tensor, wanted)


def test_without_a_page_map_nothing_is_done(mapped, monkeypatch, tmp_path):
    monkeypatch.setattr("firebolt_vl.model.cpu.mapped_memory.PAGEMAP", tmp_path / "none")
    assert release_file_pages(mapped) == 0
