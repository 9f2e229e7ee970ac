"""Training with the routed connector, whose balance is a part of the loss, and with Muon."""

import json

import pytest
import torch
from conversations import write_conversations
from numerics import assert_close
from safetensors.torch import load_file
from tiny_models import IMAGE_TOKEN, make_config, make_model, make_processor
from torch import nn
from trainings import config, interrupted, losses, run, told, weights, write_start

from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.train.config import TrainConfig
from firebolt_vl.train.config_files import checked
from firebolt_vl.train.conversations import AnswerLoss, ConversationsJob, blank_image
from firebolt_vl.train.data import Collator
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.loop import read_history
from firebolt_vl.train.optimizer import dense_matrices, make_optimizers, parameter_groups

ALL = ["vision", "connector", "decoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a routed connector that reads patches, and rows."""
    folder = tmp_path_factory.mktemp("routed")
    make_model("routed", grids="patches", balance_weight=0.5, dropout=0.1).save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    write_conversations(folder / "data", rows=16, text_only=4)
    return folder


def test_the_loss_has_the_balance_in_training_alone(folder):
    job = ConversationsJob(config(folder))
    found = Collator(job.dataset, job.processor)((0, 1, 2, 3))
    model, processor = make_model("routed", balance_weight=0.5), make_processor()
    loss = AnswerLoss(model, dict(processor.image_processor([[blank_image(processor)]], return_tensors="pt")), False)
    plain, answers = loss.eval()(**found.inputs), found.answer_tokens
    assert loss.balances == []
    trained = loss.train()(**found.inputs)
    (balance,) = loss.balances
    assert_close(trained, plain + 0.5 * balance, relative=1e-6)
    assert_close(trained, model(**found.inputs).loss * answers, relative=1e-5)


def test_a_step_tells_the_balance_and_all_of_the_connector_learns(folder):
    out = run(folder, "told", max_steps=2)
    for line in read_history(out / "history.jsonl"):
        assert 0 < line["balance"] < 4
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Which image of a row a patch is of, where the first one's number is 0; an expert that no patch chose.
    still = {name for name in before if ".connector." in name} - changed
    assert {name for name in still if "positions.image" not in name and ".experts.experts." not in name} == set()


def test_two_rows_at_a_time_give_the_loss_of_four(folder):
    """The balance is one of each micro-batch: its mean differs a little, the answers' loss does not."""
    whole, halves = (
        [(line["loss"] - 0.5 * line["balance"]) for line in read_history(out / "history.jsonl")]
        for out in (
            run(folder, "whole", max_steps=1),
            run(folder, "halves", max_steps=1, micro_batch_size=2),
        )
    )
    assert halves == pytest.approx(whole, rel=0.05)  # dropout is another one


def test_muon_has_the_dense_matrices_and_adamw_the_rest():
    model = make_model("routed")
    groups = parameter_groups(model, 1e-3, 1e-4, 0.1)
    adamw, muon = make_optimizers("muon", groups, dense_matrices(model), 1e-3, (0.9, 0.95))
    assert (type(adamw).__name__, type(muon).__name__) == ("AdamW", "Muon")
    named = {id(p): name for name, p in model.named_parameters()}
    ours, theirs = ({named[id(p)] for group in one.param_groups for p in group["params"]} for one in (muon, adamw))
    assert ours | theirs == set(named.values())
    assert not ours & theirs
    linears = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head.weight"}
    assert ours == linears
    assert {"model.language_model.embed_tokens.weight", "model.connector.ssm.kernel.log_A_real"} <= theirs
    group = muon.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["ns_steps"], group["weight_decay"]) == (0.95, True, 5, 0.1)
    assert group["adjust_lr_fn"] == "match_rms_adamw"
    (only,) = make_optimizers("adamw", groups, dense_matrices(model), 1e-3, (0.9, 0.95))
    assert [g["params"] for g in only.param_groups] == [g["params"] for g in groups]


def test_a_step_of_muon_is_orthogonal_and_of_adamws_size():
    layer = nn.Linear(64, 32, bias=False)
    before = layer.weight.detach().clone()
    (muon,) = make_optimizers(
        "muon", [{"params": [layer.weight], "weight_decay": 0.0}], {id(layer.weight)}, 0.01, (0.9, 0.95)
    )
    layer(torch.randn(100, 64, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    muon.step()
    step = (layer.weight.detach() - before) / 0.01
    # 0.2 sqrt(64) times a matrix whose singular values the five steps bring near 1.
    values = torch.linalg.svdvals(step / (0.2 * 8))
    assert 0.5 < values.min() < values.max() < 1.5
    assert_close(step.square().mean().sqrt(), torch.tensor(0.2), relative=0.25)


def test_a_broken_run_with_muon_ends_as_the_unbroken_one(folder):
    keys = {"optimizer": "muon", "train": ALL, "max_steps": 4, "save_every": 2, "lr": 1e-2}
    whole = run(folder, "unbroken", **keys)
    interrupted(run, folder, "broken", 3, **keys)
    resumed = run(folder, "broken", resume=True, **keys)
    assert told(resumed) == told(whole)
    assert weights(resumed) == weights(whole)
    assert losses(whole) != losses(run(folder, "adamw", **{**keys, "optimizer": "adamw"}))


def test_adapters_take_muon_too(tmp_path):
    folder = write_start(tmp_path)
    out = run(folder, optimizer="muon", lora={"rank": 2}, train=["connector"], max_steps=2)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(out / "model.safetensors").values())


def test_a_new_model_with_means_at_image_tokens_is_trained(tmp_path):
    write_conversations(tmp_path / "data", rows=8, text_only=2)
    tokenizer = make_processor(tokenizer={"model_max_length": 512}).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    token = tokenizer.convert_tokens_to_ids("<image>")
    small = make_config(text={"vocab_size": len(tokenizer)})
    keys = {
        "data": [str(tmp_path / "data" / "rows.jsonl")],
        "architecture": {name: getattr(small, name).to_dict() for name in ("text_config", "vision_config")},
        "tokenizer": str(tmp_path / "tokenizer"),
        "connector": "routed",
        "grids": "patches",
        "cmm": {"insert": "mean_at_token", "image_token_id": token, "expert_width": 8, "state_size": 8},
    }
    out = run(tmp_path, model=None, **keys, train=ALL, max_steps=2)
    model, processor = (kind.from_pretrained(out) for kind in (FireboltForConditionalGeneration, FireboltProcessor))
    assert (model.config.connector, model.config.grids) == ("routed", "patches")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert "<image>" in processor.apply_chat_template(messages, tokenize=False)
    with pytest.raises(ConfigError, match=f"cmm.image_token_id is {IMAGE_TOKEN}; expected the one token of <image>"):
        run(tmp_path, "other", model=None, **{**keys, "cmm": {**keys["cmm"], "image_token_id": IMAGE_TOKEN}})


def test_keys_of_another_connector_are_refused(tmp_path):
    start = {"architecture": {"text_config": {}, "vision_config": {}}, "tokenizer": "x", "data": ["x"], "eval_every": 0}
    with pytest.raises(ConfigError, match=r"cmm.experts is unknown"):
        checked(TrainConfig, {**start, "cmm": {"experts": 2}})
    assert checked(TrainConfig, {**start, "connector": "routed", "cmm": {"experts": 2}}).cmm == {"experts": 2}
    with pytest.raises(ConfigError, match="optimizer is 'sgd'; expected one of adamw, muon"):
        checked(TrainConfig, {**start, "optimizer": "sgd"})
    assert json.dumps(start)
