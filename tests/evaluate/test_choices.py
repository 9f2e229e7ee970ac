"""Multiple choice by the lowest mean cross-entropy."""

import numpy as np
import pytest
import torch
from foveated import MODES, make_foveated, make_frames
from numerics import assert_close
from PIL import Image
from tiny_models import make_tokenizer

from firebolt_vl.evaluate.choices import choose, option_losses
from firebolt_vl.model import CHAT_TEMPLATE, FoveatedImageProcessor, FoveatedProcessor

MODEL = make_foveated()


def random_ids(*lengths: int) -> list[torch.Tensor]:
    return [torch.randint(4, 260, (length,)) for length in lengths]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framed", [True, False])
def test_each_loss_is_that_of_the_option_alone(mode, framed):
    """Whatever the lengths of the others: `forward` with a loss mask says the same."""
    prompt, *options = random_ids(5, 3, 1, 7)
    frames = make_frames([3])["frames"] if framed else None
    found = option_losses(MODEL, prompt, options, frames, mode=mode)
    for option, loss in zip(options, found):
        text = torch.cat([prompt, option])[None]
        mask = (torch.arange(text.shape[1]) >= 5)[None]
        with torch.no_grad():
            alone = MODEL(text, frames=frames, loss_mask=mask, mode=mode).loss
        assert_close(loss, alone, relative=2e-5)


def test_padding_with_the_end_token_does_not_make_an_option_cheaper():
    """The original divided by labels that it had not counted; here an option that ends in that id is scored whole."""
    prompt, option = random_ids(4, 3)
    ended = torch.cat([option, torch.zeros(1, dtype=torch.long)])
    text = torch.cat([prompt, ended])[None]
    with torch.no_grad():
        alone = MODEL(text, loss_mask=(torch.arange(8) >= 4)[None]).loss
    assert_close(option_losses(MODEL, prompt, [ended, *random_ids(9)])[0], alone, relative=2e-5)


def test_the_frames_are_looked_at_once():
    looked = []
    hook = MODEL.encoder.dino.embeddings.register_forward_pre_hook(lambda _, args: looked.append(len(args[0])))
    prompt, *options = random_ids(4, 2, 2, 2)
    frames = make_frames([3])["frames"]
    found = option_losses(MODEL, prompt, options, frames)
    with torch.no_grad():
        visual = MODEL.get_visual_tokens(frames)
    again = option_losses(MODEL, prompt, options, visual=visual)
    hook.remove()
    assert looked == [3, 3]
    assert torch.equal(again, found)


def test_the_chosen_option_is_the_one_the_model_would_rather_say():
    model = make_foveated()
    processor = FoveatedProcessor(
        FoveatedImageProcessor(size={"height": 28, "width": 28}), make_tokenizer(), CHAT_TEMPLATE
    )
    levels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    options = ["red", "blue", "green"]
    chosen, losses = choose(model, processor, "which colour?", options, images=Image.fromarray(levels))
    assert losses[chosen] == min(losses)
    assert len(set(losses)) == 3
    # Trained on one of the others, it takes that one.
    wanted = (chosen + 1) % 3
    message = "which colour?\nA. red\nB. blue\nC. green"
    text = processor.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True)
    answer = f"{'ABC'[wanted]}. {options[wanted]}"
    inputs = processor(
        text=text + answer, images=Image.fromarray(levels), return_tensors="pt", add_special_tokens=False
    )
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, -len(answer) :] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(**inputs, loss_mask=mask).loss.backward()
        optimizer.step()
    found, _ = choose(model, processor, "which colour?", options, images=Image.fromarray(levels))
    assert found == wanted


def test_what_cannot_be_scored_is_named():
    prompt, option = random_ids(3, 2)
    with pytest.raises(ValueError, match="options has no option; expected at least one"):
        option_losses(MODEL, prompt, [])
    with pytest.raises(
        ValueError, match="options has an empty option; expected at least one, and at least one token in each"
    ):
        option_losses(MODEL, prompt, [option, option[:0]])
    with pytest.raises(ValueError, match="prompt is empty; expected at least one token"):
        option_losses(MODEL, prompt[:0], [option])
    with pytest.raises(ValueError, match="options has 27; expected 1 to 26"):
        choose(MODEL, None, "?", ["x"] * 27)


def test_a_control_token_in_a_question_or_an_option_is_refused():
    processor = FoveatedProcessor(
        FoveatedImageProcessor(size={"height": 28, "width": 28}), make_tokenizer(), CHAT_TEMPLATE
    )
    for question, options in (("which?<|im_end|>", ["a", "b"]), ("which?", ["a", "<|im_start|>"])):
        with pytest.raises(ValueError, match="a control token of the model"):
            choose(MODEL, processor, question, options)
