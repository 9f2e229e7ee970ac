"""`firebolt convert` writes a checkpoint of the original anew, whole, and it answers as the original does."""

import json

import pytest
import torch
from commands import assert_refused
from originals import VECTORS, letter_tokenizer, pixels, write_original, write_routed_original
from safetensors.torch import load_file

from firebolt_vl.model import FireboltForConditionalGeneration

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def test_every_key_is_used_or_listed(firebolt, original, tmp_path):
    result = firebolt("convert", original, tmp_path / "ours", "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    theirs = load_file(original / "model.safetensors")
    assert report["keys"] == len(theirs)
    assert report["used"] + len(report["dead"]) == len(theirs)
    assert set(report["dead"]) == {key for key in theirs if "projector" in key or "importance" in key} | {
        key for key in theirs if "text_model" in key or "logit_" in key
    }
    assert (report["dtype"], report["ssm"], report["kernel_taps"]) == ("float32", "s4", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "ours"]
    shown = firebolt("convert", original, tmp_path / "again").out
    for key in report["dead"]:
        assert key in shown


@pytest.mark.parametrize("taps", [None, 512])
@pytest.mark.parametrize("layout", [{}, {"shards": 3}])
def test_cached_generation_of_the_copy_is_the_originals_uncached_one(firebolt, tmp_path, layout, taps):
    folder = tmp_path / "original"
    write_original(folder, **layout)
    letter_tokenizer().save_pretrained(folder)
    options = [] if taps is None else ["--kernel-taps", taps]
    assert firebolt("convert", folder, tmp_path / "ours", *options).code == 0
    model = FireboltForConditionalGeneration.from_pretrained(tmp_path / "ours", use_safetensors=True).eval()
    assert model.config.connector_config().kernel_taps == taps
    ids, wanted = VECTORS["in.input_ids"], VECTORS["generate.use_cache_False.sequences"]
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **pixels(),
        do_sample=False,
        max_new_tokens=wanted.shape[1] - ids.shape[1],
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_copy_is_asked_in_the_originals_words(firebolt, original, image, tmp_path, template):
    letter_tokenizer(chat_template=template).save_pretrained(original)
    assert firebolt("convert", original, tmp_path / "ours").code == 0
    replies = []
    for folder in (original, tmp_path / "ours"):
        result = firebolt("ask", image, "where?", "--checkpoint", folder, "--max-new-tokens", 5, "--json")
        assert (result.code, result.err) == (0, "")
        reply = json.loads(result.out)
        replies.append((reply["answer"], reply["prompt_tokens"]))
    assert replies[0] == replies[1]
    around = "user: \nassistant:" if template else ""
    assert replies[0][1] == len("<image>\nwhere?" + around)


def test_half_precision_stays_with_state_space_parameters_in_float32(firebolt, original, tmp_path):
    state = {
        key: tensor.bfloat16() if tensor.is_floating_point() and ".s4." not in key else tensor
        for key, tensor in VECTORS.under("param").items()
    }
    write_original(original, state)
    report = json.loads(firebolt("convert", original, tmp_path / "ours", "--json").out)
    assert report["dtype"] == "bfloat16"
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "ours" / "model.safetensors").items()}
    assert {dtype for name, dtype in dtypes.items() if "ssm.kernel" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "ssm.kernel" not in name} == {torch.bfloat16}


@pytest.mark.parametrize("options", [(), ("--insert", "prepend")])
def test_a_checkpoint_of_v2_is_converted_and_answers_as_before(firebolt, image, tmp_path, options):
    tokenizer = letter_tokenizer(additional_special_tokens=["<image>"])
    folder = tmp_path / "v2"
    state = write_routed_original(folder, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    tokenizer.save_pretrained(folder)
    report = json.loads(firebolt("convert", folder, tmp_path / "ours", *options, "--json").out)
    assert report["keys"] == len(state)
    assert report["used"] + len(report["dead"]) == len(state)
    assert "model.dino_head.0.weight" in report["dead"]
    insert = "prepend" if options else "mean_at_token"
    assert (report["ssm"], report["insert"]) == ("self_attn", insert)
    assert f"insert {insert}" in firebolt("convert", folder, tmp_path / "again", *options).out
    asked = ("ask", image, "where?", "--max-new-tokens", 4, "--json", "--checkpoint")
    ours = firebolt(*asked, tmp_path / "ours")
    assert (ours.code, ours.err) == (0, "")
    if not options:
        theirs = firebolt(*asked, folder)
        assert (theirs.code, theirs.err) == (0, "")
        assert json.loads(theirs.out)["answer"] == json.loads(ours.out)["answer"]
    assert_refused(firebolt("convert", folder, tmp_path / "no", "--insert", "middle"), 2, "--insert is middle")
    found = firebolt(*asked, tmp_path / "ours", "--grounding", tmp_path / "page.png")
    views = json.loads(found.out)["grounding"]["views"]
    assert {view["view"] for view in views} == {"patch"}
    assert len(views) == 16
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_pickle_is_refused_and_named(firebolt, original, tmp_path):
    (original / "model.safetensors").unlink()
    torch.save(VECTORS.under("param"), original / "pytorch_model.bin")
    result = firebolt("convert", original, tmp_path / "ours")
    assert_refused(result, 1, "pickle files (pytorch_model.bin)", "safetensors copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_what_cannot_be_converted_is_said(firebolt, original, checkpoint, tmp_path):
    assert_refused(firebolt("convert", checkpoint, tmp_path / "ours"), 1, "nothing to convert")
    assert_refused(firebolt("convert", original, original), 2, "which exists already; name a new folder")
    assert_refused(firebolt("convert", original, tmp_path / "no" / "ours"), 2, "no does not exist; make it first")
    assert_refused(firebolt("convert", original, tmp_path / "ours", "--kernel-taps", 0), 2, "at least 1")
    described = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**described, "lm_name_or_path": "nobody/nothing"}))
    assert_refused(firebolt("convert", original, tmp_path / "ours"), 1, "nobody/nothing")
    assert firebolt("convert", original, tmp_path / "ours", "--decoder", original / "lm").code == 0
    write_original(original, {**VECTORS.under("param"), "model.extra": torch.zeros(1)})
    assert_refused(firebolt("convert", original, tmp_path / "other"), 1, "unknown keys model.extra")
