"""Texts packed into one row of the model: each is what it is in a row of its own, whatever runs the decoder."""

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close
from torch.nn.utils import parameters_to_vector
from transformers import DataCollatorWithFlattening
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention

from firebolt_vl.cmm.classes import change_classes
from firebolt_vl.model import FireboltForSequenceClassification
from firebolt_vl.model.compat import CACHE, SequencewiseAttention, StepwiseShortConv, keeps_apart, packed_rows, versions

KINDS = {
    "s4": {},
    "liquid": {"ssm": "liquid"},
    "s4d": {"ssm": "s4d"},
    "mamba": {"ssm": "mamba", "state_size": 3},
    "patches": {"grids": "both"},
    "cross_attend": {"connector": "cross_attend"},
    "bias": {"text": {"conv_bias": True}},
}


def padded(lengths, images, seed=0):
    """Rows [N,T], padded on the right, with labels from the middle on, and their images."""
    rows = tiny_models.make_text(lengths, seed, side="right")
    middle = torch.tensor(lengths)[:, None] // 2
    learned = rows["attention_mask"].bool() & (torch.arange(max(lengths)) >= middle)
    rows["labels"] = torch.where(learned, rows["input_ids"], -100)
    pixels = tiny_models.make_pixels(len(lengths), seed=seed)
    pixels["image_mask"] = torch.tensor(images)
    pixels = {name: x.double() if x.is_floating_point() else x for name, x in pixels.items()}
    return rows, pixels


def packed(rows):
    kept = rows["attention_mask"].bool()
    lengths = kept.sum(1).tolist()
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": rows["input_ids"][kept][None],
        "labels": rows["labels"][kept][None],
        "position_ids": positions[None],
    }


def borders(rows):
    return torch.nn.functional.pad(rows["attention_mask"].sum(1).cumsum(0), (1, 0)).to(torch.int32)


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    learned = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return outputs.logits, outputs.loss, parameters_to_vector(learned)


batches = st.lists(st.tuples(st.integers(2, 12), st.booleans()), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(batch=batches)
def test_loss_logits_and_gradients_are_those_of_rows(kind, batch):
    model = tiny_models.make_model(**KINDS[kind]).double()
    lengths, images = map(list, zip(*batch))
    rows, pixels = padded(lengths, images)
    kept = rows["attention_mask"].bool()
    logits, loss, gradients = loss_and_gradients(model, **rows, **pixels)
    found_logits, found_loss, found = loss_and_gradients(model, **packed(rows), cu_seq_lens_q=borders(rows), **pixels)
    # Norms of the decoder compute in float32 whatever the dtype.
    assert_close(found_logits[0], logits[kept], relative=1e-5)
    assert_close(found_loss, loss, relative=1e-6)
    assert_close(found, gradients, relative=1e-5)


@torch.no_grad()
def test_positions_alone_tell_as_much_as_borders_do():
    model = tiny_models.make_model().double()
    rows, pixels = padded([5, 1, 7], [True, False, True])
    text = packed(rows)
    wanted = model(**text, cu_seq_lens_q=borders(rows), **pixels)
    assert torch.equal(model(**text, **pixels).logits, wanted.logits)
    by_borders = {name: x for name, x in text.items() if name != "position_ids"}
    found = model(**by_borders, cu_seq_lens_q=borders(rows), attention_mask=torch.ones(1, 13), **pixels)
    assert torch.equal(found.logits, wanted.logits)
    assert found.get(CACHE) is None


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}])
@torch.no_grad()
def test_what_the_collator_of_transformers_makes_is_taken(options):
    model = tiny_models.make_model()
    rows = tiny_models.make_text([5, 3, 8], side="right")
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(rows["input_ids"], rows["attention_mask"])]
    batch = DataCollatorWithFlattening(**options)([{"input_ids": text, "labels": text} for text in texts])
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    assert_close(model(**batch).loss, model(**rows, labels=labels).loss, relative=1e-6)


@torch.no_grad()
def test_a_text_that_changes_leaves_the_others_as_they_were():
    model = tiny_models.make_model()
    rows, pixels = padded([6, 4, 9], [True, True, True])
    pixels = {name: x.float() if x.is_floating_point() else x for name, x in pixels.items()}
    text = packed(rows)
    before = model(**text, **pixels).logits
    text["input_ids"] = text["input_ids"].clone()
    text["input_ids"][:, 6:10] = 77
    pixels["pixel_values"][1] += 1
    after = model(**text, **pixels).logits
    column = torch.arange(19)
    others = (column < 6) | (column >= 10)
    assert torch.equal(after[:, others], before[:, others])
    assert (after[:, ~others] - before[:, ~others]).abs().min() > 0


@torch.no_grad()
def test_no_label_is_predicted_from_the_text_before():
    model = tiny_models.make_model()
    rows, _ = padded([5, 6], [False, False])
    text = packed(rows)
    wanted = model(**text).loss
    text["labels"] = text["labels"].clone()
    text["labels"][0, 5] = 99
    assert torch.equal(model(**text).loss, wanted)


def stock(monkeypatch):
    monkeypatch.setattr(versions.transformers, "__version__", "5.99.1")


def other_attention(monkeypatch):
    monkeypatch.setattr(packed_rows, "MASKED", ())


WITHOUT = {"an untested version": stock, "attention that knows no borders": other_attention}


@pytest.mark.parametrize("lack", WITHOUT)
@torch.no_grad()
def test_a_decoder_that_would_not_keep_texts_apart_gets_them_as_rows(monkeypatch, lack):
    rows, pixels = padded([5, 1, 7], [True, False, True])
    wanted = tiny_models.make_model().double()(**packed(rows), **pixels, output_hidden_states=True)
    WITHOUT[lack](monkeypatch)
    model = tiny_models.make_model().double()
    assert not keeps_apart(model.model.language_model)
    found = model(**packed(rows), **pixels, output_hidden_states=True)
    assert_close(found.logits, wanted.logits, relative=1e-6)
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert_close(ours, theirs, relative=1e-6)


def test_a_hook_on_a_convolution_makes_texts_rows_again():
    model = tiny_models.make_model().double()
    decoder = model.model.language_model
    assert keeps_apart(decoder)
    first = next(module for module in decoder.modules() if isinstance(module, StepwiseShortConv))
    first.conv.register_forward_hook(lambda *_: None)
    assert not keeps_apart(decoder)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "sdpa of transformers"])
@torch.no_grad()
def test_every_attention_of_the_decoder_keeps_texts_apart(attention):
    model = tiny_models.make_model().double()
    model.set_attn_implementation(attention.split()[0])
    if attention.endswith("transformers"):
        change_classes(model, SequencewiseAttention, Lfm2Attention)
    rows, pixels = padded([5, 3], [True, True])
    assert keeps_apart(model.model.language_model)
    kept = rows["attention_mask"].bool()
    assert_close(model(**packed(rows), **pixels).logits[0], model(**rows, **pixels).logits[kept], relative=1e-5)


@pytest.mark.parametrize("told", ["position_ids", "cu_seq_lens_q"])
@torch.no_grad()
def test_a_reward_model_scores_each_text(told):
    torch.manual_seed(0)
    model = FireboltForSequenceClassification(tiny_models.make_config()).double().eval()
    rows, pixels = padded([5, 1, 7], [True, False, True])
    text = {name: x for name, x in packed(rows).items() if name != "labels"}
    if told == "cu_seq_lens_q":
        text = {"input_ids": text["input_ids"], told: borders(rows)}
    del rows["labels"]
    assert_close(model(**text, **pixels).logits, model(**rows, **pixels).logits, relative=1e-5)


class TestWrong:
    text = staticmethod(lambda: {"input_ids": torch.arange(4, 10)[None]})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"cu_seq_lens_q": [0, 4]}, r"cu_seq_lens_q is \[0, 4\]; expected borders that rise from 0 to T = 6"),
            ({"cu_seq_lens_q": [0, 5, 3, 6]}, "expected borders that rise"),
            ({"cu_seq_lens_q": [0, 4, 6], "use_cache": True}, "expected no cache"),
            ({"cu_seq_lens_q": [0, 4, 6], "attention_mask": [[1, 1, 1, 0, 1, 1]]}, "attention_mask drops a position"),
            ({"cu_seq_lens_q": [0, 4, 6], "position_ids": [[0, 1, 2, 3, 4, 5]]}, "position_ids begin again elsewhere"),
            ({"cu_seq_lens_q": [0, 4, 6], "position_ids": [[0, 1, 2, 0, 1, 2]]}, "position_ids begin again elsewhere"),
            ({"position_ids": [[0, 1, 2, 0, 1, 2]] * 2, "input_ids": [[4, 5, 6, 7, 8, 9]] * 2}, "with 2 rows"),
        ],
    )
    def test_is_named(self, given, message):
        given = {name: torch.tensor(x) if isinstance(x, list) else x for name, x in given.items()}
        with pytest.raises(ValueError, match=message):
            tiny_models.make_model()(**{**self.text(), **given})

    def test_images_of_other_rows_are_named(self):
        model = tiny_models.make_model()
        with pytest.raises(ValueError, match="images of 3 rows; expected 2, one for each text packed into the row"):
            model(**self.text(), cu_seq_lens_q=torch.tensor([0, 4, 6]), **tiny_models.make_pixels(3))
        with pytest.raises(ValueError, match=r"grids has shape \[3, 5, 24\]; expected \[2, G, D_v\]"):
            model(**self.text(), cu_seq_lens_q=torch.tensor([0, 4, 6]), grids=torch.randn(3, 5, 24))

    @pytest.mark.parametrize(
        "kind", [{"fusion": "concat"}, {"fusion": "pool"}, {"connector": "prepend"}, {"connector": "routed"}]
    )
    def test_models_that_insert_positions_take_rows_alone(self, kind):
        model = tiny_models.make_model(**kind)
        with pytest.raises(ValueError, match="packs several texts into one row; expected one text a row"):
            model(**self.text(), cu_seq_lens_q=torch.tensor([0, 4, 6]))
