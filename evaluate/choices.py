"""Multiple choice: of several answers the one that a foveated model finds least surprising."""

from collections.abc import Sequence
from string import ascii_uppercase

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model import FoveatedProcessor, FoveatedVLM
from ..model.firebolt import control_tokens
from ..model.foveated import VisualTokens, sequence_log_probabilities


@torch.no_grad()
def option_losses(
    model: FoveatedVLM,
    prompt: Tensor,
    options: Sequence[Tensor],
    frames: Tensor | None = None,
    frame_mask: Tensor | None = None,
    mode: str | None = None,
    visual: VisualTokens | None = None,
) -> Tensor:
    """Mean cross-entropy of the tokens of each option after the prompt, [n] float32, on the model's device.

    prompt [P] and each of the n options [L_i] are token ids; frames [1,T,3,H,W] with frame_mask [1,T], or `visual`,
    what `get_visual_tokens` made of them. The frames are looked at once, and all options are read in one batch. Raises
    ValueError for no option or one without a token.
    """
    if not len(prompt):
        raise ValueError("option_losses: prompt is empty; expected at least one token")
    if not options or not all(len(option) for option in options):
        empty = "an empty option" if options else "no option"
        raise ValueError(f"option_losses: options has {empty}; expected at least one, and at least one token in each")
    texts = [torch.cat([prompt, option]).to(model.device) for option in options]
    ids = pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts], device=ids.device)[:, None]
    columns = torch.arange(ids.shape[1], device=ids.device)
    read = columns < lengths
    if visual is None and frames is not None:
        visual = model.get_visual_tokens(frames, frame_mask, mode)
    shown = {}
    if visual is not None:
        shown = {
            "visual_tokens": visual.tokens.expand(len(ids), -1, -1),
            "visual_mask": visual.mask.expand(len(ids), -1),
        }
    logits = model(ids, read, mode="coarse_fine", use_cache=False, **shown).logits  # those at the text
    scored = read & (columns >= len(prompt))
    return -sequence_log_probabilities(logits.float(), ids, scored) / scored.sum(-1)


def choose(
    model: FoveatedVLM,
    processor: FoveatedProcessor,
    question: str,
    options: Sequence[str],
    mode: str | None = None,
    visual: VisualTokens | None = None,
    **shown,
) -> tuple[int, list[float]]:
    """The option with the lowest mean cross-entropy (the first of equal ones), and that of each.

    The model is asked `question` with the options as lettered lines below it, and each option is scored as it stands
    there ("A. text"). `shown` goes to the processor: images= or videos=, with their options; or `visual` is what the
    model made of them before.
    """
    if not 1 <= len(options) <= len(ascii_uppercase):
        raise ValueError(f"choose: options has {len(options)}; expected 1 to {len(ascii_uppercase)}")
    lettered = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]
    text = "\n".join([question, *lettered])
    if held := next((token for token in control_tokens(processor.tokenizer) if token in text), None):
        raise ValueError(
            f"choose: question or options has {held!r}, a control token of the model; write it another way"
        )
    if processor.chat_template is not None:
        text = processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token  # a template that starts with the first token must not get another one
    specials = not (bos and text.startswith(bos))
    inputs = processor(text=[text], return_tensors="pt", add_special_tokens=specials, **shown)
    inputs = inputs.to(model.device, dtype=model.dtype)
    answers = [
        processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids[0] for answer in lettered
    ]
    prompt, frames, frame_mask = inputs["input_ids"][0].cpu(), inputs.get("frames"), inputs.get("frame_mask")
    losses = option_losses(model, prompt, answers, frames, frame_mask, mode, visual)
    return int(losses.argmin()), losses.tolist()
