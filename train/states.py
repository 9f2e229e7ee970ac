"""States from which a run is resumed, in files that cannot run code: safetensors and JSON.

    weights.safetensors       parameters and buffers, by name
    optimizer.safetensors     what the optimisers remember, by the parameter's name: NAME/exp_avg, NAME/step, ...
    position.safetensors      the place in the data
    generators-N.json         the random generators of process N: Python's, NumPy's, PyTorch's, the device's

Rates, decays and other hyperparameters of the optimisers come from the configuration, and rates from the step.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from .tensors import Wanted, check_tensors, first_not_finite, read_tensors, write_tensors

WEIGHTS, OPTIMIZER, POSITION = "weights.safetensors", "optimizer.safetensors", "position.safetensors"
# What an optimiser remembers of a parameter -> whether it has the parameter's shape; else it is a single number.
REMEMBERED = {"AdamW": {"step": False, "exp_avg": True, "exp_avg_sq": True}, "Muon": {"momentum_buffer": True}}


@dataclass
class States:
    """Modules of a job by name, their optimisers, and objects that know a place in the data, whose `state_dict` and
    `load_state_dict` have tensors alone: all that a checkpoint keeps."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    positions: Mapping[str, object] = field(default_factory=dict)


def check_supported(accelerator: Accelerator) -> None:
    """Check that these functions can gather the states of a model that is sharded in this way. Raises ValueError."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise ValueError(
            f"distributed_type is {kind.value}, whose runs cannot be resumed; expected MULTI_GPU or FSDP, for example"
        )
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("fsdp_version is 1, whose runs cannot be resumed; expected 2")


def weights_of(states: States, accelerator: Accelerator) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once; of a model in shards the shards."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, module in states.modules.items()
        for name, tensor in _own(accelerator.unwrap_model(module))
    }


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    yield from ((name, tensor) for name, tensor in module.state_dict().items() if name not in parameters)


def save_states(folder: Path, states: States, accelerator: Accelerator) -> None:
    """Called by every process. Raises OSError where a file cannot be written."""
    kept = {
        WEIGHTS: weights_of(states, accelerator),
        OPTIMIZER: _remembered(states, accelerator),
        POSITION: _positions(states),
    }
    for file, tensors in kept.items():
        whole = {}
        for name, tensor in tensors.items():
            # One by one: of a model in shards no device has room for all of it.
            tensor = _whole(tensor)
            if accelerator.is_main_process:
                whole[name] = tensor.cpu()
        if accelerator.is_main_process:
            write_tensors(folder / file, whole)
    generators = json.dumps(_generators(accelerator.device))
    _generators_file(folder, accelerator).write_text(generators, encoding="utf-8")


def load_states(folder: Path, states: States, accelerator: Accelerator) -> None:
    """Called by every process. Raises ValueError, which names file and key, where one does not fit these states."""
    weights = weights_of(states, accelerator)
    found = read_tensors(folder / WEIGHTS)
    check_tensors(
        folder / WEIGHTS, found, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    )
    _load_remembered(folder / OPTIMIZER, states, accelerator)
    _load_positions(folder / POSITION, states)
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(_shared_out(found[name], tensor))
    _set_generators(_generators_file(folder, accelerator), accelerator.device)


def not_finite(states: States, accelerator: Accelerator) -> str | None:
    """A weight, or what an optimiser remembers of one, that is infinite or NaN somewhere; None where all are finite.

    Called by every process, and tells each the same.
    """
    tensors = {**weights_of(states, accelerator), **_remembered(states, accelerator)}
    name = first_not_finite({name: tensor.detach() for name, tensor in tensors.items()})
    found = torch.tensor(name is not None, dtype=torch.float32, device=accelerator.device)
    return (name or "a weight of another process") if accelerator.reduce(found) else None


def first_unsound(folder: Path) -> str | None:
    """The first tensor in a kept state with a value that is not finite. Raises ValueError where a file is none."""
    for file in (WEIGHTS, OPTIMIZER):
        if (name := first_not_finite(read_tensors(folder / file))) is not None:
            return f"{file}: {name}"
    return None


def _whole(tensor: Tensor) -> Tensor:
    """The tensor of which each process has a shard (FSDP)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def _shared_out(whole: Tensor, like: Tensor) -> Tensor:
    """Undo `_whole`."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def _named(states: States, accelerator: Accelerator) -> list[tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]]:
    """The parameters of each optimiser by name, in its order."""
    names = {id(tensor): name for name, tensor in weights_of(states, accelerator).items()}
    return [
        (optimizer, {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]})
        for optimizer in states.optimizers
    ]


def _remembered(states: States, accelerator: Accelerator) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for optimizer, parameters in _named(states, accelerator)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _remembered_by(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    return REMEMBERED[type(getattr(optimizer, "optimizer", optimizer)).__name__]


def _load_remembered(file: Path, states: States, accelerator: Accelerator) -> None:
    found = read_tensors(file)
    named = _named(states, accelerator)
    wanted: dict[str, Wanted] = {}
    for optimizer, parameters in named:
        kept = _remembered_by(optimizer)
        for name, parameter in parameters.items():
            # A parameter that no gradient has reached has none of it.
            if any(f"{name}/{key}" in found for key in kept):
                for key, shaped in kept.items():
                    form = (parameter.dtype, tuple(parameter.shape)) if shaped else (torch.float32, ())
                    wanted[f"{name}/{key}"] = form
    check_tensors(file, found, wanted)
    for optimizer, parameters in named:
        kept = _remembered_by(optimizer)
        state = {
            number: {
                key: _shared_out(found[f"{name}/{key}"], parameter) if shaped else found[f"{name}/{key}"]
                for key, shaped in kept.items()
            }
            for number, (name, parameter) in enumerate(parameters.items())
            if f"{name}/{next(iter(kept))}" in found
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _positions(states: States) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value for name, place in states.positions.items() for key, value in place.state_dict().items()
    }


def _load_positions(file: Path, states: States) -> None:
    """Objects check what they are given; the names are checked here."""
    found = read_tensors(file)
    wanted = _positions(states)
    if found.keys() != wanted.keys():
        raise ValueError(
            f"{file} has {', '.join(sorted(found)) or 'nothing'}; expected {', '.join(sorted(wanted)) or 'nothing'}"
        )
    for name, place in states.positions.items():
        try:
            place.load_state_dict({key: found[f"{name}.{key}"] for key in place.state_dict()})
        except ValueError as error:
            raise ValueError(f"{file}: {name}.{error}") from None


def _generators_file(folder: Path, accelerator: Accelerator) -> Path:
    return folder / f"generators-{accelerator.process_index}.json"


def _generators(device: torch.device) -> dict:
    version, state, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    kept = {"python": [version, list(state), gauss], "numpy": [name, keys.tolist(), *rest]}
    kept["cpu"] = torch.get_rng_state().numpy().tobytes().hex()
    if device.type != "cpu":
        kept[device.type] = torch.get_device_module(device).get_rng_state().cpu().numpy().tobytes().hex()
    return kept


def _set_generators(file: Path, device: torch.device) -> None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        version, state, gauss = kept["python"]
        random.setstate((version, tuple(state), gauss))
        name, keys, *rest = kept["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(_bytes(kept["cpu"]))
        # A run that goes on on another kind of device keeps the generator that its seed made there.
        if device.type != "cpu" and device.type in kept:
            torch.get_device_module(device).set_rng_state(_bytes(kept[device.type]))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{file} holds no states of generators ({type(error).__name__}: {error})") from None


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
