"""Whatever breaks in between: no input changes, no row is lost, none is there twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes share what is imported")
def test_every_fault_once():
    """More of them: python tests/support/answer_faults.py --rounds 200."""
    command = [sys.executable, SUPPORT / "answer_faults.py", "--rounds", "14"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": well\n") == 14
