"""Weights say where a word looked; occlusion says what the answer rests on."""

import pytest
import torch
from numerics import assert_close
from tiny_models import make_model, make_pixels, make_text


def inputs(rows: int = 2, **kwargs) -> dict[str, torch.Tensor]:
    return {**make_text([6, 4][:rows]), **make_pixels(rows, **kwargs)}


def test_weights_are_shares_of_the_grids_that_exist():
    model, given = make_model(), inputs()
    given["tile_mask"][1, 2:] = False
    found = model.ground(**given, method="weights")
    assert found.weights.shape == (2, 6, 5)
    kept = given["attention_mask"].bool()
    assert_close(found.weights[kept].sum(-1), torch.ones(int(kept.sum())), relative=1e-5)
    assert not found.weights[~kept].any()
    assert not found.weights[1, :, 3:].any()
    assert_close(found.phrase(0, 1, 4), found.weights[0, 1:4].mean(0), relative=1e-6)


def test_boxes_come_in_pixels_of_each_image():
    found = make_model().ground(**inputs(), image_sizes=torch.tensor([[100, 200], [50, 60]]))
    assert found.boxes[0, 0].tolist() == [0, 0, 100, 200]
    assert found.boxes[1, 4].tolist() == [25, 30, 50, 60]
    several = make_model().ground(**inputs(1, images=2), image_sizes=torch.tensor([[[100, 200], [50, 60]]]))
    assert several.boxes[0, 0].tolist() == [0, 0, 100, 200]
    assert several.boxes[0, 5].tolist() == [0, 0, 50, 60]


@pytest.mark.parametrize("connector", ["cmm", "prepend", "cross_attend"])
def test_an_effect_is_the_drop_of_the_answers_log_probability(connector):
    """Against a plain recomputation: score the answer with all grids, then without one."""
    model, given = make_model(connector), inputs()
    given["tile_mask"][1, 2:] = False
    answers = torch.tensor([[5, 9, 2, 0], [8, 2, 0, 0]])
    found = model.ground(**given, method="occlusion", answer_ids=answers)
    assert found.answer_mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    seen = model.get_grids(**{name: given[name] for name in make_pixels(1)})
    for row, length in ((0, 3), (1, 2)):
        kept = given["attention_mask"][row].bool()
        ids = torch.cat([given["input_ids"][row, kept], answers[row, :length]])[None]

        def score(mask, row=row, ids=ids, length=length):
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    grids=seen.features[row : row + 1],
                    grid_mask=mask[None],
                    grid_boxes=seen.boxes[row : row + 1],
                ).logits
            chances = logits[0, -length - 1 : -1].log_softmax(-1)
            return chances.gather(-1, ids[0, -length:, None]).sum()

        for grid in range(5):
            mask = seen.mask[row].clone()
            wanted = torch.zeros(())
            if mask[grid]:
                mask[grid] = False
                wanted = score(seen.mask[row]) - score(mask)
            assert abs(float(found.effects[row, grid] - wanted)) < 1e-4


def test_occlusion_scores_what_the_model_answers():
    model, given = make_model(), inputs()
    found = model.ground(**given, method="occlusion", max_new_tokens=5)
    wanted = model.generate(**given, max_new_tokens=5, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert torch.equal(found.answer_ids, wanted)


@pytest.mark.parametrize(
    ("connector", "arguments", "message"),
    [
        ("cmm", {"method": "gradient"}, "ground: method is 'gradient'; expected 'weights' or 'occlusion'"),
        (
            "prepend",
            {"method": "weights"},
            "method is 'weights'; expected 'occlusion', as connector 'prepend'",
        ),
        ("cmm", {"method": "occlusion", "answer_ids": torch.zeros(3, 2)}, r"answer_ids has shape \[3, 2\]; expected"),
        ("cmm", {"image_sizes": torch.zeros(3, 2)}, r"image_sizes has shape \[3, 1, 2\]; expected"),
    ],
)
def test_bad_arguments_are_named(connector, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(connector).ground(**inputs(), **arguments)


def test_grounding_needs_an_image():
    with pytest.raises(ValueError, match="grounding needs an image"):
        make_model().ground(**make_text([4]))
