"""Exam of a trained small foveated model: answers on clips of unknown digits, and where its queries look."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...evaluate.digits import COLOURS
from ...model import FoveatedVLM
from ..tiny.fusion import Rows
from .pool import CARDS, Clips, with_cards

BATCH = 100


@dataclass
class Seen:
    """Answers and looks of N questions about clips of T frames, without the card.

    answers    [N], the token that is most likely
    maps       [N,T,P,P], each patch's share of the look at a frame
    """

    answers: Tensor
    maps: Tensor


@dataclass
class Asked:
    """N questions: about which clips, the digit of which colour, with a card of which colour and ink."""

    clip: Tensor
    colour: Tensor
    card: Tensor
    ink: Tensor


def every_question(clips: Clips, seed: int, wrong_card: bool = False) -> Asked:
    """One for each digit of each clip. With `wrong_card` the card has the colour of another digit of the clip."""
    generator = torch.Generator().manual_seed(seed)
    clip, colour = (clips.labels >= 0).nonzero().unbind(1)
    card = colour
    if wrong_card:
        others = (clips.labels[clip] >= 0).float()
        others[torch.arange(len(clip)), colour] = 0
        card = torch.multinomial(others, 1, generator=generator)[:, 0]
    return Asked(clip, colour, card, torch.randint(CARDS, (len(clip),), generator=generator))


@torch.no_grad()
def look(model: FoveatedVLM, clips: Clips, cards: Tensor, texts: Rows, asked: Asked) -> Seen:
    """The model in its own mode; `texts` are those of LookJob."""
    answers, maps = [], []
    prompt = int((~texts.answer[0]).long().cumprod(0).sum())
    for part in torch.arange(len(asked.clip)).split(BATCH):
        clip, colour = asked.clip[part], asked.colour[part]
        frames, mask = with_cards(clips.pixels[clip], clips.there[clip], cards[asked.card[part], asked.ink[part]])
        visual = model.get_visual_tokens(frames, mask, return_attention=True)
        logits = model(
            texts.ids[10 * colour, :prompt], visual_tokens=visual.tokens, visual_mask=visual.mask, use_cache=False
        ).logits
        answers.append(logits[:, -1].argmax(-1))
        maps.append(visual.maps()[:, 1:])
    return Seen(torch.cat(answers), torch.cat(maps))


def examine(model: FoveatedVLM, clips: Clips, cards: Tensor, texts: Rows, seed: int) -> dict:
    """Shares of right answers, and of the looks that fall on the asked digit.

    accuracy      all, still, moving; and where the card has the colour of another digit of the clip than the question
                  names: how many answers are right, and how many name the card's digit
    attention     over all frames but the card:
      inside      the share of a look's weight in the box of the asked digit, and `area`, the box's share of the frame
      other       that in the box of another digit of the frame, on average, and `other_area`
      peak        how often the patch that weighs most has its centre in the box, and `peak_chance`, the share of such
                  patches
      wrong_card  `inside` for the digit whose colour the card has, where the question is about another
    """
    first = texts.answer.int().argmax(1)
    # By colour and digit: the answer's token.
    wanted = texts.ids[torch.arange(len(first)), first].view(len(COLOURS), 10)

    def right(seen: Seen, asked: Asked, colour: Tensor) -> Tensor:
        return seen.answers == wanted[colour, clips.labels[asked.clip, colour]]

    asked = every_question(clips, seed)
    seen = look(model, clips, cards, texts, asked)
    told, moving = right(seen, asked, asked.colour), clips.there[asked.clip, -1]
    there = clips.there[asked.clip]
    side = seen.maps.shape[-1]
    covered = coverage(clips.boxes[asked.clip], side)  # [N,T,6,P,P]
    inside = (seen.maps[:, :, None] * covered).sum((-2, -1))  # [N,T,6]
    area = covered.mean((-2, -1))
    its = torch.arange(len(asked.clip)), slice(None), asked.colour
    others = (clips.labels[asked.clip] >= 0).float()
    others[torch.arange(len(others)), asked.colour] = 0
    others = (others / others.sum(1, keepdim=True))[:, None]
    centred = centres_inside(clips.boxes[asked.clip], side)[its]
    peak = centred.flatten(-2).gather(-1, seen.maps.flatten(-2).argmax(-1, keepdim=True))[..., 0]

    misled = every_question(clips, seed, wrong_card=True)
    mistaken = look(model, clips, cards, texts, misled)
    its_card = torch.arange(len(misled.clip)), slice(None), misled.card
    drawn = (mistaken.maps * coverage(clips.boxes[misled.clip], side)[its_card]).sum((-2, -1))

    def mean(values: Tensor) -> float:
        return float(values[there].double().mean())

    return {
        "questions": len(told),
        "accuracy": {
            "all": float(told.double().mean()),
            "still": float(told[~moving].double().mean()),
            "moving": float(told[moving].double().mean()),
            "wrong card": float(right(mistaken, misled, misled.colour).double().mean()),
            "wrong card, its digit": float(right(mistaken, misled, misled.card).double().mean()),
        },
        "attention": {
            "inside": mean(inside[its]),
            "area": mean(area[its]),
            "other": mean((inside * others).sum(-1)),
            "other_area": mean((area * others).sum(-1)),
            "peak": mean(peak),
            "peak_chance": mean(centred.double().mean((-2, -1))),
            "wrong_card": mean(drawn),
        },
    }


def coverage(boxes: Tensor, side: int) -> Tensor:
    """Compute the share of each of side x side patches that boxes [...,4] cover: [...,side,side] in 0..1."""
    low = torch.arange(side) / side
    top, left, bottom, right = boxes[..., None].unbind(-2)  # [...,1]
    rows, columns = (
        (torch.minimum(low + 1 / side, end) - torch.maximum(low, begin)).clamp(min=0) * side
        for begin, end in ((top, bottom), (left, right))
    )
    return rows[..., :, None] * columns[..., None, :]


def centres_inside(boxes: Tensor, side: int) -> Tensor:
    """Tell which of side x side patches have their centre in boxes [...,4]: [...,side,side] bool."""
    centres = (torch.arange(side) + 0.5) / side
    top, left, bottom, right = boxes[..., None].unbind(-2)
    rows, columns = ((centres >= begin) & (centres < end) for begin, end in ((top, bottom), (left, right)))
    return rows[..., :, None] & columns[..., None, :]
