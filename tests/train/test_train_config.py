"""Configurations of training: files, shipped ones, keys on the command line, and what is said where they are wrong."""

import re
from dataclasses import fields

import pytest

from firebolt_vl.train.config import RECIPES, TinyConfig, TrainConfig
from firebolt_vl.train.config_files import load_config, shipped
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.keys import keys_of
from firebolt_vl.train.session import new_accelerator


def test_the_shipped_ones_are_the_recipe_of_the_paper():
    assert shipped() == ["foveated-stage1", "foveated-stage2", "foveated-stage3", "lora", "stage1", "stage2", "tiny"]
    first, second, lora = (load_config(name) for name in ("stage1", "stage2", "lora"))
    assert (first.train, first.lr, first.batch_size) == (["connector"], 5e-4, 128)
    assert (second.train, second.lr, second.batch_size) == (["vision", "connector", "decoder"], 1e-4, 8)
    for one in (first, second):
        assert (one.epochs, one.betas, one.weight_decay, one.clip, one.min_lr, one.precision) == (
            5,
            [0.9, 0.95],
            0.01,
            1.0,
            1e-6,
            "bf16",
        )
    assert lora.lora["rank"] == 16
    assert isinstance(load_config("tiny"), TinyConfig)


def test_keys_on_the_command_line_win(tmp_path):
    found = load_config(
        "stage1", ["max_steps=7", "lr=1e-3", "data=a.jsonl", 'train=["connector", "vision"]', "cmm.top_k=2", "ssm_lr=1"]
    )
    assert (found.max_steps, found.lr, found.data, found.train) == (7, 1e-3, ["a.jsonl"], ["connector", "vision"])
    assert found.cmm == {"top_k": 2}
    assert found.ssm_lr == 1.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'model = "m"\ndata = ["d.jsonl"]\nlr = 1e-4\n[lora]\nrank = 8\n'),
        ("a.yaml", "model: m\ndata: [d.jsonl]\nlr: 1e-4\nlora:\n  rank: 8\n"),
        ("a.yml", "model: m\ndata: d.jsonl\nlr: 0.0001\nlora: {rank: 8}\nmax_steps: null\n"),
    ],
)
def test_toml_and_yaml_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_config(str(tmp_path / name)) == TrainConfig(model="m", data=["d.jsonl"], lr=1e-4, lora={"rank": 8})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lrr=1"], "lrr: there is no such key; did you mean lr?"),
        (["zzz=1"], "zzz: there is no such key; known are model, decoder"),
        (["max_steps=many"], "max_steps: 'many' came, a whole number is wanted"),
        (["max_steps=1.5"], "max_steps: 1.5 came, a whole number is wanted"),
        (["max_steps=0"], "max_steps: 0 came, at least 1 is wanted"),
        (["max_steps=true"], "max_steps: True came, a whole number is wanted"),
        (["lr=-1"], "lr: -1.0 came, at least 0 is wanted"),
        (["lr=fast"], "lr: 'fast' came, a number is wanted"),
        (["train=[1]"], "train: 1 came, a text is wanted"),
        (["train=3"], "train: 3 came, a list is wanted"),
        (["train=eyes"], "train: 'eyes' came"),
        (["train=[]"], "train: no part came"),
        (["cmm=2"], "cmm: 2 came, a table of keys is wanted"),
        (["lr.a=2"], "lr.a=2: lr is no table of keys"),
        (["data=[]"], "data: no file came"),
        (["betas=[0.9]"], r"betas: \[0.9\] came, two numbers from 0 to below 1 are wanted"),
        (["precision=fp8"], "precision: 'fp8' came, one of float32, bf16 is wanted"),
        (["validation_share=2"], "validation_share: 2.0 came, a share in 0..1 is wanted"),
        (["model=m"], "model, decoder: a run starts from one of model, decoder .with vision. and architecture"),
        (["vision=null"], "decoder, vision: a new model is put between both"),
        (["decoder=null", "vision=null"], "nothing came to start from"),
        (["train=decoder", "lora.rank=2"], "lora, train: adapters stand in the place of the decoder's weights"),
        (["recipe=soup"], "recipe: 'soup' came, one of conversations, foveated, tiny is wanted"),
        (["max_steps"], "max_steps: key=value is wanted"),
        (["recipe=tiny"], "decoder: there is no such key"),
    ],
)
def test_what_is_wrong_is_named(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stage1", overrides)


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"stage9: no such configuration ships; choose from foveated-stage1, .* tiny, or",
    ):
        load_config("stage9")
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read \(No such file"):
        load_config(str(tmp_path / "none.toml"))
    for name, text, said in (
        ("a.toml", "lr = = 1", "is no TOML: "),
        ("a.yaml", "lr: [", "is no YAML: "),
        ("b.yaml", "- 1", "keys and values are wanted"),
        ("a.json", "{}", r"a file that ends in \.toml, \.yaml or \.yml is wanted"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_config(str(tmp_path / name))


def test_a_batch_is_cut_evenly_or_refused():
    one = load_config("stage1", ["batch_size=12", "micro_batch_size=3"])
    assert [one.accumulation(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ConfigError, match="12 rows cannot be cut into micro-batches of 3 on 3 processes; a mul"):
        one.accumulation(3)
    assert load_config("stage1").accumulation(8) == 1


BIG = 10**400


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"connector": "cmm"}, "connector, model: it is that of the checkpoint"),
        ({"fusion": "replace"}, "fusion, model: it is that of the checkpoint"),
        ({"cmm": {"top_k": 2}}, "cmm, model: it is that of the checkpoint"),
        ({"tokenizer": "t"}, "tokenizer, model: a checkpoint has its own"),
        ({"epochs": 2, "max_steps": 3}, "epochs, max_steps: both came; one of the two is wanted"),
        ({"validation": ["v"], "validation_share": 0.1}, "validation, validation_share: both came"),
        ({"train": ["decoder"], "ssm_lr": 0.1}, "ssm_lr, train: the state-space model is part of the connector"),
        (
            {"train": ["conector"]},
            "train: 'conector' came, one of vision, connector, decoder is wanted; did you mean connector?",
        ),
        ({"lora": {"rnk": 2}}, "lora: unknown rnk; known are rank, alpha, dropout, targets; did you mean rank?"),
        ({"lora": {"rank": 0}}, "lora.rank: 0 came, at least 1 is wanted"),
        ({"lora": {"rank": "many"}}, "lora.rank: 'many' came, a whole number is wanted"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout: 1.0 came"),
        ({"lora": {"alpha": 0}}, "lora.alpha: 0 came, more than 0 is wanted"),
        ({"lora": {"targets": []}}, "lora.targets: no layer came"),
        ({"lr": float("nan")}, "lr: nan came, a finite number is wanted"),
        ({"lr": float("inf")}, "lr: inf came, a finite number is wanted"),
        ({"clip": -1.0}, "clip: -1.0 came, at least 0 is wanted"),
        ({"clip": float("nan")}, "clip: nan came, a finite number is wanted"),
        ({"weight_decay": float("nan")}, "weight_decay: nan came"),
        ({"betas": [0.9, 1.0]}, "betas: .* came, two numbers from 0 to below 1"),
        ({"betas": [0.9, float("nan")]}, "betas: nan came, a finite number is wanted"),
        ({"validation_share": float("nan")}, "validation_share: nan came"),
        ({"max_steps": BIG}, r"max_steps: 1000.*\.\.\. came, at most 2147483647 is wanted"),
        ({"lr": BIG}, r"lr: 1000.*\.\.\. came, a number is wanted"),
        ({"batch_size": 2**31}, "batch_size: 2147483648 came, at most 2147483647 is wanted"),
        ({"seed": -1}, "seed: -1 came, a whole number in 0..4294967295 is wanted"),
        ({"seed": 2**64}, "seed: 18446744073709551616 came"),
        ({"max_steps": "5"}, "max_steps: '5' came, a whole number is wanted"),
        ({"max_bad_steps": -1}, "max_bad_steps: -1 came, at least 0 is wanted"),
        ({"model": ""}, "model: an empty text came"),
    ],
)
def test_what_changes_nothing_or_cannot_be_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{"model": "m", "data": ["d.jsonl"], **keys})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"connector": "cm"}, "connector: 'cm' came, one of cmm, prepend, cross_attend is wanted; did you mean cmm?"),
        ({"fusion": "pol"}, "fusion: 'pol' came, one of replace, concat, pool is wanted; did you mean pool?"),
        ({"connector": "prepend", "fusion": "pool"}, "fusion: 'pool' goes with connector 'cmm' alone"),
        ({"cmm": {"topk": 2}}, "cmm: unknown topk; known are .*did you mean top_k?"),
    ],
)
def test_keys_of_a_new_model(keys, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{"decoder": "d", "vision": "v", "data": ["d.jsonl"], **keys})


def test_a_tower_that_is_there_has_its_scenes_and_steps():
    for key in ("scenes", "tower_steps"):
        with pytest.raises(ConfigError, match=f"tower, {key}: the folder has its scenes and its tower already"):
            TinyConfig(tower="t", **{key: 8})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": 0}, "seeds: 0 came, at least 1 is wanted"),
        ({"seeds": 2, "test_scenes": 0}, "test_scenes: 0 came; the median of several seeds is found by an exam"),
        ({"seeds": 2, "seed": 2**32 - 1}, "seed, seeds: the last seed would be larger"),
    ],
)
def test_several_seeds_have_a_median(keys, said):
    with pytest.raises(ConfigError, match=said):
        TinyConfig(**keys)


def test_a_length_on_the_command_line_takes_the_place_of_the_files():
    assert (load_config("stage1", ["max_steps=7"]).epochs, load_config("stage1", ["max_steps=7"]).max_steps) == (
        None,
        7,
    )
    found = load_config("foveated-stage1", ["epochs=2", "validation=v.jsonl"])
    assert (found.epochs, found.max_steps, found.validation, found.validation_share) == (2, None, ["v.jsonl"], 0.0)
    with pytest.raises(ConfigError, match="epochs, max_steps: both came"):
        load_config("stage1", ["max_steps=7", "epochs=1"])


@pytest.mark.parametrize("name", ["deep.toml", "deep.yaml"])
def test_a_deep_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_text(("a = " if name.endswith("toml") else "a: ") + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match=f"{name} is nested too deeply"):
        load_config(str(tmp_path / name))
    with pytest.raises(ConfigError, match="it is nested too deeply"):
        load_config("stage1", ["cmm=" + "[" * 5000 + "]" * 5000])


def test_what_is_no_file_and_what_is_nearly_a_name(tmp_path):
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ConfigError, match="is not a file; name a TOML or YAML file"):
        load_config(str(tmp_path / "a.toml"))
    with pytest.raises(ConfigError, match=r"no such configuration ships; .* did you mean stage1?"):
        load_config("stag1")


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("tensorbord", "'tensorbord' came, one of .* did you mean tensorboard?"),
        ("comet_ml", "comet_ml is not installed"),
    ],
)
def test_a_tracker_that_is_not_there_is_known_before_anything_is_loaded(tmp_path, tracker, said):
    with pytest.raises(ConfigError, match=f"trackers: {said}"):
        new_accelerator([tracker], tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", 'recipe = "tiny"\nseed = 7\n'), ("a.yaml", "recipe: tiny\nseed: 7\n")]
)
def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path, encoding, name, text):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_config(str(tmp_path / name)).seed == 7


WHOLE = {
    "conversations": {"model": "m", "data": ["d.jsonl"]},
    "foveated": {"model": "m", "data": ["d.jsonl"]},
    "tiny": {},
}
# A value for each key that another one excludes or needs.
GIVEN = {
    **{"model": "m", "decoder": "d", "vision": "v", "tokenizer": "t", "architecture": {}, "connector": "cmm"},
    **{"fusion": "replace", "cmm": {"top_k": 2}, "lora": {"rank": 2}, "ssm_lr": 0.1, "query": {"query_dim": 8}},
    **{"validation": ["v.jsonl"], "validation_share": 0.5, "epochs": 2, "max_steps": 3, "beta": 0.2, "vision_lr": 0.1},
    **{"decoder_lr": 0.1, "mode": "autoregressive", "gradient_checkpointing": True, "frames": 2},
    **{"tower": "t", "tower_steps": 3, "scenes": 8},
}
PAIRS = [(name, key, other) for name, recipe in RECIPES.items() for key in keys_of(recipe) for other in key.excludes]
NEEDS = [(name, key, other) for name, recipe in RECIPES.items() for key in keys_of(recipe) for other in key.needs]


def value_of(condition: str):
    name, sign, value = condition.partition("=")
    return {name: ([value] if name == "train" else value) if sign else GIVEN[name]}


@pytest.mark.parametrize(("recipe", "key", "other"), PAIRS, ids=lambda one: getattr(one, "name", one))
def test_what_a_key_excludes_is_refused(recipe, key, other):
    with pytest.raises(ConfigError, match=f"{key.name}|{other.partition('=')[0]}"):
        RECIPES[recipe](**{**WHOLE[recipe], key.name: GIVEN[key.name], **value_of(other)})


@pytest.mark.parametrize(("recipe", "key", "other"), NEEDS, ids=lambda one: getattr(one, "name", one))
def test_what_a_key_needs_is_missed(recipe, key, other):
    name = other.partition("=")[0]
    without = {"loss": {"loss": "text"}, "train": {"train": ["decoder" if "decoder" not in other else "vision"]}}
    keys = {**WHOLE[recipe], **without[name]} if name in without else {"data": ["d.jsonl"]}
    with pytest.raises(ConfigError, match=f"^{key.name}, {name}: {re.escape(key.needs[other])}"):
        RECIPES[recipe](**{**keys, key.name: GIVEN[key.name]})


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_every_key_says_what_it_means_once(recipe):
    told = keys_of(recipe)
    assert [key.name for key in told] == [one.name for one in fields(recipe)]
    assert all(key.meaning for key in told)
    assert not any(key.meaning.endswith(".") for key in told)


def test_a_key_is_told_in_words():
    told = {key.name: key for key in keys_of(TrainConfig)}
    assert (told["validation_share"].type, told["validation_share"].values) == ("a number", "0 to 1")
    assert (told["train"].type, told["train"].values) == ("a list of texts", "vision, connector, decoder")
    assert (told["epochs"].type, told["epochs"].default, told["epochs"].values) == (
        "a whole number",
        None,
        "at least 1",
    )
    assert set(told["validation_share"].excludes) == {"validation"}


@pytest.mark.parametrize("keys", [{"eval_every": 5}, {"eval_every": 5, "validation_share": 0.0}])
def test_validation_without_held_out_rows_is_refused(keys):
    with pytest.raises(ConfigError, match="eval_every: 5 came, but no row is held out"):
        TrainConfig(model="m", data=["d.jsonl"], **keys)
    for well in ({"eval_every": 0}, {"eval_every": 5, "validation": ["v"]}, {}):
        TrainConfig(model="m", data=["d.jsonl"], **well)
