"""What `accelerate launch` runs in each process of the test of several: the runs of RUNS and FOVEATED, one by one.

CUDA_VISIBLE_DEVICES= accelerate launch --multi_gpu --num_processes 2 tests/support/two_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from foveated_trainings import run as run_foveated
from trainings import run
from transformers.utils import logging

ALL = ["vision", "connector", "decoder"]
# Of each of the eight rows of a batch: 2 processes, 2 accumulated micro-batches, 2 rows.
END_TO_END = {"train": ALL, "batch_size": 8, "max_steps": 4, "validation_share": 0.2, "eval_every": 2, "save_every": 3}
# Micro-batches of one row: every other one is text alone.
STAGE_1 = {"train": ["connector"], "batch_size": 4, "max_steps": 4}
RUNS = {"end-to-end": END_TO_END, "stage-1": STAGE_1}
# The foveated model's, of FOLDER/foveated. Of four rows one is text alone, one an image, one several, one a video.
FOVEATED = {
    "text": {"loss": "text", "batch_size": 4, "max_steps": 3},
    "answers": {"loss": "answers", "batch_size": 4, "max_steps": 3},
    "preferences": {"loss": "preferences", "batch_size": 4, "max_steps": 3, "beta": 1.0},
}
MICRO = {"end-to-end": 2, "stage-1": 1}


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    assert (state.num_processes, state.backend) == (2, "gloo"), "accelerate started processes on their own"
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name, keys in RUNS.items():
        run(folder, f"two-{name}", micro_batch_size=MICRO[name], **keys)
    for name, keys in FOVEATED.items():
        run_foveated(folder / "foveated", f"two-{name}", micro_batch_size=1, **keys)
    # As far as the checkpoint of step 3 the same run.
    run(folder, "two-end-to-end", resume=True, micro_batch_size=MICRO["end-to-end"], **{**END_TO_END, "max_steps": 5})
    state.destroy_process_group()  # else gloo's threads may still run when the process ends, which then aborts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
