"""More than one process, and processes that are killed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import foveated_trainings
import pytest
import torch
import two_processes
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from numerics import assert_close
from safetensors.torch import load_file
from trainings import losses, run, write_start

import firebolt_vl.train
from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.train.loop import HISTORY, read_history
from firebolt_vl.train.states import check_supported

SUPPORT = Path(two_processes.__file__).parent
LAUNCHES = Path(firebolt_vl.train.__path__[0]) / "configs" / "accelerate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_start(tmp_path_factory.mktemp("processes"), rows=20, text_only=2)
    (folder / "foveated").mkdir()
    foveated_trainings.write_start(folder / "foveated")
    return folder


def launch(script: str, folder: Path) -> None:
    # Of accelerate's launchers the one that starts several processes; without a GPU in sight they take gloo.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run([*command, script, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def launched(folder):
    launch(two_processes.__file__, folder)
    return folder


def test_a_model_in_shards_is_kept_whole_and_goes_on(tmp_path):
    """As FSDP 2 shares it out."""
    launch(str(SUPPORT / "sharded_states.py"), tmp_path / "kept")
    kept = load_file(tmp_path / "kept" / "weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        "loss.0.weight": (7, 5),
        "loss.0.bias": (7,),
        "loss.2.weight": (3, 7),
        "loss.2.bias": (3,),
    }
    assert {file.name for file in (tmp_path / "kept").glob("generators-*")} == {
        "generators-0.json",
        "generators-1.json",
    }


@pytest.mark.parametrize(
    ("kind", "said"),
    [("DEEPSPEED", "type is DEEPSPEED"), ("MEGATRON_LM", "type is MEGATRON_LM"), ("FSDP", "fsdp_version is 1")],
)
def test_what_cannot_be_kept_is_refused_before_it_is_trained(kind, said):
    plugin = SimpleNamespace(fsdp_version=1)
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ValueError, match=said):
        check_supported(accelerator)


@pytest.mark.parametrize("name", two_processes.RUNS)
def test_two_processes_are_one_with_the_doubled_batch(launched, name):
    two = launched / f"two-{name}"
    one = run(launched, f"one-{name}", micro_batch_size=2 * two_processes.MICRO[name], **two_processes.RUNS[name])
    assert losses(two)[: len(losses(one))] == pytest.approx(losses(one), rel=1e-5)
    lines = [read_history(out / HISTORY) for out in (two, one)]
    for mine, theirs in zip(*lines):
        assert (mine["answer_tokens"], mine["tokens"]) == (theirs["answer_tokens"], theirs["tokens"])
        assert mine.get("perplexity", 0) == pytest.approx(theirs.get("perplexity", 0), rel=1e-5)
    if name == "stage-1":
        before, after = (load_file(out / "model.safetensors") for out in (one, two))
        for tensor in before:
            assert_close(after[tensor], before[tensor], relative=1e-4)


@pytest.mark.parametrize("name", two_processes.FOVEATED)
def test_two_processes_are_one_in_the_foveated_models_stages(launched, name):
    folder = launched / "foveated"
    one = foveated_trainings.run(folder, f"one-{name}", micro_batch_size=2, **two_processes.FOVEATED[name])
    for mine, theirs in zip(*(read_history(out / HISTORY) for out in (folder / f"two-{name}", one)), strict=True):
        for measured in ("loss", "gradient_norm"):
            assert mine[measured] == pytest.approx(theirs[measured], rel=1e-4)
        assert mine["tokens"] == theirs["tokens"]
        assert mine.keys() == theirs.keys()


def test_stage_1_meets_micro_batches_of_text_alone(folder):
    """The test above would say nothing if there were none."""
    from trainings import config

    from firebolt_vl.train.conversations import ConversationsJob
    from firebolt_vl.train.data.batches import StepBatches

    job = ConversationsJob(config(folder, **two_processes.STAGE_1))
    shares = [[*StepBatches(job.order, job.rows, process, 2, 2, 0, 4)] for process in range(2)]
    alone = [[not any(job.dataset.row(i).images for i in rows) for rows in share] for share in shares]
    assert any(one and not other for one, other in zip(*alone))


def test_a_run_of_two_processes_is_resumed_by_two(launched):
    two = launched / "two-end-to-end"
    assert [line["step"] for line in read_history(two / HISTORY)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="was written by 2 processes; expected 1, as many as there are now; start 2"):
        run(launched, "two-end-to-end", resume=True, **two_processes.END_TO_END)


def test_broken_runs_go_on_bit_for_bit():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUPPORT / "kill_and_resume.py"), "--rounds", "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "7 of 7 resumed runs are bit-equal to the unbroken one"


@pytest.mark.parametrize("file", sorted(LAUNCHES.glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_for_gpus_are_ones_that_accelerate_takes(file):
    found = load_config_from_file(str(file))
    assert found.num_processes >= 2
    assert found.mixed_precision == "no"  # bf16 is the run's own business
    wrapped = yaml.safe_load(file.read_text()).get("fsdp_config", {}).get("fsdp_transformer_layer_cls_to_wrap", "")
    assert set(filter(None, wrapped.split(","))) <= set(FireboltForConditionalGeneration._no_split_modules)


def test_there_are_configurations_for_one_machine_and_for_several():
    names = {file.stem for file in LAUNCHES.glob("*.yaml")}
    assert names == {"ddp", "fsdp", "multi-node"}
    assert torch.distributed.is_available()
