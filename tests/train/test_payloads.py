"""Code in the files that trainings and ablations read: none of it runs, and what is wanted of a file is named."""

import ast
import json
import shutil
from pathlib import Path

import payloads
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import config, run, write_start

import firebolt_vl
from firebolt_vl.train.ablation.runs import TASK, WORK
from firebolt_vl.train.ablation.task import Settings, keep_task, load_task
from firebolt_vl.train.checkpoints import sum_of, sums_of
from firebolt_vl.train.config_files import load_config
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.foveated_tiny import recipe as foveated_recipe
from firebolt_vl.train.start import train
from firebolt_vl.train.tiny.stage import STAGE, load_stage

ROOT = Path(firebolt_vl.train.__path__[0]).parent
# By these names earlier formats kept pickles, and libraries look for them.
OLD = (
    *("custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin", "optimizer_1.bin", "scheduler.bin"),
    *("random_states_0.pkl", "model.pt", "stage.pt", "task.pt", "pytorch_model.bin", "adapter_model.bin", "rows.npy"),
    *("scaler.pt", "sampler.bin", "dl_state_dict.bin", "training_args.bin", ".metadata", "x.distcp"),
)
CURRENT = ("weights.safetensors", "optimizer.safetensors", "position.safetensors", "generators-0.json", "manifest.json")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture
def mark(tmp_path):
    """The file that a payload makes; it must not be there in the end."""
    file = tmp_path / "ran"
    yield file
    assert not file.exists()


def calls(file: Path):
    """(called name with its owner, keywords of the call) for each call in a source file, and what it imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        elif isinstance(node, ast.Import):
            yield from ((alias.name, {}) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", {}) for alias in node.names)


UNSAFE = {
    *("torch.save", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill", "joblib.load", "cloudpickle", "marshal"),
    *("shelve", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "pandas.read_pickle", "np.save"),
}


def test_nothing_in_the_package_opens_a_pickle():
    for file in sorted(ROOT.rglob("*.py")):
        name = str(file.relative_to(ROOT))
        if name.startswith(("tests/", ".venv/", "build/")):
            continue
        for called, words in calls(file):
            assert called not in UNSAFE, f"{name}: {called}"
            assert not called.endswith((".save_state", ".load_state")), f"{name}: {called} (accelerate's are pickles)"
            assert words.get("allow_pickle", "False") == "False", f"{name}: {called}"
            assert words.get("trust_remote_code", "False") == "False", f"{name}: {called}"
            assert called not in ("torch.load", "torch.jit.load", "np.load", "numpy.load"), f"{name}: {called}"


def planted(checkpoint: Path, mark: Path, names) -> None:
    """Payloads in a checkpoint whose manifest says that all is as it was written."""
    payloads.plant_pickles(checkpoint, mark, names)
    manifest = json.loads((checkpoint / "manifest.json").read_text())["manifest"]
    manifest["files"] = {file.name: sums_of(file) for file in checkpoint.iterdir() if file.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(json.dumps({"manifest": manifest, "sum": sum_of(manifest)}))


def test_payloads_beside_the_files_of_a_checkpoint_are_not_opened(folder, mark):
    run(folder, max_steps=2, save_every=1)
    for checkpoint in (folder / "run" / "checkpoints").iterdir():
        planted(checkpoint, mark, OLD)
    payloads.plant_pickles(folder / "run", mark, OLD)
    run(folder, resume=True, max_steps=4, save_every=1)


@pytest.mark.parametrize("name", CURRENT)
def test_a_payload_under_the_name_of_a_checkpoints_file_is_named(folder, mark, name):
    run(folder, max_steps=2, save_every=1)
    newest = folder / "run" / "checkpoints" / "step-00000002"
    if name == "manifest.json":
        payloads.plant_pickles(newest, mark, [name])
    else:
        planted(newest, mark, [name])
    if name in ("position.safetensors", "generators-0.json"):
        with pytest.raises(ValueError, match=rf"step-00000002/{name}"):
            run(folder, resume=True, max_steps=4, save_every=1)
    else:
        with pytest.warns(UserWarning, match=r"step-00000002 is damaged \("):
            run(folder, resume=True, max_steps=4, save_every=1)


def test_a_checkpoint_of_pickles_is_refused_with_what_to_do(folder, mark):
    """As the version before wrote them: a manifest without a format, whose sums are right."""
    run(folder, max_steps=1)
    checkpoint = folder / "run" / "checkpoints" / "step-00000001"
    for file in checkpoint.iterdir():
        if file.name != "manifest.json":
            file.unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())["manifest"]
    del manifest["format"]
    (checkpoint / "manifest.json").write_text(json.dumps({"manifest": manifest, "sum": ""}))
    payloads.plant_pickles(checkpoint, mark, OLD)
    manifest["files"] = {file.name: sums_of(file) for file in checkpoint.iterdir() if file.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(json.dumps({"manifest": manifest, "sum": sum_of(manifest)}))
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    with (
        pytest.warns(UserWarning, match="of an earlier version"),
        pytest.raises(ValueError, match=r"step-00000001 is of an earlier version: pickles.* not read; .*another --out"),
    ):
        run(folder, resume=True, max_steps=2)
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("weights.safetensors", lambda t, k: t.pop(k), "lacks loss.model"),
        ("weights.safetensors", lambda t, k: t.update(more=torch.zeros(1)), "has unknown more"),
        ("weights.safetensors", lambda t, k: t.update({k: t[k].double()}), "float64 .*; expected float32"),
        ("weights.safetensors", lambda t, k: t.update({k: t[k][..., None]}), r"\[\d.*\]; expected float32"),
        ("optimizer.safetensors", lambda t, k: t.pop(k), "lacks loss.model"),
        ("optimizer.safetensors", lambda t, k: t.update({k: torch.zeros(3, 3, 3)}), r"\[3, 3, 3\]; expected"),
        ("optimizer.safetensors", lambda t, k: t.update({"x/exp_avg": torch.zeros(1)}), "has unknown x/exp_avg"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, file, change, said):
    run(folder, max_steps=1)
    checkpoint = folder / "run" / "checkpoints" / "step-00000001"
    tensors = load_file(checkpoint / file)
    change(tensors, max(tensors))
    save_file(tensors, checkpoint / file, {"format": "pt"})
    planted(checkpoint, folder / "ran", [])
    with pytest.raises(ValueError, match=f"step-00000001/{file}.* {said}"):
        run(folder, resume=True, max_steps=2)


@pytest.mark.parametrize("key", ["model", "decoder", "vision", "tokenizer"])
def test_a_start_that_holds_code_alone(folder, mark, key):
    """Pickled weights, and Python files that the JSON files name."""
    theirs = folder / "theirs"
    shutil.copytree(folder / "model", theirs)
    (theirs / "model.safetensors").unlink()
    payloads.plant_pickles(theirs, mark, [name for name in OLD if not name.startswith(".")])
    payloads.plant_code(theirs, mark)
    keys = {"model": str(theirs)}
    if key in ("decoder", "vision"):
        keys = {"model": None, "decoder": str(theirs), "vision": str(theirs)}
    elif key == "tokenizer":
        described = json.loads((folder / "model" / "config.json").read_text())
        parts = {name: described[name] for name in ("text_config", "vision_config")}
        keys = {"model": None, "tokenizer": str(theirs), "architecture": {**parts, "text_config": {"vocab_size": 3}}}
    with pytest.raises((ConfigError, ValueError)):
        train(config(folder, **keys), folder / "run", note=lambda text: None)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    keys = ["max_steps=1", "scenes=8", "tower_steps=1", "test_scenes=0"]
    return train(load_config("tiny", keys), tmp_path_factory.mktemp("tiny") / "run", note=lambda text: None) / "tower"


def tiny(tower: Path, out: Path) -> Path:
    keys = ["max_steps=1", "test_scenes=0", f"tower={tower}"]
    return train(load_config("tiny", keys), out, note=lambda text: None)


def test_payloads_in_a_tower_that_is_shared(tower, tmp_path, mark):
    theirs = tmp_path / "theirs"
    shutil.copytree(tower, theirs)
    payloads.plant_pickles(theirs, mark, OLD)
    payloads.plant_code(theirs, mark)
    tiny(theirs, tmp_path / "beside")
    payloads.plant_pickles(theirs, mark, [STAGE])
    with pytest.raises(ValueError, match=rf"{STAGE} is not a safetensors file, or is damaged"):
        tiny(theirs, tmp_path / "under")
    (theirs / STAGE).unlink()
    with pytest.raises(ConfigError, match=r"has no stage.safetensors \(stage.pt is a pickle of an earlier version"):
        tiny(theirs, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("grids"), "lacks grids"),
        (
            lambda t: t.update(grids=t["grids"][:-1].clone()),
            "questions.scene is out of range; expected numbers in 0..6",
        ),
        (lambda t: t.update(grids=t["grids"] * float("nan")), "grids is not finite"),
        (lambda t: t["questions.ids"].fill_(10**6), "questions.ids is out of range; expected numbers in 0..\\d+"),
        (lambda t: t.update({"captions.text": t["captions.text"].int()}), "captions.text is int32 .*; expected bool"),
    ],
)
def test_what_does_not_fit_in_a_shared_tower_is_named(tower, tmp_path, change, said):
    theirs = tmp_path / "theirs"
    shutil.copytree(tower, theirs, ignore=shutil.ignore_patterns("checkpoints"))
    tensors = load_file(theirs / STAGE)
    change(tensors)
    save_file(tensors, theirs / STAGE)
    with pytest.raises(ValueError, match=f"{STAGE}:? .*{said}|{STAGE}: {said}"):
        load_stage(theirs)


def test_payloads_in_the_ablations_folder(tmp_path, mark):
    settings = Settings(scenes=8, steps=3, test_scenes=4)
    work = tmp_path / WORK
    work.mkdir()
    payloads.plant_pickles(tmp_path, mark, OLD)
    payloads.plant_pickles(work, mark, (*OLD, TASK))
    embedded = firebolt_vl.embedded_checkpoint()
    with pytest.raises(ValueError, match=rf"{TASK} is not a safetensors file, or is damaged"):
        load_task(work / TASK, embedded, settings)
    keep_task(work / TASK, embedded, settings, processes=1)  # made anew
    assert len(load_task(work / TASK, embedded, settings).views.features) == 8


def test_payloads_in_the_foveated_tasks_folder(tmp_path, mark):
    settings = foveated_recipe.Settings.quick()
    payloads.plant_pickles(tmp_path, mark, (*OLD, foveated_recipe.STAGE))
    stage = foveated_recipe.make_stage(tmp_path, settings, lambda told: None)
    assert len(stage.clips) == settings.clips
    tensors = load_file(tmp_path / foveated_recipe.STAGE)
    tensors["clips.labels"].fill_(99)
    about = json.dumps({name: value for name, value in vars(settings).items() if name != "steps"})
    save_file(tensors, tmp_path / foveated_recipe.STAGE, {"settings": about})
    with pytest.raises(ValueError, match=r"stage.safetensors: clips.labels is out of range; expected numbers in -1..9"):
        foveated_recipe.make_stage(tmp_path, settings, lambda told: None)
