"""Pages of a mapped file are given back, and never what has been written to them."""

import mmap
import platform
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from firebolt_vl.model.cpu.int4 import Int4Linear, has_kernels, hold_int4
from firebolt_vl.model.cpu.mapped_memory import PAGEMAP, release_file_pages

pytestmark = pytest.mark.skipif(not PAGEMAP.exists(), reason="this system has no page map")


@pytest.fixture
def mapped(tmp_path):
    save_file({"before": torch.zeros(5), "weight": torch.randn(1000, 1000)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        yield file.get_tensor("weight")


def resident(what: str) -> int:
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_a_mapped_tensor_gives_its_pages_back_and_keeps_its_values(mapped):
    wanted = mapped.clone()
    before = resident("RssFile")
    released = release_file_pages(mapped)
    assert mapped.nbytes - 3 * mmap.PAGESIZE < released <= mapped.nbytes
    assert before - resident("RssFile") > 0.9 * released
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


@pytest.mark.skipif(not has_kernels() or platform.libc_ver()[0] != "glibc", reason="no 4-bit kernels, or no glibc")
def test_packing_leaves_no_holes_between_the_layers():
    layers = [nn.Linear(*sizes, bias=False, device="meta") for sizes in [(1024, 6144), (4608, 1024)] * 5]
    for layer in layers:
        codes = torch.full((layer.out_features, layer.in_features // 2), 0x88, dtype=torch.uint8)
        hold_int4(layer, codes, torch.ones(layer.out_features, layer.in_features // 32, dtype=torch.bfloat16))
    del codes
    before = resident("RssAnon")
    for layer in layers:
        assert isinstance(layer, Int4Linear)
        layer.pack()
    # The codes, half a byte each, have become the kernel's, and the scales pairs.
    assert resident("RssAnon") - before < 20 * 2**20 < sum(layer.packed_bytes for layer in layers)
