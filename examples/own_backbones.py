"""A model around backbones of your own sizes: made, trained with the rest frozen, saved, loaded, asked.

`FireboltForConditionalGeneration.from_backbones` does the same with trained backbones, from folders or the hub.

    python examples/own_backbones.py
"""

import tempfile

import torch

from firebolt_vl.model import FireboltConfig, FireboltForConditionalGeneration

VOCABULARY = 100


def make() -> FireboltForConditionalGeneration:
    """A small model with random weights: the backbones' sizes are given, the modulator's widths follow from them."""
    config = FireboltConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
        },
        cmm_config={"heads": 4, "head_dim": 16, "ssm": "s4d"},
    )
    return FireboltForConditionalGeneration(config)


def main() -> tuple[float, float]:
    """Train the modulator for some steps, and return the loss before and after."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = make()
    model.requires_grad_(False)
    modulator = model.model.connector.requires_grad_(True)
    learned = sum(parameter.numel() for parameter in modulator.parameters())
    print(f"{model.num_parameters():,} parameters, of which the modulator's {learned:,} learn")

    # Two rows, five grids each: what a vision tower has made of images. pixel_values= would run the model's own.
    grids = torch.randn(2, 5, 48, generator=generator)
    tokens = torch.randint(VOCABULARY, (2, 12), generator=generator)
    optimizer = torch.optim.AdamW(modulator.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(input_ids=tokens, grids=grids, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f}, after 20 steps {losses[-1]:.3f}")

    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = FireboltForConditionalGeneration.from_pretrained(folder)
    asked = {"input_ids": tokens[:, :6], "grids": grids, "max_new_tokens": 6, "do_sample": False}
    answers = model.generate(**asked)
    assert torch.equal(answers, again.generate(**asked))
    print(f"answer to row 0: {answers[0, 6:].tolist()}, and the saved model gives the same")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
