"""What a checkpoint is loaded as: its dtype, 8 bits, and how much memory that takes on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from commands import assert_refused

from firebolt_vl import speeds
from firebolt_vl.checkpoint import load
from firebolt_vl.kernels.linear import can_prepack
from firebolt_vl.model import FireboltConfig, FireboltForConditionalGeneration, quantize_int4
from firebolt_vl.model.cpu import prepacking
from firebolt_vl.model.cpu.prepacking import is_prepacked
from firebolt_vl.model.cpu.quantized_models import is_quantized
from firebolt_vl.speeds import Speed


@pytest.fixture
def half(tmp_path):
    folder = tmp_path / "half"
    tiny_models.make_model().bfloat16().save_pretrained(folder)
    tiny_models.make_processor().save_pretrained(folder)
    return folder


def timed(monkeypatch, **answer_ms: float) -> None:
    monkeypatch.setattr(speeds, "speed", lambda dtype: Speed(0.0, answer_ms[dtype]))


def test_half_precision_that_is_slow_is_widened_and_float32_never_narrowed(monkeypatch):
    timed(monkeypatch, float32=10, bfloat16=10.9, float16=11.1)
    assert [speeds.runs_in(dtype) for dtype in ("float32", "bfloat16", "float16")] == ["float32", "bfloat16", "float32"]


@pytest.mark.parametrize(
    ("slow", "large", "wanted"), [(True, True, "float32"), (False, True, "bfloat16"), (True, False, "bfloat16")]
)
def test_a_checkpoint_runs_in_what_is_fast_here(half, monkeypatch, slow, large, wanted):
    timed(monkeypatch, float32=10, bfloat16=20 if slow else 5)
    monkeypatch.setattr(speeds, "LARGE", 0 if large else 10**9)
    model = load(half, "cpu").model
    assert {str(p.dtype) for name, p in model.named_parameters() if "ssm.kernel" not in name} == {f"torch.{wanted}"}
    exact = FireboltForConditionalGeneration.from_pretrained(half, dtype=torch.float32)
    if wanted == "float32":  # no weight is changed
        for parameter, same in zip(model.parameters(), exact.parameters()):
            assert torch.equal(parameter, same)


def test_what_is_asked_for_is_what_is_measured_not(half, monkeypatch):
    monkeypatch.setattr(speeds, "speed", None)
    monkeypatch.setattr(speeds, "LARGE", 0)
    assert load(half, "cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(half, "cpu", dtype="float32").model.dtype == torch.float32


@pytest.mark.skipif(not can_prepack(), reason="this CPU has no bfloat16 products of prepacked weights")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_what_stays_bfloat16_is_prepacked(half, monkeypatch, quantize):
    monkeypatch.setattr(prepacking, "LEAST_WEIGHTS", 0)
    model = load(half, "cpu", dtype="bfloat16", quantize=quantize).model
    assert is_prepacked(model)
    assert is_quantized(model) == (quantize is not None)
    assert not is_prepacked(load(half, "cpu", dtype="float32", quantize=quantize).model)


def test_a_speed_is_measured_once(monkeypatch):
    monkeypatch.setattr(speeds, "WIDTHS", (16, 32))
    speeds.speed.cache_clear()
    first = speeds.speed("bfloat16")
    assert min(first) > 0
    assert speeds.speed("bfloat16") is first
    speeds.speed.cache_clear()


def test_ask_says_what_it_ran_in(firebolt, checkpoint, image):
    asked = ["ask", image, "what?", "--checkpoint", checkpoint, "--max-new-tokens", 3, "--json"]
    reply = json.loads(firebolt(*asked, "--dtype", "bfloat16").out)
    assert (reply["dtype"], reply["quantize"]) == ("bfloat16", None)
    result = firebolt(*asked, "--quantize", "int8")
    assert (result.code, result.err) == (0, "")
    reply = json.loads(result.out)
    assert (reply["dtype"], reply["quantize"]) == ("float32", "int8")
    assert "float32, int8" in firebolt(*asked[:-1], "--quantize", "int8").out
    assert_refused(firebolt(*asked, "--quantize", "int3"), 2, "--quantize", "int8")


def test_ask_and_export_of_a_quantised_checkpoint(firebolt, checkpoint, image, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "small")
    quantize_int4(FireboltForConditionalGeneration.from_pretrained(checkpoint)).save_pretrained(folder)
    answers = []
    for name, more in ((folder, []), (folder, ["--quantize", "int4"]), (checkpoint, ["--quantize", "int4"])):
        asked = ["ask", image, "what?", "--checkpoint", name, "--max-new-tokens", 3, "--json", *more]
        reply = json.loads(firebolt(*asked).out)
        assert reply["quantize"] == "int4"
        answers.append(reply["answer"])
    assert len(set(answers)) == 1
    asked = ["ask", image, "what?", "--checkpoint", folder, "--quantize", "int8"]
    assert_refused(firebolt(*asked), 1, "--quantize is int8", "in int4 already")
    assert_refused(firebolt("export", "onnx", tmp_path / "out", "--checkpoint", folder), 1, "weights in int4")


def test_int8_and_a_compiled_step_are_made_at_load(checkpoint):
    model = load(checkpoint, "cpu", quantize="int8", compile_step=True).model
    assert is_quantized(model)
    assert model.model.compiled_step is not None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_memory_of_the_weights_and_little_more(tmp_path, checkpoint, dtype, quantize):
    """In a process of its own, in which a small model has been loaded before; all weights are read once."""
    config = tiny_models.make_config(text={"vocab_size": 40_000, "hidden_size": 512, "intermediate_size": 3000})
    model = FireboltForConditionalGeneration(FireboltConfig(**{**config.to_dict(), "cmm_config": {"state_size": 8}}))
    model.to(getattr(torch, dtype))
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > (130e6 if dtype == "float32" else 65e6)
    model.save_pretrained(tmp_path / "large", max_shard_size="60MB")
    tiny_models.make_processor().save_pretrained(tmp_path / "large")
    code = (
        "import re, sys; from pathlib import Path; from firebolt_vl.checkpoint import load\n"
        "def resident():\n"
        "    status = open('/proc/self/status').read()  # both numbers of one moment\n"
        "    return [1024 * int(re.search(which + r':\\s+(\\d+)', status)[1]) for which in ('VmHWM', 'VmRSS')]\n"
        f"how = dict(dtype={dtype!r}, quantize={quantize!r})\n"
        "def read(folder):\n"
        "    model = load(Path(folder), 'cpu', **how).model\n"
        "    return model, sum(float(p.sum()) for p in model.parameters())\n"
        "read(sys.argv[1]); before = resident()[1]\n"
        "kept = read(sys.argv[2]); print(*(number - before for number in resident()))"
    )
    arguments = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "large")]
    # glibc keeps freed blocks of up to 32 MB for later, how many is a matter of chance: up to 1.3 times the weights
    # were counted so. With a threshold that stands still, what is freed is gone.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    peak, after = map(int, done.stdout.split())
    # A tied head is made anew beside the embedding: in 8 bits, or prepacked where bfloat16 is.
    head = 0 if dtype == "float32" and quantize is None else model.lm_head.weight.numel()
    most = size + (head if quantize else head * model.lm_head.weight.element_size())
    assert 0.2 * size < after <= peak <= 1.2 * most
