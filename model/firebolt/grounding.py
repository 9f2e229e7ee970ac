"""Grounding of an answer: what each word weighed, and what the answer rests on.

The two are different questions. The weights of the modulator say where a token looked; a model can answer right while
they point elsewhere. Occlusion masks one grid at a time and measures what that does to the answer's log-probability.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...cmm.positions import default_boxes
from ..compat import to_device_of
from .grids import Grids, named_grids

# Of an answer in one batch: an image in patches has hundreds of grids.
MOST_ROWS = 64


@dataclass
class Grounding:
    """Result of `FireboltForConditionalGeneration.ground`; G grids a row, masked ones zero.

    method       "weights" or "occlusion"
    boxes        [B,G,4] (y0, x0, y1, x1): pixels of the image where `image_sizes` was given, else 0..1 of the image
    grid_mask    [B,G] bool, the grids that exist
    weights      [B,T,G], method "weights": the share of each grid in each text column, the mean over heads; of a
                 modulator of two layers those of the second
    effects      [B,G], method "occlusion": by how many nats the answer's log-probability falls when the grid is masked;
                 positive where the answer rests on it
    answer_ids   [B,N], method "occlusion": the answer that was scored, and `answer_mask` [B,N] which of it counts
    """

    method: str
    boxes: Tensor
    grid_mask: Tensor
    weights: Tensor | None = None
    effects: Tensor | None = None
    answer_ids: Tensor | None = None
    answer_mask: Tensor | None = None

    def phrase(self, row: int, start: int, end: int) -> Tensor:
        """Return the grounding of a phrase [G]: the mean weight over its tokens, columns start..end-1 of `input_ids`.

        With query "token" and one layer a token's weights depend on that token and the image alone, not on its
        neighbours, so one token of "top left" does not say where the phrase points. With query "state" or two layers
        they depend on the text up to it.
        """
        if self.weights is None:
            raise ValueError(f"Grounding: method is {self.method!r}; expected 'weights', which a phrase is read from")
        if not 0 <= start < end <= self.weights.shape[1]:
            raise ValueError(
                f"Grounding: start and end are {start} and {end}; expected 0 <= start < end <= {self.weights.shape[1]}"
            )
        return self.weights[row, start:end].mean(dim=0)


def ground(
    model,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    method: str,
    answer_ids: Tensor | None,
    max_new_tokens: int,
    image_sizes: Tensor | None,
    images: dict[str, Tensor | None],
) -> Grounding:
    """Ground an answer; see `FireboltForConditionalGeneration.ground`."""
    if method not in ("weights", "occlusion"):
        raise ValueError(f"ground: method is {method!r}; expected 'weights' or 'occlusion'")
    if method == "weights" and model.config.connector != "cmm":
        raise ValueError(
            f"ground: method is 'weights'; expected 'occlusion', as connector {model.config.connector!r} has no weights"
        )
    input_ids = to_device_of(model, input_ids)
    mask = torch.ones_like(input_ids) if attention_mask is None else to_device_of(model, attention_mask)
    mask = mask.bool()
    given = {name: to_device_of(model, value) for name, value in images.items() if value is not None}
    if "pixel_values" in given:
        seen = model.get_grids(**given)
    elif "grids" in given:
        seen = named_grids(given, given["grids"].to(model.dtype))
    else:
        raise ValueError("ground: pixel_values and grids are not given; expected one, as grounding needs an image")
    boxes = to_pixels(unit_boxes(seen.mask, seen.boxes), image_sizes, seen.images)
    if method == "weights":
        text = model.get_input_embeddings()(input_ids)
        _, weights = model.model.connector(text, text_mask=mask, return_weights=True, **seen.given)
        return Grounding(method, boxes, seen.mask, weights=weights.float())

    stops = model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if answer_ids is None:
        sequences: Tensor = model.generate(
            input_ids=input_ids,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **{name: value for name, value in seen.given.items() if value is not None},
        )
        answer_ids = sequences[:, input_ids.shape[1] :]
    elif answer_ids.dim() != 2 or answer_ids.shape[0] != input_ids.shape[0]:
        raise ValueError(f"ground: answer_ids has shape {list(answer_ids.shape)}; expected [{input_ids.shape[0]}, N]")
    answer_ids = to_device_of(model, answer_ids)
    scored = answer_mask(answer_ids, stops, model.generation_config.pad_token_id)
    effects = occlusion_effects(model, input_ids, mask, answer_ids, scored, seen)
    return Grounding(method, boxes, seen.mask, effects=effects, answer_ids=answer_ids, answer_mask=scored)


def unit_boxes(grid_mask: Tensor, grid_boxes: Tensor | None) -> Tensor:
    """Return boxes [B,G,4] in 0..1: those given, or the global view and n x n tiles."""
    if grid_boxes is not None:
        return grid_boxes
    return default_boxes(grid_mask.shape[1], device=grid_mask.device).expand(*grid_mask.shape, 4)


def to_pixels(boxes: Tensor, image_sizes: Tensor | None, images: Tensor | None) -> Tensor:
    """Scale boxes [B,G,4] by (height, width): image_sizes [B,2], or [B,I,2] and the image index [B,G] of each grid."""
    if image_sizes is None:
        return boxes
    sizes = torch.as_tensor(image_sizes, dtype=boxes.dtype, device=boxes.device)
    if sizes.dim() == 2:
        sizes = sizes[:, None]
    if sizes.dim() != 3 or sizes.shape[0] != boxes.shape[0] or sizes.shape[-1] != 2:
        raise ValueError(
            f"ground: image_sizes has shape {list(sizes.shape)}; expected [{boxes.shape[0]}, 2] or [B, I, 2]"
        )
    if images is None:
        sizes = sizes[:, :1].expand(-1, boxes.shape[1], -1)
    else:
        sizes = sizes.gather(1, images[..., None].expand(-1, -1, 2))
    return boxes * torch.cat([sizes, sizes], dim=-1)


def answer_mask(answer_ids: Tensor, eos_token_ids: list[int], pad_token_id: int | None) -> Tensor:
    """Return the tokens up to and with the first end token, [B,N] bool; without one, up to the padding."""
    ended = torch.isin(answer_ids, torch.tensor(eos_token_ids, device=answer_ids.device))
    after = ended.long().cumsum(-1) - ended.long() > 0
    mask = ~after
    if pad_token_id is not None:
        mask &= (answer_ids != pad_token_id) | ended
    return mask


@torch.no_grad()
def occlusion_effects(
    model, input_ids: Tensor, attention_mask: Tensor, answer_ids: Tensor, scored: Tensor, seen: Grids
) -> Tensor:
    """Measure the drop of log p(answer) [B,G] in nats when one grid is masked; G + 1 rows in one batch for each row."""
    effects = torch.zeros(seen.mask.shape, dtype=torch.float32, device=input_ids.device)
    for row in range(input_ids.shape[0]):
        there = seen.mask[row].nonzero().flatten()
        if not len(there):
            continue
        if (length := int(scored[row].sum())) == 0:
            continue
        # The first one sees every grid, the others all but one of them.
        masks = seen.mask[row].repeat(len(there) + 1, 1)
        masks[torch.arange(len(there)) + 1, there] = False
        answer = answer_ids[row, :length]
        given = (input_ids[row], attention_mask[row], answer)
        scores = torch.cat([_scores(model, *given, part, seen, row) for part in masks.split(MOST_ROWS)])
        effects[row, there] = scores[0] - scores[1:]
    return effects


def _scores(
    model, prompt: Tensor, prompt_mask: Tensor, answer: Tensor, grid_masks: Tensor, seen: Grids, row: int
) -> Tensor:
    """Score log p(answer) under each of some masks of the grids [n,G] of a row, [n]."""
    copies, length = len(grid_masks), len(answer)
    ids = torch.cat([prompt, answer]).expand(copies, -1)
    prompt_mask = prompt_mask.expand(copies, -1)
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([prompt_mask, torch.ones_like(ids[:, :length], dtype=torch.bool)], dim=1),
        **{name: _repeated(value, row, copies) for name, value in seen.given.items() if name != "grid_mask"},
        grid_mask=grid_masks,
        prompt_mask=prompt_mask,
        use_cache=False,
        logits_to_keep=length + 1,
    ).logits
    chances = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -length:, None])
    return chances[..., 0].sum(-1)


def _repeated(tensor: Tensor | None, row: int, copies: int) -> Tensor | None:
    """One row of a tensor, if it is there, as often as there are copies."""
    return None if tensor is None else tensor[row : row + 1].expand(copies, *tensor.shape[1:])
