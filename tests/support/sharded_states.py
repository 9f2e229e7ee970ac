"""What each of two processes does in the test of models in shards (FSDP 2): save states, load them anew, go on.

accelerate launch --multi_gpu --num_processes 2 tests/support/sharded_states.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from firebolt_vl.train.states import States, load_states, not_finite, save_states


def make(seed: int) -> States:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return States({"loss": model}, [torch.optim.AdamW(model.parameters(), lr=0.1)])


def step(states: States, x: torch.Tensor) -> None:
    (model,), (optimizer,) = states.modules.values(), states.optimizers
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(states: States) -> list[torch.Tensor]:
    return [parameter.full_tensor() for parameter in states.modules["loss"].parameters()]


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(accelerator.process_index))
    states, other = make(0), make(1)
    step(states, x)
    if accelerator.is_main_process:
        folder.mkdir()
    accelerator.wait_for_everyone()
    save_states(folder, states, accelerator)
    accelerator.wait_for_everyone()
    load_states(folder, other, accelerator)
    for _ in range(3):
        for one in (states, other):
            step(one, x)
    for mine, theirs in zip(whole(states), whole(other)):
        assert torch.equal(mine, theirs)
    assert not_finite(states, accelerator) is None
    parameter = next(states.modules["loss"].parameters())
    if accelerator.process_index == 1:
        parameter.to_local().data.fill_(float("nan"))
    assert not_finite(states, accelerator) is not None, "one process knows of another's shard"
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # FSDP 2 on gloo leaves a thread to the destructors, which now and then abort the process (torch 2.13).
    sys.stdout.flush()
    os._exit(0)
