"""Process that answers by an exported model of random weights, so that its memory is that of the engine alone.

`python -m firebolt_vl.engines.timed_worker FOLDER THREADS` reads how many tokens to make, one number a line, and prints
for each a line of JSON: when each token was there, in seconds from the start, and the process's peak of memory in
bytes. FOLDER has grids.onnx, text.onnx and inputs.safetensors. PyTorch is not imported.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from .graphs import onnx_session, open_onnx
from .in_place import TextInPlace

IDS = "input_ids"


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Answer until there are no more lines."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    grids, text = open_onnx(folder / "grids.onnx", threads), onnx_session(folder / "text.onnx", threads)
    views = load_file(folder / "inputs.safetensors")
    ids = views.pop(IDS)
    for line in sys.stdin:
        new_tokens = int(line)
        start = time.perf_counter()
        read = TextInPlace(text, grids(views), ids.shape[1] + new_tokens).read
        token, times = read(ids).argmax(), []
        for _ in range(new_tokens - 1):
            times.append(time.perf_counter() - start)
            token = read(np.array([[token]])).argmax()
        times.append(time.perf_counter() - start)
        print(json.dumps({"times": times, "peak": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
