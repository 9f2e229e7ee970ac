"""Training by trl on rewards: what is scored is what was sampled, all views of it, and broken runs go on."""

import json

import pytest
import torch
from conversations import picture, row, write_rows
from numerics import assert_close
from post_trainings import config, interrupted, run, told, write_start
from safetensors.torch import load_file
from tiny_models import make_model

from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.train.conversations import read_data
from firebolt_vl.train.data import TooManyBadRows
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.post.models import choose_parts, drop_nothing, load_model
from firebolt_vl.train.post.rows import Source

LORA = {"rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"), dropout=0.1)


def trainer_of(folder, **keys):
    from firebolt_vl.train.post import trainers

    told_keys = {"batch_size": 3, "max_new_tokens": 5, "temperature": 0.8, "rewards": {"words": 1.0}, **keys}
    chosen = config(folder, "grpo", **told_keys)
    model, processor = load_model(chosen.model, "model")
    dataset, rows, held_out, validation = read_data(chosen, processor, lambda problem: None)
    choose_parts(model, chosen.train)
    drop_nothing(model)
    parts = trainers.Parts(model, processor, Source(dataset, rows), Source(validation, held_out), folder / "run")
    return trainers.trainer_of(chosen, parts, 1)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_what_is_scored_is_what_was_sampled(folder, lora):
    """Log-probabilities of the sampled tokens, in generation and in the trainer's loss: no, one and several images.

    Prompts of unlike length are padded on the left. The connector's dropout, which would make both differ, is off.
    """
    trainer = trainer_of(folder, lora=lora, train=["connector", "decoder"])
    if lora is not None:  # adapters begin at nothing
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
    questions = [trainer.train_dataset[number] for number in (0, 0, 1, 1, 2, 2)]
    recorded = {}
    generate, base = FireboltForConditionalGeneration.generate, trainer.parts.model

    def record(model, *args, **kwargs):
        if model is not base:  # the miniature of the self-check
            return generate(model, *args, **kwargs)
        found = generate(model, *args, **kwargs, return_dict_in_generate=True, output_scores=True)
        recorded["scores"] = torch.stack(found.scores, dim=1)
        return found.sequences

    trainer.model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FireboltForConditionalGeneration, "generate", record)
        batch = trainer._generate_and_score_completions(questions)
    assert batch["prompt_mask"].sum(-1).unique().numel() > 1
    inputs = {
        name: batch[name] for name in ("pixel_values", "image_position_ids", "pixel_attention_mask", "num_images")
    }
    scored, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        **inputs,
    )
    mask = batch["completion_mask"].bool()
    sampled = recorded["scores"].log_softmax(-1)[:, : mask.shape[1]].gather(-1, batch["completion_ids"][..., None])
    assert_close(scored[mask].detach(), sampled[..., 0][mask], relative=1e-4)
    # Each image changes them: all views of it are there.
    without = {**inputs, "pixel_values": inputs["pixel_values"] * 0}
    blind, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        **without,
    )
    moved = ((blind - scored) * mask).abs().sum(-1) > 1e-4
    assert moved.tolist() == [False, False, True, True, True, True]


def test_the_processor_that_comes_out_is_the_one_that_went_in(folder):
    out = run(folder, "grpo")
    before, after = (FireboltProcessor.from_pretrained(place) for place in (folder / "model", out))
    assert after.image_processor.to_dict() == before.image_processor.to_dict()
    assert [line["step"] for line in told(out)] == [1, 2, 3]
    assert {"reward", "rewards/exact/mean", "rewards/words/mean"} <= set(told(out)[0])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_killed_run_goes_on_as_if_it_never_was(folder, lora):
    """With a distance to the start model, whose answers are scored too."""
    keys = {"lora": lora, "save_every": 2, "max_steps": 4, "rewards": {"words": 1.0}, "beta": 0.1}
    whole = run(folder, "grpo", "whole", **keys)
    interrupted(folder, "grpo", "broken", at=3, **keys)
    broken = run(folder, "grpo", "broken", resume=True, **keys)
    assert told(broken) == told(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_reward_rises(folder):
    """Of a reward that half of all tokens give: what a byte is."""
    keys = {"rewards": {"format": 1.0}, "format": r"[\x00-\x7f]*", "max_new_tokens": 1, "lr": 3e-2}
    out = run(folder, "grpo", **keys, batch_size=4, generations=8, max_steps=8, warmup_steps=0)
    rewards = [line["reward"] for line in told(out)]
    assert sum(rewards[-2:]) > sum(rewards[:2])
    before, after = (load_file(place / "model.safetensors") for place in (folder / "model", out))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_validation_keeps_the_best_by_reward(folder):
    out = run(folder, "grpo", validation_share=0.5, eval_every=1, max_steps=2)
    assert [line["eval_reward"] for line in told(out)] == [0.0, 0.0]
    assert (out / "best" / "model.safetensors").is_file()


def test_rows_have_rewards_of_their_own(folder):
    """Those of a row that has another one are left out of a reward's mean; one that names none of the run's is bad."""
    (folder / "own").mkdir()
    picture().save(folder / "own" / "0.png")
    rows = [row("a?", "b", image="0.png", reward=name) for name in ("exact", "words", "zzz")] * 2
    write_rows(folder / "own" / "rows.jsonl", rows)
    keys = {"data": [str(folder / "own" / "rows.jsonl")], "max_bad_share": 0.5, "max_steps": 1}
    out = run(folder, "grpo", **keys, batch_size=4, rewards={"exact": 1.0, "words": 1.0})
    assert told(out)[0]["rewards/exact/mean"] == 0
    assert json.loads((out / "train.json").read_text())["recipe"] == "grpo"


def test_grounding_is_a_reward(folder):
    (folder / "boxed").mkdir()
    picture().save(folder / "boxed" / "0.png")
    write_rows(folder / "boxed" / "rows.jsonl", [row("a?", "b", image="0.png", box=[0, 0, 12, 24])] * 4)
    keys = {"data": [str(folder / "boxed" / "rows.jsonl")], "max_steps": 2}
    out = run(folder, "grpo", **keys, rewards={"grounding": 1.0, "exact": 0.0})
    assert all(0 <= line["rewards/grounding/mean"] <= 1 for line in told(out))
    assert any(line["rewards/grounding/mean"] > 0 for line in told(out))
    write_rows(folder / "boxed" / "rows.jsonl", [row("a?", "b", image="0.png", box=[0, 0, 25, 24])] * 4)
    with pytest.raises(TooManyBadRows, match=r"none of the 4 rows can be read; .*:[1-4]: box beyond the image"):
        run(folder, "grpo", "other", **keys, rewards={"grounding": 1.0})


@pytest.mark.parametrize("fusion", ["concat", "pool"])
def test_a_fusion_that_has_to_know_the_question_is_refused(tmp_path, fusion):
    write_start(tmp_path)
    make_model(fusion=fusion).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"of fusion '{fusion}'; expected 'replace' for a training on rewards"):
        run(tmp_path, "grpo")


def test_more_questions_than_there_are_is_an_error(folder):
    with pytest.raises(ConfigError, match="batch_size is 64; expected at most 12, the questions to train on"):
        run(folder, "grpo", batch_size=64)
