"""A modulator dropped into a trained decoder: the first hundred steps with each `start`.

The decoder has learned from texts alone: to count in steps, as 3 5 7 9 1 3, and that any number may follow a question
mark. Then it is left as it is, and a modulator learns to tell it which number a picture shows. With start "norm" every
embedding is replaced at once, and the decoder can no longer count; with start "identity" it is what it was, and learns
what is in the picture more slowly, as the gate opens.

    python examples/gentle_start.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from firebolt_vl.model import FireboltConfig, FireboltForConditionalGeneration

NUMBERS, QUESTION, LENGTH, GRIDS = 10, 10, 12, 5
DECODER_STEPS, STEPS, BATCH = 200, 100, 32
SEEDS = 3
SHOWN = (1, 10, 30, 100)


def make_model(start: str) -> FireboltForConditionalGeneration:
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    kinds = {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = FireboltConfig(
        text_config={**text, **kinds, "vocab_size": NUMBERS + 1, "bos_token_id": None, "eos_token_id": None},
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        cmm_config={"heads": 4, "head_dim": 16, "dropout": 0.0, "start": start},
    )
    return FireboltForConditionalGeneration(config)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Texts [B,LENGTH] that count in steps, then ask what the picture shows [B], and say it; its grids [B,GRIDS,32]."""
    first, step, shown = (torch.randint(0, NUMBERS, (BATCH, 1), generator=generator) for _ in range(3))
    ids = (first + step * torch.arange(LENGTH)) % NUMBERS
    ids[:, -2], ids[:, -1:] = QUESTION, shown
    looks = torch.randn(NUMBERS, 32, generator=torch.Generator().manual_seed(0))
    grids = 0.3 * torch.randn(BATCH, GRIDS, 32, generator=generator)
    place = torch.randint(0, GRIDS, (BATCH,), generator=generator)
    grids[torch.arange(BATCH), place] += looks[shown[:, 0]]
    return ids, shown[:, 0], grids


def losses(model: FireboltForConditionalGeneration, generator: torch.Generator, sees: bool) -> tuple[Tensor, Tensor]:
    """The cross-entropy of counting, from the third number on, and of the answer."""
    ids, shown, grids = draw(generator)
    logits = model(input_ids=ids, use_cache=False, **({"grids": grids} if sees else {})).logits
    counting = F.cross_entropy(logits[:, 1:-3].flatten(0, 1), ids[:, 2:-2].flatten())
    return counting, F.cross_entropy(logits[:, -2], shown)


def train(model, steps: int, lr: float, sees: bool, seed: int) -> list[tuple[float, float]]:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    told = []
    for _ in range(steps):
        counting, answer = losses(model, generator, sees)
        optimizer.zero_grad()
        (counting + answer).backward()
        optimizer.step()
        told.append((counting.item(), answer.item()))
    return told


def main(seeds: int = SEEDS) -> dict[str, Tensor]:
    """Return the losses of counting and of the answer at each step, [seeds,STEPS,2] of each start."""
    found: dict[str, list] = {"norm": [], "identity": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        decoder = make_model("norm")
        known = train(decoder, DECODER_STEPS, 3e-3, False, seed)[-1][0]
        print(f"seed {seed}: the decoder counts with a loss of {known:.3f}")
        for start, of_start in found.items():
            torch.manual_seed(seed)
            model = make_model(start)
            model.model.language_model.load_state_dict(decoder.model.language_model.state_dict())
            model.requires_grad_(False)
            model.model.connector.requires_grad_(True)
            of_start.append(train(model, STEPS, 2e-3, True, seed + 1))
    made = {start: torch.tensor(of_start) for start, of_start in found.items()}
    for start, told in made.items():
        for step in SHOWN:
            counting, answer = told[:, step - 1].mean(0).tolist()
            print(f"start {start!r}, step {step}: loss of counting {counting:.3f}, of the answer {answer:.3f}")
    return made


if __name__ == "__main__":
    main()
