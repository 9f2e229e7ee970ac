"""Engines beside PyTorch in the table of whole answers: exported graphs, and llama.cpp where it is built."""

import itertools
import sys

import pytest
import torch
from commands import assert_refused
from small_sizes import SMALL
from transformers import Lfm2Config, Lfm2ForCausalLM

from firebolt_vl.bench import answer as measuring
from firebolt_vl.bench import llama
from firebolt_vl.bench.llama_build import built_program
from firebolt_vl.bench.llama_files import matrices, vectors
from firebolt_vl.engine_benchmark import engine_subjects, names_there

# A llama-bench of which a token of a prompt takes 1 ms, and one of an answer 10.
STANDS_IN = f"""#!{sys.executable}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert (options["-r"], options["-t"], options["-o"], options["-n"]) == ("1", "3", "json", "0"), options
tests = [(int(options["-p"]), 0)]
if "-pg" in options:
    tests.append(tuple(int(one) for one in options["-pg"].split(",")))
print(json.dumps([dict(n_prompt=p, n_gen=n, avg_ns=p * 1_000_000 + n * 10_000_000) for p, n in tests]))
"""


def test_its_files_have_the_weights_of_lfm2():
    for config in (measuring.LFM2_350M, SMALL.text):
        with torch.device("meta"):
            theirs = Lfm2ForCausalLM(Lfm2Config(**config))
        shapes = [(config["vocab_size"], config["hidden_size"]), *matrices(config).values(), *vectors(config).values()]
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        assert numbers == sum(one.numel() for one in theirs.parameters())


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with a first line that says what runs it")
def test_an_answer_is_a_prompt_and_tokens_at_one_pace(tmp_path):
    (tmp_path / llama.BENCH).write_text(STANDS_IN)
    (tmp_path / llama.BENCH).chmod(0o755)
    process = llama.LlamaProcess(tmp_path / "q8_0.gguf", prompt_tokens=32, threads=3, see=lambda: 0.5)
    assert process.answer(4) == pytest.approx([0.784, 0.794, 0.804, 0.814])
    assert process.answer(1) == pytest.approx([0.784])
    assert 0 < process.peak < 100e6  # not what this process holds, with PyTorch in it
    (tmp_path / llama.BENCH).write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        process.answer(4)


def test_the_built_program_is_no_folder_of_its_name(tmp_path):
    (tmp_path / "a" / llama.BENCH).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / llama.BENCH).write_text("")
    assert built_program(tmp_path) == tmp_path / "bin" / llama.BENCH


def test_what_is_not_there_is_not_in_the_table(firebolt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_there() == ()
    refused = firebolt("bench", "answer", "--only", "llama-q4_0")
    assert_refused(refused, 1, "--only is llama-q4_0, but there is no out/llama; make bench-llama builds it")


def test_an_exported_model_answers_in_a_process_of_its_own(monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(measuring, "BANDWIDTH_BYTES", 2**20)
    with engine_subjects(["ours-onnx-int4"], 1, SMALL) as (subject,):
        (row,) = measuring.measure([subject], 5, 1, "cpu")
        times = subject.answer(3)
        assert len(times) == 3
        assert all(before < after for before, after in itertools.pairwise(times))
        assert 0 < subject.read_bytes() < subject.disk_bytes() < subject.outside.peak_bytes()
    assert (row.name, row.dtype) == ("ours-onnx-int4", "int4")
    assert row.peak_mb > 10
    assert 0 < row.first_token_s < row.answer_s
