"""Training on conversations: what learns, what the loss is about, and broken runs that go on as if they never broke."""

import json
import math
import shutil

import pytest
import torch
from conversations import BROKEN, broken_folder, row, write_rows
from numerics import assert_close
from safetensors.torch import load_file
from tiny_models import make_model, make_processor, write_checkpoint
from torch import nn
from trainings import config, interrupted, losses, run, steps, told, weights, write_start
from transformers import Lfm2ForCausalLM

from firebolt_vl.cmm.precision import WideParameters
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.train import loop
from firebolt_vl.train.conversations import AnswerLoss, ConversationsJob, blank_image
from firebolt_vl.train.data import Collator, TooManyBadRows
from firebolt_vl.train.data.chat import IGNORED
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.optimizer import cosine, parameter_groups

ALL = ["vision", "connector", "decoder"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


def answer_loss(model, bf16=False) -> AnswerLoss:
    processor = make_processor()
    return AnswerLoss(model, dict(processor.image_processor([[blank_image(processor)]], return_tensors="pt")), bf16)


def batch(folder, rows=(0, 1, 2, 3)):
    job = ConversationsJob(config(folder))
    return Collator(job.dataset, job.processor)(rows)


def part_of(name: str) -> str:
    return {"vision_tower": "vision", "connector": "connector"}.get(name.split(".")[1], "decoder")


@pytest.mark.parametrize("train", [["connector"], ALL, ["decoder"]], ids=["stage1", "stage2", "decoder"])
def test_only_the_parts_that_are_named_change_and_each_of_them_does(folder, train):
    before, after = (
        load_file(folder / "model" / "model.safetensors"),
        load_file(run(folder, train=train) / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == set(train)
    if train == ["connector"]:
        assert changed == {name for name in before if part_of(name) == "connector"}


def test_the_model_that_comes_out_is_one_of_transformers(folder):
    out = run(folder, max_steps=2)
    model = FireboltForConditionalGeneration.from_pretrained(out)
    processor = FireboltProcessor.from_pretrained(out)
    inputs = processor(images=[blank_image(processor)], text=["what?"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert (out / "loss.png").stat().st_size > 5000
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "random"])
def test_a_new_model_is_put_between_backbones(folder, trained):
    """As in stage 1: of trained ones only the connector changes."""
    small, tokenizer = make_model(), make_processor(tokenizer={"model_max_length": 512}).tokenizer
    sizes = small.config
    if trained:
        decoder = Lfm2ForCausalLM(sizes.text_config)
        decoder.model.load_state_dict(small.model.language_model.state_dict())
        decoder.save_pretrained(folder / "decoder")
        tokenizer.save_pretrained(folder / "decoder")
        small.model.vision_tower.save_pretrained(folder / "vision")
        keys = {"decoder": str(folder / "decoder"), "vision": str(folder / "vision")}
    else:
        tokenizer.save_pretrained(folder / "tokenizer")
        described = {name: getattr(sizes, name).to_dict() for name in ("text_config", "vision_config")}
        keys = {"architecture": described, "tokenizer": str(folder / "tokenizer")}
    out = run(folder, model=None, connector="cross_attend", cmm={"heads": 2, "head_dim": 8}, **keys)
    model, processor = (kind.from_pretrained(out) for kind in (FireboltForConditionalGeneration, FireboltProcessor))
    assert model.config.connector == "cross_attend"
    assert "<|im_start|>" in processor.chat_template
    assert processor.image_processor.size["height"] == 32
    if trained:
        for part in ("language_model", "vision_tower"):
            for name, tensor in getattr(small.model, part).state_dict().items():
                assert torch.equal(getattr(model.model, part).state_dict()[name], tensor)


def test_the_loss_is_that_of_the_model_times_the_answer_tokens(folder):
    model = make_model()
    found = batch(folder)
    expected = model(**found.inputs).loss * found.answer_tokens
    assert_close(answer_loss(model)(**found.inputs), expected, relative=1e-5)


def test_the_loss_ignores_prompt_and_padding(folder):
    """What the decoder makes of columns that precede no answer token is perturbed, and so are the padding's tokens."""
    model, found = make_model(), batch(folder)
    loss, inputs = answer_loss(model), found.inputs
    expected = loss(**inputs)
    assert 0 in inputs["attention_mask"]
    padding = inputs["attention_mask"] == 0
    ids = torch.where(padding, torch.randint(4, 260, padding.shape), inputs["input_ids"])
    assert torch.equal(loss(**{**inputs, "input_ids": ids}), expected)
    before_answers = torch.nn.functional.pad(inputs["labels"][:, 1:] != IGNORED, (0, 1))

    def perturb(columns):
        def hook(module, arguments, output):
            noise = torch.randn_like(output.last_hidden_state) * columns[..., None]
            output.last_hidden_state = output.last_hidden_state + noise
            return output

        return hook

    for columns, same in ((~before_answers, True), (before_answers, False)):
        handle = model.model.register_forward_hook(perturb(columns))
        assert torch.equal(loss(**inputs), expected) == same
        handle.remove()


@pytest.mark.parametrize("fusion", ["pool", "concat", "replace"])
def test_no_answer_leaks_into_what_precedes_it(folder, fusion):
    """Future answer tokens are perturbed, as training calls the model: pooled, too, is the prompt alone."""
    model, inputs = make_model(fusion=fusion), dict(batch(folder).inputs)
    seen = []
    model.model.register_forward_hook(lambda module, arguments, output: seen.append(output.last_hidden_state))
    loss = answer_loss(model)
    labelled = inputs["labels"] != IGNORED
    first = labelled.int().argmax(1)
    loss(**inputs)
    later = labelled & (torch.arange(labelled.shape[1]) > first[:, None])
    changed = torch.where(later, (inputs["input_ids"] + 7) % 250 + 4, inputs["input_ids"])
    loss(**{**inputs, "input_ids": changed})
    for one in range(len(first)):
        until = int(first[one]) + 1
        assert_close(seen[1][one, :until], seen[0][one, :until], relative=1e-5)
        assert (seen[1][one, until:] - seen[0][one, until:]).abs().max() > 1e-3


def test_how_a_batch_is_cut_does_not_matter(folder):
    whole = run(folder, "whole")
    for size in (1, 2):
        cut = run(folder, f"cut{size}", micro_batch_size=size)
        assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
        before, after = (load_file(out / "model.safetensors") for out in (whole, cut))
        for name in before:
            assert_close(after[name], before[name], relative=1e-4)


def test_processes_that_read_the_data_change_nothing(folder):
    """Nor do they when they meet a damaged image."""
    broken = folder / "broken"
    broken.mkdir()
    broken_folder(broken)
    rows = [row(f"what {n}?", "that", image="half.png" if n == 3 else "0.png") for n in range(8)]
    keys = {"data": [str(write_rows(broken / "rows.jsonl", rows))], "max_bad_share": 0.2}
    alone, helped = (run(folder, f"workers{workers}", workers=workers, **keys) for workers in (0, 2))
    assert told(helped) == told(alone)
    assert weights(helped) == weights(alone)


def test_gradient_checkpointing_changes_nothing(folder):
    plain, checkpointed = (run(folder, f"{on}", train=ALL, gradient_checkpointing=on) for on in (False, True))
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-6)


def test_rows_of_text_alone_leave_the_connector_as_it_is_and_do_not_fail(tmp_path):
    folder = write_start(tmp_path, rows=4, text_only=1)
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(run(folder, weight_decay=0.0) / "model.safetensors")
    for name in before:
        assert torch.equal(before[name], after[name])


def test_bf16_leaves_the_ssm_and_the_weights_in_float32(folder):
    out = run(folder, precision="bf16", train=ALL)
    assert losses(out) == pytest.approx(losses(run(folder, "float32", train=ALL)), rel=0.05)
    assert losses(out) != losses(folder / "float32")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}


def test_adapters_learn_beside_the_connector_and_come_out_merged(folder):
    """The merged model answers as the one with adapters did at the end of training."""
    lora = {"rank": 4, "dropout": 0.1}
    out = run(folder, lora=lora, max_steps=6, save_every=3, validation=[str(folder / "data" / "rows.jsonl")], lr=5e-3)
    before, after = (load_file(place / "model.safetensors") for place in (folder / "model", out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == {"connector", "decoder"}
    assert all(".weight" in name and "norm" not in name for name in changed if part_of(name) == "decoder")
    model = FireboltForConditionalGeneration.from_pretrained(out)
    found = batch(folder, range(16))
    with torch.no_grad():
        loss = answer_loss(model.eval())(**found.inputs) / found.answer_tokens
    last = json.loads((out / loop.HISTORY).read_text().splitlines()[-1])
    assert math.exp(loss) == pytest.approx(last["perplexity"], rel=1e-4)
    assert last["loss"] < losses(out)[0]
    interrupted(run, folder, "broken", 4, lora=lora, max_steps=6, save_every=3, lr=5e-3)
    again = run(folder, "broken", resume=True, lora=lora, max_steps=6, save_every=3, lr=5e-3)
    assert weights(again) == weights(out)


def test_an_architecture_has_the_vocabulary_of_its_tokenizer(folder):
    """Embeddings that no token has would be most of a small model's parameters."""
    sizes = make_model().config
    tokenizer = make_processor().tokenizer
    tokenizer.save_pretrained(folder / "tokenizer")
    described = {name: getattr(sizes, name).to_dict() for name in ("text_config", "vision_config")}
    keys = {"model": None, "architecture": described, "tokenizer": str(folder / "tokenizer")}
    for vocabulary in (65536, len(tokenizer) + 1, len(tokenizer) - 1):
        described["text_config"]["vocab_size"] = vocabulary
        with pytest.raises(ConfigError, match=rf"{vocabulary}"):
            run(folder, **keys)
    del described["text_config"]["vocab_size"]
    with pytest.raises(
        ConfigError, match=f"vocab_size is 65536; expected {len(tokenizer)}, as many as the tokenizer has"
    ):
        run(folder, **keys)
    assert not (folder / "run").exists()


def test_a_rate_for_a_state_space_model_that_is_not_there_is_refused(folder, tmp_path):
    write_checkpoint(tmp_path / "other", connector="prepend")
    with pytest.raises(ConfigError, match="expected none, as the connector has no state-space model"):
        run(folder, model=str(tmp_path / "other"), ssm_lr=1e-4)


def test_a_resumed_run_learns_at_the_rate_that_it_is_told(folder):
    run(folder, max_steps=2, lr=1e-3, min_lr=1e-3)
    out = run(folder, resume=True, max_steps=4, lr=1e-5, min_lr=1e-5)
    assert [line["lr"] for line in loop.read_history(out / loop.HISTORY)] == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5])


def test_unknown_keys_of_lora_are_refused(folder):
    with pytest.raises(ConfigError, match=r"lora\.r is unknown; the known keys are rank, alpha, dropout, targets"):
        run(folder, lora={"r": 4})


# Several epochs, so that the order changes; dropout, so that the random state counts.
LONGER = {"max_steps": 11, "save_every": 3, "eval_every": 5, "validation_share": 0.2, "train": ALL, "warmup_steps": 2}


@pytest.fixture(scope="module")
def unbroken(start):
    write_start(start / "dropout", dropout=0.1)
    return run(start, "unbroken", model=str(start / "dropout" / "model"), **LONGER)


@pytest.mark.parametrize("at", [1, 3, 8, 11])
def test_a_broken_run_goes_on_as_if_it_never_broke(start, folder, unbroken, at):
    keys = {"model": str(start / "dropout" / "model"), **LONGER}
    interrupted(run, folder, "run", at, **keys)
    out = run(folder, "run", resume=True, **keys)
    assert told(out) == told(unbroken)
    assert steps(out) == [*range(1, 12)]
    assert weights(out) == weights(unbroken)
    assert weights(out / "best") == weights(unbroken / "best")
    again = run(folder, "run", resume=True, **keys)  # a run that has ended
    assert (told(again), weights(again)) == (told(unbroken), weights(unbroken))


def damage_missing(file):
    file.unlink()


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def damage_flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", damage_flipped),
        ("optimizer.safetensors", damage_cut),
        ("generators-0.json", damage_missing),
        ("manifest.json", damage_cut),
        ("manifest.json", damage_flipped),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(start, folder, unbroken, name, damage):
    keys = {"model": str(start / "dropout" / "model"), **LONGER}
    shutil.copytree(unbroken, folder / "run")
    assert [path.name for path in sorted((folder / "run" / "checkpoints").iterdir())] == [
        "step-00000009",
        "step-00000011",
    ]
    damage(folder / "run" / "checkpoints" / "step-00000011" / name)
    (folder / "run" / "checkpoints" / ".unfinished-00000012").mkdir()
    with pytest.warns(UserWarning, match="step-00000011 is damaged"):
        out = run(folder, resume=True, **keys)
    assert (told(out), weights(out)) == (told(unbroken), weights(unbroken))
    assert len([*(out / "checkpoints").iterdir()]) == 2


def test_with_every_checkpoint_damaged_a_run_starts_anew(start, folder, unbroken):
    shutil.copytree(unbroken, folder / "run")
    for checkpoint in (folder / "run" / "checkpoints").iterdir():
        (checkpoint / "optimizer.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        out = run(folder, resume=True, model=str(start / "dropout" / "model"), **LONGER)
    assert (told(out), weights(out)) == (told(unbroken), weights(unbroken))


def test_checkpoints_of_a_run_before_do_not_outlive_it(folder):
    run(folder, max_steps=4, save_every=2)
    for file in (folder / "run" / "checkpoints").rglob("optimizer.safetensors"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        interrupted(run, folder, "run", 4, resume=True, max_steps=8, save_every=2)
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_run_is_not_written_over(folder):
    run(folder, max_steps=1)
    with pytest.raises(
        ConfigError, match=r"run, which holds a run; --resume goes on with it, another --out starts anew"
    ):
        run(folder, max_steps=1)


def test_the_best_model_by_perplexity_is_kept(folder):
    # A rate that spoils the model: the first validation is the best.
    keys = {"eval_every": 2, "validation_share": 0.25, "lr": 0.3, "train": ALL, "clip": 0.0, "min_lr": 0.3}
    out = run(folder, max_steps=6, **keys)
    found = [json.loads(line) for line in (out / loop.HISTORY).read_text().splitlines()]
    perplexities = {line["step"]: line["perplexity"] for line in found if "perplexity" in line}
    assert list(perplexities) == [2, 4, 6]
    best = min(perplexities, key=perplexities.get)
    assert best < 6
    assert weights(run(folder, "shorter", max_steps=best, **keys)) == weights(out / "best") != weights(out)


def test_perplexity_is_that_of_the_rows_held_out(folder):
    out = run(folder, max_steps=1, validation_share=0.4, lr=0.0, weight_decay=0.0)
    job = ConversationsJob(config(folder, validation_share=0.4))
    assert (len(job.held_out), len(job.rows)) == (6, 10)
    assert not set(job.held_out) & set(job.rows)
    found = Collator(job.dataset, job.processor)(job.held_out)
    with torch.no_grad():
        loss = answer_loss(job.model.eval())(**found.inputs) / found.answer_tokens
    last = json.loads((out / loop.HISTORY).read_text().splitlines()[-1])
    assert last["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_it_trains_on_the_good_rows_of_a_file_with_thirty_kinds_of_broken_ones(folder, tmp_path):
    (tmp_path / "mixed").mkdir()
    broken_folder(tmp_path / "mixed")
    good = [row(f"what is {number}?", f"that is {number}", image="0.png") for number in range(6)]
    file = write_rows(tmp_path / "mixed" / "rows.jsonl", [*good[:3], *(broken for _, broken in BROKEN), *good[3:]])
    keys = {"data": [str(file)], "max_length": 512}
    with pytest.raises(TooManyBadRows, match=f"of {len(BROKEN) + 6} rows cannot be used"):
        run(folder, **keys)
    out = run(folder, max_bad_share=0.9, batch_size=20, max_steps=2, **keys)
    alone = write_rows(tmp_path / "mixed" / "good.jsonl", good)
    only = run(folder, "only", data=[str(alone)], batch_size=20, max_steps=2)
    assert losses(out)[0] == pytest.approx(losses(only)[0], rel=1e-5)


def test_a_batch_of_bad_rows_alone_is_no_reason_to_stop(folder, tmp_path):
    (tmp_path / "bad").mkdir()
    broken_folder(tmp_path / "bad")
    file = write_rows(tmp_path / "bad" / "rows.jsonl", [row("a", "b", image="half.png"), row("a", "b", image="0.png")])
    out = run(folder, data=[str(file)], batch_size=1, max_steps=4, max_bad_share=0.6)
    assert sorted(losses(out))[:2] == [0, 0]
    assert min(sorted(losses(out))[2:]) > 0


def test_weight_decay_is_for_matrices_and_the_ssm_has_a_rate_of_its_own():
    model = make_model()
    groups = parameter_groups(model, 1e-3, 1e-4, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.0)]
    named = {id(p): name for name, p in model.named_parameters()}
    decayed, plain, ssm = ({named[id(p)] for p in group["params"]} for group in groups)
    assert decayed | plain | ssm == set(named.values())
    assert len(decayed) + len(plain) + len(ssm) == len(named)
    assert ssm == {name for name in named.values() if ".ssm.kernel." in name}
    assert {"model.connector.gate", "model.connector.norm_in.weight", "model.connector.film_in.bias"} <= plain
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | WideParameters):
            assert not {named[id(p)] for p in module.parameters()} & decayed


def test_the_learning_rate_rises_and_falls_as_a_cosine():
    rates = [cosine(step, 110, 10, 1.0, 0.1) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert cosine(110, 110, 10, 1.0, 0.1) == pytest.approx(0.1)


def test_a_share_of_few_rows_that_holds_out_none_is_refused(folder):
    with pytest.raises(ConfigError, match=r"eval_every is 2, but .* 0.001 of \d+ rows, holds out none"):
        ConversationsJob(config(folder, validation_share=0.001, eval_every=2))
    with pytest.raises(ConfigError, match=r"validation_share is 1.0, which leaves none of \d+ rows to train on"):
        ConversationsJob(config(folder, validation_share=1.0))
