"""The model that scores texts: by text and images, the same in every batch; loaded from a checkpoint that answers."""

import pytest
import torch
from numerics import assert_close
from tiny_models import make_config, make_model, make_pixels, make_text
from transformers import AutoModelForSequenceClassification

from firebolt_vl.model import FireboltForSequenceClassification


def make_scoring(fusion: str = "replace", num_labels: int = 1):
    config = make_config(fusion=fusion)
    config.num_labels = num_labels
    torch.manual_seed(0)
    return FireboltForSequenceClassification(config).eval().double()


@pytest.mark.parametrize("fusion", ["replace", "concat", "pool"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_has_its_score_whatever_the_batch(fusion, side):
    model, text, pixels = make_scoring(fusion), make_text([7, 5], side=side), make_pixels(2)
    with torch.no_grad():
        scores = model(**text, **pixels).logits
        assert scores.shape == (2, 1)
        assert not torch.equal(scores, model(**text).logits)
        for row in range(2):
            kept = text["attention_mask"][row].bool()
            alone = {name: value[row : row + 1] for name, value in pixels.items()}
            found = model(input_ids=text["input_ids"][row : row + 1, kept], **alone).logits
            assert_close(found, scores[row : row + 1], relative=1e-6)


def test_losses_are_those_of_transformers():
    text = make_text([7, 5])
    with torch.no_grad():
        scores = make_scoring()(**text, labels=torch.tensor([1.0, 0.0]).double())
        assert_close(scores.loss, ((scores.logits[:, 0] - torch.tensor([1.0, 0.0])) ** 2).mean())
        classes = make_scoring(num_labels=3)(**text, labels=torch.tensor([2, 0]))
        assert_close(classes.loss, torch.nn.functional.cross_entropy(classes.logits, torch.tensor([2, 0])))


def test_it_is_made_of_a_checkpoint_that_answers(tmp_path):
    answering = make_model()
    answering.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert type(model) is FireboltForSequenceClassification
    for name, value in answering.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value)
    assert model.score.weight.isfinite().all()
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert again.num_labels == 1
    assert torch.equal(again.score.weight, model.score.weight)
