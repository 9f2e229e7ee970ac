"""The measurement of starts: every command of the table is run, and one that fails is an error."""

import subprocess
import sys

import pytest

from firebolt_vl.bench import start


def test_every_command_is_timed():
    timed = {"nothing": (sys.executable, "-c", ""), "a sum": (sys.executable, "-c", "sum(range(10**6))")}
    found = start.measure(timed, rounds=1)
    assert list(found) == list(timed)
    assert all(cpu > 0 and clock > 0 for cpu, clock in found.values())
    assert start.markdown(found).count("\n| ") == 1 + len(timed)


def test_a_command_that_fails_is_not_timed():
    with pytest.raises(subprocess.CalledProcessError):
        start.measure({"broken": (sys.executable, "-c", "raise SystemExit(3)")}, rounds=1)


def test_the_commands_name_the_image():
    assert "picture.png" in start.commands("picture.png")["firebolt ask"]
