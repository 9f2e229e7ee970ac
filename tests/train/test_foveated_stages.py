"""The three stages of the foveated model: what learns at which rate, what the loss is about, broken runs that go on."""

import shutil

import pytest
import torch
from conversations import picture, row, write_rows
from foveated import make_foveated
from foveated_trainings import config, run, write_start
from numerics import assert_close
from safetensors.torch import load_file
from tiny_models import make_tokenizer
from torch import nn
from trainings import interrupted, losses, steps, told, weights

from firebolt_vl.model import FoveatedProcessor, FoveatedVLM
from firebolt_vl.model.foveated.configuration_foveated import MODES
from firebolt_vl.train.config import LOOKS, FoveatedConfig
from firebolt_vl.train.config_files import checked, load_config
from firebolt_vl.train.data.chat import IGNORED
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.foveated import preference_step, rate
from firebolt_vl.train.foveated.job import FoveatedJob, PreferenceLoss
from firebolt_vl.train.loop import HISTORY, read_history

STAGES = ("text", "answers", "preferences")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("foveated"))


def job_of(folder, rows=(0, 1, 2, 3), **keys):
    """A job, its loss and a micro-batch of rows."""
    job = FoveatedJob(config(folder, **keys))
    return job, job._loss(), job.collator(job.dataset, job.processor)(rows)


def loaded(folder) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint; in the file DINOv2's weights may have their older names."""
    return FoveatedVLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def part_of(name: str) -> str:
    return "vision" if name.startswith("encoder.dino.") else "decoder" if name.startswith("llm.") else "connector"


@pytest.mark.parametrize("train", [["connector"], ["vision", "connector", "decoder"]], ids=["connector", "all"])
@pytest.mark.parametrize("loss", STAGES)
def test_each_stage_changes_the_parts_that_it_should(folder, loss, train):
    out = run(folder, loss=loss, train=train)
    before, after = loaded(folder / "model"), loaded(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == set(train)
    # DINOv2's mask token stands for patches that are hidden in its own training.
    assert {name for name in before if part_of(name) in train} - changed == (
        {"encoder.dino.embeddings.mask_token"} if "vision" in train else set()
    )


@pytest.mark.parametrize(
    ("mode", "still"),
    [("coarse_only", {"q_init", "llm_to_query.weight", "llm_to_query.bias"}), ("autoregressive", {"q_static"})],
)
def test_what_a_mode_never_reaches_stays_as_it_is(folder, mode, still):
    out = run(folder, mode=mode, train=["connector"])
    before, after = loaded(folder / "model"), loaded(out)
    assert {n for n in before if part_of(n) == "connector" and torch.equal(before[n], after[n])} == still


def test_the_model_that_comes_out_answers(folder):
    out = run(folder, max_steps=1)
    model, processor = FoveatedVLM.from_pretrained(out), FoveatedProcessor.from_pretrained(out)
    inputs = processor(images=[picture()], text=["what?"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape == (1, inputs["input_ids"].shape[1] + 2)


def test_a_new_model_is_put_between_backbones(folder):
    small = make_foveated()
    small.llm.save_pretrained(folder / "decoder")
    small.encoder.dino.save_pretrained(folder / "vision")
    make_tokenizer().save_pretrained(folder / "decoder")
    keys = {"decoder": str(folder / "decoder"), "vision": str(folder / "vision"), "query": {"query_dim": 12}}
    out = run(folder, model=None, loss="text", train=["connector"], max_steps=1, **keys)
    model = FoveatedVLM.from_pretrained(out)
    assert model.config.query_dim == 12
    assert FoveatedProcessor.from_pretrained(out).image_processor.size["height"] == 28
    for found, wanted in ((model.llm, small.llm), (model.encoder.dino, small.encoder.dino)):
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)


@pytest.mark.parametrize("mode", ["coarse_only", "coarse_fine", "autoregressive"])
@pytest.mark.parametrize("loss", ["text", "answers"])
def test_the_loss_is_that_of_the_model_times_the_labels(folder, loss, mode):
    job, found, batch = job_of(folder, loss=loss, mode=mode)
    inputs = dict(batch.inputs)
    labels = inputs.pop("labels")
    model = job.model
    expected = model(**inputs, loss_mask=labels != IGNORED, mode=mode).loss * batch.counted
    assert_close(found(**batch.inputs), expected, relative=1e-5)
    counted = labels != IGNORED
    if loss == "text":
        assert torch.equal(counted[:, 1:], inputs["attention_mask"][:, 1:] == 1)
        assert not counted[:, 0].any()
    else:
        decoded = job.processor.tokenizer.decode(labels[0][counted[0]])
        assert decoded == "it is 0<|im_end|>no more<|im_end|>"


@pytest.mark.parametrize("loss", STAGES)
def test_padding_and_frames_that_are_not_there_change_nothing(folder, loss):
    _, found, batch = job_of(folder, loss=loss)
    expected = found(**batch.inputs)
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    padding, missing = inputs["attention_mask"] == 0, ~inputs["frame_mask"]
    assert padding.any()
    assert missing.any()
    inputs["input_ids"][padding] = 77
    inputs["frames"][missing] = float("nan")
    assert_close(found(**inputs), expected, relative=1e-6)


def test_answers_alone_are_learned_and_the_prompt_is_no_label(folder):
    """Other labels at the prompt are another loss of all text, and the same one of answers."""
    for loss, same in (("answers", True), ("text", False)):
        job, found, batch = job_of(folder, loss=loss)
        seen = []
        hook = job.model.llm.lm_head.register_forward_hook(lambda *told, seen=seen: seen.append(told[2]))
        expected = found(**batch.inputs)
        hook.remove()
        (logits,) = seen
        labels = job_of(folder, loss="answers")[2].inputs["labels"]
        wanted = labels[:, 1:] != IGNORED
        of_answers = nn.functional.cross_entropy(logits[:, :-1][wanted], labels[:, 1:][wanted], reduction="sum")
        assert torch.isclose(expected, of_answers, rtol=1e-5) == same


def test_how_a_batch_is_cut_does_not_matter(folder):
    for loss in STAGES:
        whole, cut = (
            read_history(run(folder, f"{loss}-{size}", loss=loss, micro_batch_size=size) / HISTORY) for size in (4, 1)
        )
        for name in ("loss", "gradient_norm"):
            assert [line[name] for line in cut] == pytest.approx([line[name] for line in whole], rel=2e-3)
        assert cut[0]["gradient_norm"] == pytest.approx(whole[0]["gradient_norm"], rel=1e-4)


def test_preferences_are_the_loss_of_a_step_of_pairs(folder):
    job, found, batch = job_of(folder, loss="preferences")
    assert isinstance(found, PreferenceLoss)
    assert batch.counted == 4
    with torch.no_grad():
        for parameter in job.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    text = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    text["loss_mask"] = batch.inputs["labels"] != IGNORED
    chosen, rejected = ({name: tensor[half] for name, tensor in text.items()} for half in (slice(0, 4), slice(4, 8)))
    loss, *_ = preference_step(
        job.model, job.reference, batch.inputs["frames"], chosen, rejected, batch.inputs["frame_mask"], beta=0.1
    )
    assert abs(loss - 0.6931) > 1e-4
    assert_close(found(**batch.inputs), 4 * loss, relative=1e-5)


def test_pairs_are_the_same_conversation_with_another_last_answer(folder):
    job, _, batch = job_of(folder, rows=[0, 3], loss="preferences")
    ids, labels = batch.inputs["input_ids"], batch.inputs["labels"]
    answers = [job.processor.tokenizer.decode(ids[i][labels[i] != IGNORED]) for i in range(4)]
    assert answers == ["no more<|im_end|>", "no more<|im_end|>", "not 0<|im_end|>", "not 3<|im_end|>"]
    begin = int((labels[0] != IGNORED).int().argmax())
    assert torch.equal(ids[0, :begin], ids[2, :begin])


def test_preferences_are_learned(folder):
    """From log 2, since the model begins as its own reference, which stays what the stage began with."""
    out = run(folder, loss="preferences", max_steps=12, batch_size=16, beta=1.0, validation_share=0.0)
    found = losses(out)
    assert found[0] == pytest.approx(0.6931, rel=1e-3)
    assert found[-1] < 0.5 * found[0]
    lines = read_history(out / HISTORY)
    assert {line["pairs"] for line in lines} == {16}
    assert lines[0]["preferred"] < 0.8
    assert lines[-1]["preferred"] == 1.0


def test_rows_of_text_alone_leave_the_connector_as_it_is(folder):
    rows = [{**row(f"what is {i}?", "that"), "rejected": "this"} for i in range(4)]
    (folder / "text").mkdir()
    write_rows(folder / "text" / "rows.jsonl", rows)
    for loss in STAGES:
        out = run(
            folder, loss, loss=loss, data=[str(folder / "text" / "rows.jsonl")], train=["connector"], weight_decay=0.0
        )
        before, after = loaded(folder / "model"), loaded(out)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_batch_of_bad_rows_alone_is_no_reason_to_stop(folder):
    (folder / "bad").mkdir()
    (folder / "bad" / "text.mp4").write_text("hello")
    rows = [{**row("what?", "that"), "video": "text.mp4", "rejected": "this"}, {**row("a", "b"), "rejected": "c"}]
    write_rows(folder / "bad" / "rows.jsonl", rows)
    for loss in STAGES:
        keys = {"data": [str(folder / "bad" / "rows.jsonl")], "max_bad_share": 0.5, "batch_size": 1, "max_steps": 2}
        found = read_history(run(folder, loss, loss=loss, **keys) / HISTORY)
        assert sorted(line["loss"] > 0 for line in found) == [False, True]


def test_perplexity_is_without_the_loss_on_coarse_tokens(folder):
    """That of the labels held out; the loss of a step has it."""
    found = {}
    for weight in (0.0, 0.5):
        make_foveated(lambda_coarse=weight).save_pretrained(folder / str(weight))
        images = FoveatedProcessor.from_pretrained(folder / "model")
        images.save_pretrained(folder / str(weight))
        keys = {"model": str(folder / str(weight)), "validation_share": 0.25, "max_steps": 1, "lr": 0.0}
        (found[weight],) = read_history(run(folder, f"run-{weight}", **keys) / HISTORY)
    assert found[0.0]["perplexity"] == found[0.5]["perplexity"]
    assert found[0.5]["loss"] > 1.3 * found[0.0]["loss"]


def test_gradient_checkpointing_changes_nothing(folder):
    plain, saved = (run(folder, str(on), gradient_checkpointing=on) for on in (False, True))
    assert losses(saved) == pytest.approx(losses(plain), rel=1e-5)


def test_bf16_leaves_the_weights_in_float32(folder):
    out = run(folder, precision="bf16", max_steps=2)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}


def test_the_rates_of_the_parts_meet(folder):
    """Stage 1: the connector's falls to where those of the backbones rise to."""
    job, _, _ = job_of(folder, loss="text", lr=1e-3, vision_lr=1e-5, decoder_lr=2e-5, min_lr=3e-5, warmup_steps=2)
    job.optimizers = [torch.optim.AdamW(job._groups())]
    for step in (0, 1, 2, 3, 4):
        job._set_rates(step)
        found = {group["part"]: group["lr"] for group in job._all_groups()}
        peaks = {"connector": 1e-3, "vision": 1e-5, "decoder": 2e-5}
        assert found == {part: rate(step, 2, 4, peak, 3e-5) for part, peak in peaks.items()}
    assert set(found.values()) == {3e-5}
    queries = [job.model.q_static, job.model.q_init]
    plain = [p for group in job._all_groups() if not group["weight_decay"] for p in group["params"]]
    assert all(any(p is query for p in plain) for query in queries)


LONGER = {"max_steps": 7, "save_every": 3, "eval_every": 4, "validation_share": 0.25, "warmup_steps": 2}


@pytest.mark.parametrize("loss", STAGES)
def test_a_broken_run_goes_on_as_if_it_never_broke(folder, loss):
    unbroken = run(folder, "unbroken", loss=loss, **LONGER)
    for at in (1, 5):
        interrupted(run, folder, "run", at, loss=loss, **LONGER)
        out = run(folder, "run", resume=True, loss=loss, **LONGER)
        assert told(out) == told(unbroken)
        assert steps(out) == [*range(1, 8)]
        assert weights(out) == weights(unbroken)
        assert weights(out / "best") == weights(unbroken / "best")
        shutil.rmtree(out)


def test_the_shipped_stages_are_the_recipe_of_the_original():
    first, second, third = (load_config(f"foveated-stage{number}") for number in (1, 2, 3))
    assert LOOKS == MODES
    assert [one.loss for one in (first, second, third)] == list(STAGES)
    assert (first.lr, first.vision_lr, first.decoder_lr, first.min_lr) == (1e-3, 1e-5, 1e-5, 3e-5)
    assert (second.lr, second.vision_lr, second.decoder_lr) == (3e-5, None, None)
    assert (third.lr, third.vision_lr, third.decoder_lr, third.beta) == (1e-6, None, None, 0.1)
    for one in (first, second, third):
        assert (one.batch_size, one.mode, one.weight_decay, one.clip) == (32, "coarse_fine", 0.01, 1.0)
        assert one.train == ["vision", "connector", "decoder"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss": "all"}, "loss is 'all'; expected one of text, answers, preferences"),
        ({"mode": "fine"}, "mode is 'fine'; expected one of coarse_only, coarse_fine, autoregressive"),
        (
            {"loss": "preferences", "mode": "coarse_only"},
            "mode is given with loss=preferences; preferences are learned in",
        ),
        (
            {"mode": "autoregressive", "gradient_checkpointing": True},
            "gradient_checkpointing is given with mode=autoregressive; it switches off",
        ),
        ({"frames": 0}, "frames is 0; expected at least 1"),
        ({"beta": -1.0}, "beta is -1.0; expected at least 0"),
        ({"beta": 1.0}, "beta is given without loss=preferences; only preferences have one"),
        (
            {"train": ["connector"], "vision_lr": 1e-5},
            "vision_lr is given without train=vision; the vision tower does not learn",
        ),
        (
            {"train": ["vision"], "decoder_lr": 1e-5},
            "decoder_lr is given without train=decoder; the decoder does not learn",
        ),
        ({"query": {"query_dim": 8}}, "query is given with model; expected for a new model alone"),
        (
            {"model": None, "decoder": "d", "vision": "v", "query": {"dim": 8}},
            "query.dim is unknown; the known keys are query_dim",
        ),
        ({"lora": {"rank": 4}}, "lora is not a known key"),
    ],
)
def test_what_is_wrong_is_named(keys, said):
    with pytest.raises(ConfigError) as caught:
        checked(FoveatedConfig, {"model": "m", "data": ["d.jsonl"], **keys})
    assert said in str(caught.value)


def test_a_model_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"model is .*, which cannot be loaded"):
        FoveatedJob(config(folder, model=str(tmp_path / "nothing")))


def test_the_last_answer_is_the_last_run_of_labels():
    from firebolt_vl.train.data.chat import Tokens

    tokens = Tokens([1, 2, 3, 4, 5], [IGNORED, 2, IGNORED, 4, 5])
    assert tokens.last_answer().labels == [IGNORED, IGNORED, IGNORED, 4, 5]
    assert tokens.last_answer().ids == tokens.ids
