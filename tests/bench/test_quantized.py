"""The costs of fewer bits measured: a row for each, in columns that say what it lost and what it saved."""

import re

import pytest
import tiny_models
from small_sizes import SMALL

import firebolt_vl
from firebolt_vl.bench import quantized
from firebolt_vl.model.cpu.quantized_models import QUANTIZE


def number(cell: str) -> float:
    return float(re.fullmatch(r"([\d.,]+)( [%MBs]+)?", cell)[1].replace(",", ""))


@pytest.fixture
def costs(monkeypatch):
    """Loading that takes as many seconds and bytes as this says, and is counted."""
    asked = []

    def cost(folder, kind=None):
        assert (folder / "model.safetensors").exists()
        asked.append((folder.name, kind))
        return (2.0 if kind is None else 3.0) + len(asked), 2_000_000 * len(asked)

    monkeypatch.setattr(quantized, "load_cost", cost)
    return asked


def test_a_model_that_knows_something_is_examined(costs, monkeypatch):
    monkeypatch.setattr(quantized, "SCENES", 4)
    monkeypatch.setattr(quantized, "COMPARED", 9)
    rows = [dict(zip(quantized.COLUMNS, row)) for row in quantized.exam_rows(str(firebolt_vl.embedded_checkpoint()))]
    assert [row["weights"] for row in rows] == ["float32", *QUANTIZE]
    plain, eight, four = rows
    assert number(plain["file"]) > number(eight["file"]) > number(four["file"])
    assert number(plain["drift"]) == 0 < number(eight["drift"]) < number(four["drift"]) < 30
    assert number(plain["same token"]) == 100 >= number(four["same token"]) > 80
    for row in rows:
        assert 1 < number(row["perplexity"]) < 1.5
        assert number(row["accuracy"]) > 80
    # In turns, and the least of the rounds counts.
    assert costs == [("None", None)] * 3 + [
        turn for kind in QUANTIZE for _ in range(3) for turn in ((kind, None), ("None", kind))
    ]
    assert plain["load"] == "saved 3.00 s"
    assert (eight["load"], eight["memory"]) == ("saved 6.00 s, anew 8.00 s", "saved 8 MB, anew 10 MB")


def test_random_weights_have_no_accuracy(costs):
    rows = list(quantized.random_rows(SMALL))
    assert [row[0] for row in rows] == ["bfloat16", *QUANTIZE]
    assert all(len(row) == len(quantized.COLUMNS) and row[-1] == "" for row in rows)


def test_a_process_of_its_own_says_what_loading_takes(tmp_path):
    tiny_models.make_model().save_pretrained(tmp_path)
    seconds, peak = quantized.load_cost(tmp_path, "int4")
    assert seconds > 0
    assert 0 < peak < 2**30
