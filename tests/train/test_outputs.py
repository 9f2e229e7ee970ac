"""Where a run writes: alone, whole, and never over what no run has written."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import trainings
from commands import Result
from trainings import config, run, steps, weights, write_start

from firebolt_vl import cli
from firebolt_vl.train import checkpoints, loop, session, states
from firebolt_vl.train.config_files import load_config
from firebolt_vl.train.errors import ConfigError, Stopped, TrainingError
from firebolt_vl.train.foveated_tiny import recipe as foveated_recipe
from firebolt_vl.train.outputs import LOCK, alone_in
from firebolt_vl.train.start import train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"), dropout=0.1)


@pytest.fixture
def firebolt(capfd):
    """Run the command in this process."""

    def run(*arguments) -> Result:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


def silent(text: str) -> None:
    pass


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(folder):
    with alone_in(folder / "run", silent):
        with pytest.raises(ConfigError, match=r"run, where another run is writing; wait for it"):
            run(folder, max_steps=1)
        assert [file.name for file in (folder / "run").iterdir()] == [LOCK]
    assert not (folder / "run").exists()
    assert steps(run(folder, max_steps=1)) == [1]


def test_the_small_recipes_and_the_ablations_lock_theirs(folder, firebolt):
    with alone_in(folder / "work", silent):
        with pytest.raises(ConfigError, match="where another run is writing"):
            foveated_recipe.main(["--work", str(folder / "work"), "--out", str(folder / "out"), "--seeds", "0"])
        found = firebolt("ablate", "connector", "--quick", "--out", folder / "work")
        assert (found.code, "where another run is writing" in found.err) == (2, True)
        with pytest.raises(ConfigError, match="where another run is writing"):
            train(load_config("tiny", ["max_steps=1"]), folder / "work", note=silent)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_said_and_no_other_run(folder, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    out = train(config(folder, max_steps=1), folder / "run", note=said.append)
    assert "whose file system has no locks" in said[0]
    assert steps(out) == [1]


def test_bfloat16_is_told_where_the_cpu_has_no_products_in_it(folder, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(session, "SLOW_HALVES", frozenset())
    assert session.slow_precision("bf16") is None
    monkeypatch.setattr(session, "SLOW_HALVES", frozenset([torch.bfloat16]))
    assert session.slow_precision("float32") is None
    said = []
    train(config(folder, max_steps=1, precision="bf16"), folder / "run", note=said.append)
    assert "no products in bfloat16" in said[0]
    assert "precision=float32" in said[0]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert session.slow_precision("bf16") is None


def test_a_lock_that_is_left_by_a_killed_process_is_no_hindrance(folder):
    (folder / "run").mkdir()
    (folder / "run" / LOCK).touch()
    assert steps(run(folder, max_steps=1)) == [1]
    assert not (folder / "run" / LOCK).exists()


def test_what_a_killed_process_had_begun_goes_and_nothing_else(folder):
    begun = [".firebolt-0123456789ab.png", ".firebolt-0123456789ab"]
    others = [".firebolt-notes", ".firebolt-0123456789ab-notes.png", ".firebolt-0123456789abcd.png", ".hidden"]
    run(folder, max_steps=1)
    for name in [*begun, *others]:
        (folder / "run" / name).write_text("mine")
    run(folder, resume=True, max_steps=2)
    assert {file.name for file in (folder / "run").glob(".*")} == set(others)


def test_a_folder_with_somebodys_files_is_left_alone(folder):
    theirs = folder / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("theirs")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"theirs, which holds config\.json of no run"):
            run(folder, "theirs", resume=resume)
    with pytest.raises(ConfigError, match=r"model, which holds .* of no run"):
        run(folder, "model")
    assert [(file.name, file.read_text()) for file in theirs.iterdir()] == [("config.json", "theirs")]


def test_a_history_of_somebody_else_is_left_alone(folder):
    (folder / "run").mkdir()
    (folder / "run" / "history.jsonl").write_text('{"price": 3}\n')
    with pytest.raises(ConfigError, match=r"whose history.jsonl is not the history of a run"):
        run(folder, resume=True)
    assert (folder / "run" / "history.jsonl").read_text() == '{"price": 3}\n'


def test_half_a_first_line_is_no_hindrance(folder):
    (folder / "run").mkdir()
    (folder / "run" / "train.json").write_text("{}")
    (folder / "run" / "history.jsonl").write_text('{"step": 1, "lo')
    assert steps(run(folder, resume=True, max_steps=1)) == [1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data": ["none.jsonl"]}, "data: none.jsonl does not exist"),
        ({"validation": ["none.jsonl"]}, "validation: none.jsonl does not exist"),
        ({"image_root": "none"}, "image_root is none; expected a folder that exists"),
        ({"model": "out/none/best"}, "model: out/none/best"),
        ({"model": "./none"}, "model: ./none"),
        ({"model": None, "decoder": "none", "vision": "none"}, "decoder: none"),
    ],
)
def test_what_is_not_there_is_known_first_and_no_folder_is_left(folder, monkeypatch, keys, said):
    def refuse(*_, **__):
        raise AssertionError("loaded, or looked for on the network")

    monkeypatch.setattr("firebolt_vl.train.start.new_accelerator", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(ConfigError, match=said):
        run(folder, "a/b/run", **keys)
    assert not (folder / "a").exists()


@pytest.mark.parametrize("place", ["file", "file/run", "link", "/proc/none/run"])
def test_a_place_that_cannot_be_written(folder, place):
    (folder / "file").write_text("mine")
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r", a file; expected a folder|cannot be written|leads nowhere"):
        run(folder, place)
    assert (folder / "file").read_text() == "mine"


def test_a_failure_leaves_no_folder_behind(folder):
    """A model that cannot be loaded, found out after the folder was taken."""
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model is .*, which cannot be loaded"):
        run(folder, "a/run", model=str(folder / "empty"))
    assert not (folder / "a").exists()


def test_a_link_to_another_folder_is_written_through(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "real"
    elsewhere.mkdir()
    (folder / "run").symlink_to(elsewhere)
    out = run(folder, max_steps=2, save_every=1, validation_share=0.2)
    assert (folder / "run").is_symlink()
    assert weights(elsewhere) == weights(out)
    assert {file.name for file in folder.iterdir()} == {"model", "data", "run"}
    assert not list(elsewhere.rglob(".*"))


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["weights.safetensors", "optimizer.safetensors", "generators", "manifest", "flush"])
def test_a_full_disk_leaves_the_checkpoints_before_and_no_half_one(folder, what):
    """The disk is full from the second checkpoint on, at one of its files."""
    keys = {"max_steps": 4, "save_every": 1, "keep": 9}
    whole = run(folder, "whole", **keys)
    write_tensors, write_text, flush = states.write_tensors, Path.write_text, checkpoints.flush

    def full(file: Path) -> bool:
        return "unfinished-00000002" in str(file) and what in str(file.name)

    def half(write):
        def writing(file, *arguments, **named):
            if full(file):
                Path(file).write_bytes(b"half")
                raise FULL
            return write(file, *arguments, **named)

        return writing

    def flushing(path):
        if what == "flush" and "unfinished-00000002" in str(path):
            raise FULL
        flush(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "write_tensors", half(write_tensors))
        patch.setattr(Path, "write_text", half(write_text))
        patch.setattr(checkpoints, "flush", flushing)
        with pytest.raises(TrainingError, match=r"step 2 could not be written \(No space left.*step-00000001 is kept"):
            run(folder, **keys)
    assert [file.name for file in (folder / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    out = run(folder, resume=True, **keys)
    assert (trainings.told(out), weights(out)) == (trainings.told(whole), weights(whole))


def test_a_full_disk_while_the_model_is_written_leaves_the_one_before(folder, monkeypatch):
    keys = {"max_steps": 2, "validation_share": 0.2, "eval_every": 1}
    out = run(folder, **keys)
    before = weights(out / "best")

    def save(job, place):
        (place / "model.safetensors").write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(loop.Job, "save", save)
    monkeypatch.setattr("firebolt_vl.train.conversations.ConversationsJob.save", save)
    with pytest.raises(TrainingError, match=r"could not be written to .*run \(No space left on device\)"):
        run(folder, resume=True, **keys)
    assert weights(out / "best") == before
    assert not list(out.rglob(".unfinished"))


def stopped_at(at: int, times: int):
    """Ctrl-C comes so often within a step (from 0)."""
    honest = trainings.ConversationsJob.step

    def step(job, number):
        if number == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)  # the handler runs
        return honest(job, number)

    return step


def test_ctrl_c_ends_the_step_writes_a_checkpoint_and_the_run_goes_on_bit_for_bit(folder, monkeypatch):
    keys = {"max_steps": 6, "train": ["vision", "connector", "decoder"]}
    whole = run(folder, "whole", **keys)
    with monkeypatch.context() as patch:
        patch.setattr(trainings.ConversationsJob, "step", stopped_at(2, 1))
        with pytest.raises(Stopped, match=r"stopped after step 3 of 6; .*step-00000003 is kept"):
            run(folder, **keys)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    out = run(folder, resume=True, **keys)
    assert (trainings.told(out), weights(out)) == (trainings.told(whole), weights(whole))


def test_ctrl_c_twice_stops_at_once(folder, monkeypatch):
    monkeypatch.setattr(trainings.ConversationsJob, "step", stopped_at(2, 2))
    with pytest.raises(Stopped, match=r"stopped at once; .*step-00000002 is kept"):
        run(folder, save_every=1)
    assert steps(folder / "run") == [1, 2]


def test_the_command_says_how_to_go_on(folder, firebolt, monkeypatch):
    monkeypatch.chdir(folder)
    keys = ["model=model", "data=data/rows.jsonl", "batch_size=4", "max_steps=3", "workers=0", "trackers=[]"]
    (folder / "my run.toml").write_text("warmup_steps = 0\n")
    monkeypatch.setattr(trainings.ConversationsJob, "step", stopped_at(0, 1))
    found = firebolt("train", "my run.toml", *keys, "--out", "run")
    assert found.code == 130
    assert (
        "stopped after step 1 of 3; run/checkpoints/step-00000001 is kept; to go on: firebolt train 'my run.toml'"
        in (found.err)
    )
    assert found.err.rstrip().endswith("--out run --resume")
    monkeypatch.undo()
    assert json.loads((folder / "run" / "train.json").read_text())["max_steps"] == 3


def test_a_real_ctrl_c_with_processes_that_read_the_data(folder):
    """Of a terminal it reaches them too."""
    code = "from firebolt_vl.cli import main; main()"
    keys = [f"model={folder}/model", f"data={folder}/data/rows.jsonl", "batch_size=2", "max_steps=4000", "trackers=[]"]
    (folder / "a.toml").write_text("workers = 2\n")
    command = [sys.executable, "-c", code, "train", str(folder / "a.toml"), *keys, "--out", str(folder / "run")]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "run" / "history.jsonl").is_file():
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130, said
    assert "Traceback" not in said
    kept = [int(path.name.removeprefix("step-")) for path in (folder / "run" / "checkpoints").iterdir()]
    assert [*range(1, kept[0] + 1)] == steps(folder / "run")
    assert not (folder / "run" / LOCK).exists()
    shutil.rmtree(folder / "run")
