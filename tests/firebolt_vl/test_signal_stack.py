"""Ctrl-C after graphs of OpenVINO have gone, in a process of its own."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

PROGRAM = """
import os
import signal
import sys

import numpy as np
import openvino
from openvino import opset13 as ops

from firebolt_vl.engines.graphs import open_openvino

x = ops.parameter([-1, 4], np.float32, name="x")
openvino.save_model(openvino.Model([ops.relu(x)], [x]), sys.argv[1])
graphs = [open_openvino(sys.argv[1]) for _ in range(3)]
assert all(graph({"x": np.ones((2, 4), np.float32)}) for graph in graphs)
for number in map(int, sys.argv[2]):
    graphs[number] = None
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stacks of signals as Linux has them")
@pytest.mark.parametrize("gone", ["", "012", "210", "1", "02"])
def test_signals_are_heard_whichever_graphs_have_gone(gone, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "graph.xml"), gone]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
