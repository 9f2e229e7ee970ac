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
    staged = ["foveated-stage1", "foveated-stage2", "foveated-stage3", "stage1", "stage2"]
    assert shipped() == sorted([*staged, "dpo", "grpo", "lora", "screens", "sft", "tiny"])
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


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_trainings_by_trl_take_a_file_of_their_own(tmp_path, name):
    assert isinstance(load_config(name), RECIPES[name])
    file = tmp_path / "own.toml"
    file.write_text('model = "m"\ndata = ["d.jsonl"]\nlr = 1e-3\n')
    found = load_config(name, [str(file), "lr=2e-3"])
    assert (type(found), found.lr, found.lora, found.max_bad_share) == (RECIPES[name], 2e-3, None, 0.01)
    file.write_text('recipe = "tiny"\n')
    with pytest.raises(ConfigError, match=f"own.toml is of recipe 'tiny'; expected '{name}', or no recipe"):
        load_config(name, [str(file)])
    with pytest.raises(ConfigError, match="stage1 has no =; expected key=value"):
        load_config("tiny", ["stage1"])


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
        (["lrr=1"], "lrr is not a known key; did you mean lr?"),
        (["zzz=1"], "zzz is not a known key; the known keys are train, data"),
        (["max_steps=many"], "max_steps is 'many'; expected a whole number"),
        (["max_steps=1.5"], "max_steps is 1.5; expected a whole number"),
        (["max_steps=0"], "max_steps is 0; expected at least 1"),
        (["max_steps=true"], "max_steps is True; expected a whole number"),
        (["lr=-1"], "lr is -1.0; expected at least 0"),
        (["lr=fast"], "lr is 'fast'; expected a number"),
        (["train=[1]"], "train is 1; expected a text"),
        (["train=3"], "train is 3; expected a list"),
        (["train=eyes"], "train is 'eyes'; expected one of vision"),
        (["train=[]"], "train is empty; expected some of vision"),
        (["cmm=2"], "cmm is 2; expected a table of keys"),
        (["lr.a=2"], r"lr\.a=2: lr is 0\.0005; expected a table of keys"),
        (["data=[]"], "data is empty; expected data files"),
        (["betas=[0.9]"], r"betas is \[0.9\]; expected two numbers from 0 to below 1"),
        (["precision=fp8"], "precision is 'fp8'; expected one of float32, bf16"),
        (["validation_share=2"], "validation_share is 2.0; expected a share in 0..1"),
        (["model=m"], r"model is given with decoder; expected one of model, decoder \(with vision\) and architecture"),
        (["vision=null"], "decoder is given without vision; expected both backbones"),
        (["decoder=null", "vision=null"], "model is not given; expected one of model, decoder"),
        (
            ["train=decoder", "lora.rank=2"],
            "lora is given with train=decoder; adapters stand in the place of the decoder's weights",
        ),
        (["recipe=soup"], "recipe is 'soup'; expected one of conversations, foveated, tiny"),
        (["max_steps"], "max_steps has no =; expected key=value"),
        (["recipe=tiny"], "decoder is not a known key; the known keys are max_steps"),
    ],
)
def test_what_is_wrong_is_named(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stage1", overrides)


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"stage9 is no configuration that ships; expected one of dpo, foveated-stage1, .* tiny, or a file",
    ):
        load_config("stage9")
    with pytest.raises(ConfigError, match=r"none\.toml does not exist; check the path"):
        load_config(str(tmp_path / "none.toml"))
    for name, text, said in (
        ("a.toml", "lr = = 1", r"a\.toml is not valid TOML \("),
        ("a.yaml", "lr: [", r"a\.yaml is not valid YAML \("),
        ("b.yaml", "- 1", r"b\.yaml has no keys; expected keys and values"),
        ("a.json", "{}", r"a\.json ends in \.json; expected \.toml, \.yaml or \.yml"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_config(str(tmp_path / name))


def test_a_batch_is_cut_evenly_or_refused():
    one = load_config("stage1", ["batch_size=12", "micro_batch_size=3"])
    assert [one.accumulation(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(
        ConfigError, match="batch_size is 12; expected a multiple of 9, for micro-batches of 3 rows on 3 processes"
    ):
        one.accumulation(3)
    assert load_config("stage1").accumulation(8) == 1


BIG = 10**400


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"connector": "cmm"}, "connector is given with model; expected for a new model alone"),
        ({"fusion": "replace"}, "fusion is given with model; expected for a new model alone"),
        ({"cmm": {"top_k": 2}}, "cmm is given with model; expected for a new model alone"),
        ({"tokenizer": "t"}, "tokenizer is given with model; a checkpoint has its own"),
        ({"epochs": 2, "max_steps": 3}, "epochs is given with max_steps; expected one of the two"),
        (
            {"validation": ["v"], "validation_share": 0.1},
            "validation is given with validation_share; expected one of the two",
        ),
        (
            {"train": ["decoder"], "ssm_lr": 0.1},
            "ssm_lr is given without train=connector; the state-space model is part of the connector",
        ),
        (
            {"train": ["conector"]},
            "train is 'conector'; expected one of vision, connector, decoder; did you mean connector?",
        ),
        (
            {"lora": {"rnk": 2}},
            r"lora\.rnk is unknown; the known keys are rank, alpha, dropout, targets; did you mean rank?",
        ),
        ({"lora": {"rank": 0}}, "lora.rank is 0; expected at least 1"),
        ({"lora": {"rank": "many"}}, "lora.rank is 'many'; expected a whole number"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout is 1.0; expected a share from 0 to below 1"),
        ({"lora": {"alpha": 0}}, "lora.alpha is 0; expected more than 0"),
        ({"lora": {"targets": []}}, "lora.targets is empty; expected names of layers"),
        ({"lr": float("nan")}, "lr is nan; expected a finite number"),
        ({"lr": float("inf")}, "lr is inf; expected a finite number"),
        ({"clip": -1.0}, "clip is -1.0; expected at least 0"),
        ({"clip": float("nan")}, "clip is nan; expected a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; expected a finite number"),
        ({"betas": [0.9, 1.0]}, r"betas is \[.*\]; expected two numbers from 0 to below 1"),
        ({"betas": [0.9, float("nan")]}, "betas is nan; expected a finite number"),
        ({"validation_share": float("nan")}, "validation_share is nan; expected a finite number"),
        ({"max_steps": BIG}, r"max_steps is 1000.*\.\.\.; expected at most 2147483647"),
        ({"lr": BIG}, r"lr is 1000.*\.\.\.; expected a number"),
        ({"batch_size": 2**31}, "batch_size is 2147483648; expected at most 2147483647"),
        ({"seed": -1}, "seed is -1; expected a whole number in 0..4294967295"),
        ({"seed": 2**64}, "seed is 18446744073709551616; expected a whole number in"),
        ({"max_steps": "5"}, "max_steps is '5'; expected a whole number"),
        ({"max_bad_steps": -1}, "max_bad_steps is -1; expected at least 0"),
        ({"model": ""}, "model is empty; give it a value"),
    ],
)
def test_what_changes_nothing_or_cannot_be_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{"model": "m", "data": ["d.jsonl"], **keys})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"connector": "cm"},
            "connector is 'cm'; expected one of cmm, prepend, cross_attend, routed; did you mean cmm?",
        ),
        ({"fusion": "pol"}, "fusion is 'pol'; expected one of replace, concat, pool; did you mean pool?"),
        (
            {"connector": "prepend", "fusion": "pool"},
            "fusion is 'pool'; expected with connector 'cmm' alone, not 'prepend'",
        ),
        ({"cmm": {"topk": 2}}, r"cmm\.topk is unknown; the known keys are .*did you mean top_k\?"),
    ],
)
def test_keys_of_a_new_model(keys, said):
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{"decoder": "d", "vision": "v", "data": ["d.jsonl"], **keys})


def test_a_tower_that_is_there_has_its_scenes_and_steps():
    for key in ("scenes", "tower_steps"):
        with pytest.raises(
            ConfigError, match=f"tower is given with {key}; the folder has its scenes and its tower already"
        ):
            TinyConfig(tower="t", **{key: 8})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": 0}, "seeds is 0; expected at least 1"),
        ({"seeds": 2, "test_scenes": 0}, "test_scenes is 0; expected at least 4, since an exam finds the median"),
        ({"seeds": 2, "seed": 2**32 - 1}, "seed is 4294967295; expected at most 4294967295 for the last of 2 seeds"),
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
    with pytest.raises(ConfigError, match="epochs is given with max_steps"):
        load_config("stage1", ["max_steps=7", "epochs=1"])


@pytest.mark.parametrize("name", ["deep.toml", "deep.yaml"])
def test_a_deep_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_text(("a = " if name.endswith("toml") else "a: ") + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match=f"{name} is nested too deeply"):
        load_config(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"\.\.\. is nested too deeply; expected a plain value"):
        load_config("stage1", ["cmm=" + "[" * 5000 + "]" * 5000])


def test_what_is_no_file_and_what_is_nearly_a_name(tmp_path):
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ConfigError, match="is not a file; expected a TOML or YAML file"):
        load_config(str(tmp_path / "a.toml"))
    with pytest.raises(ConfigError, match=r"is no configuration that ships; .* did you mean stage1\?"):
        load_config("stag1")


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("tensorbord", r"'tensorbord'; expected one of .* did you mean tensorboard\?"),
        ("comet_ml", "comet_ml, which is not installed"),
    ],
)
def test_a_tracker_that_is_not_there_is_known_before_anything_is_loaded(tmp_path, tracker, said):
    with pytest.raises(ConfigError, match=f"trackers is {said}"):
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
    "screens": {},
    **{name: {"model": "m", "data": ["d.jsonl"]} for name in ("sft", "dpo", "grpo")},
}
# A value for each key that another one excludes or needs.
GIVEN = {
    **{"model": "m", "decoder": "d", "vision": "v", "tokenizer": "t", "architecture": {}, "connector": "cmm"},
    **{
        "fusion": "replace",
        "grids": "patches",
        "cmm": {"top_k": 2},
        "lora": {"rank": 2},
        "ssm_lr": 0.1,
        "packing": True,
        "query": {"query_dim": 8},
    },
    **{"validation": ["v.jsonl"], "validation_share": 0.5, "epochs": 2, "max_steps": 3, "beta": 0.2, "vision_lr": 0.1},
    **{"decoder_lr": 0.1, "mode": "autoregressive", "gradient_checkpointing": True, "frames": 2},
    **{"tower": "t", "tower_steps": 3, "scenes": 8, "minutes": 5.0},
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
    with pytest.raises(ConfigError, match=f"^{key.name} is given without {other}; {re.escape(key.needs[other])}"):
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
    with pytest.raises(ConfigError, match="eval_every is 5, but no row is held out"):
        TrainConfig(model="m", data=["d.jsonl"], **keys)
    for well in ({"eval_every": 0}, {"eval_every": 5, "validation": ["v"]}, {}):
        TrainConfig(model="m", data=["d.jsonl"], **well)
