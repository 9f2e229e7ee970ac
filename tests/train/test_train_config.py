"""Configurations of training: files, shipped ones, keys on the command line, and what is said where they are wrong."""

import pytest

from firebolt_vl.train.config import ConfigError, TinyConfig, TrainConfig, load_config, shipped


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
        (["betas=[0.9]"], r"betas: \[0.9\] came, two numbers are wanted"),
        (["precision=fp8"], "precision: 'fp8' came, one of float32, bf16 is wanted"),
        (["validation_share=2"], "validation_share: 2.0 came, a share in 0..1 is wanted"),
        (["model=m"], "model and decoder came to start from; one of model, decoder"),
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", 'recipe = "tiny"\nseed = 7\n'), ("a.yaml", "recipe: tiny\nseed: 7\n")]
)
def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path, encoding, name, text):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_config(str(tmp_path / name)).seed == 7
