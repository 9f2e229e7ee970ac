"""`firebolt info` says what is installed and what will run."""

import importlib
import json

import torch
import transformers
from packaging.specifiers import SpecifierSet

import firebolt_vl
from firebolt_vl import cli
from firebolt_vl.info import collect, untested
from firebolt_vl.kernels.implementation import OPS, implementation


def test_versions_are_those_that_are_imported():
    versions = collect()["versions"]
    assert versions["firebolt-vl"] == firebolt_vl.__version__
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__


def test_a_version_that_no_test_was_run_with_is_told(capsys, monkeypatch):
    assert collect()["untested"] == {}
    assert untested({"transformers": "5.99.0", "torch": "2.13.0+cpu", "triton": None}) == {
        "transformers": str(SpecifierSet(">=5.23,<5.25"))
    }
    monkeypatch.setattr("firebolt_vl.info.version", lambda library: "99.0")
    assert cli.run(["info"]) == 0
    assert "99.0  not tested: " in capsys.readouterr().out


def test_every_op_has_its_implementation_on_every_device():
    found = collect()
    assert found["devices"][0]["device"] == "cpu"
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    assert tuple(found["ops"]) == OPS
    for op, devices in found["ops"].items():
        assert list(devices) == [device["device"] for device in found["devices"]]
        for device, chosen in devices.items():
            assert chosen == implementation(op, device)._asdict()


def test_a_graphics_card_is_listed_with_what_runs_on_it(monkeypatch):
    class Card:
        name, major, minor, total_memory = "a card", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    found = collect()
    assert found["devices"][1] == {
        "device": "cuda:0",
        "name": "a card",
        "capability": "9.0",
        "memory_bytes": 80 * 2**30,
    }
    assert found["ops"]["fft_conv"]["cuda:0"] == implementation("fft_conv", "cuda:0")._asdict()


def test_a_cpu_without_products_in_half_precision_is_told(capsys, monkeypatch):
    for slow, told in ((frozenset(), False), (frozenset([torch.float16, torch.bfloat16]), True)):
        # By its name: as an attribute of the package, `linear` is the function.
        monkeypatch.setattr(importlib.import_module("firebolt_vl.kernels.linear"), "SLOW_HALVES", slow)
        assert cli.run(["info"]) == 0
        assert ("no products in bfloat16 and float16 here" in capsys.readouterr().out) == told
        assert collect()["devices"][0]["slow_halves"] == (["bfloat16", "float16"] if told else [])


def test_it_is_printed_for_people_and_as_json(capsys):
    assert cli.run(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("firebolt-vl", torch.__version__, "threads in use", "tiny checkpoint", *OPS):
        assert word in printed
    assert implementation("cauchy", "cpu").why in printed
    assert cli.run(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == collect()
