"""Where an answer comes from, drawn: what two words weighed, and what the answer rests on, over the image's tiles.

python examples/grounding_drawn.py [PICTURE.png]
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import firebolt_vl
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor

IMAGE = Path(__file__).parent / "digits-1.png"
QUESTION, PHRASE = "what digit is at the top left?", "top left"


def columns_of(phrase: str, tokens: list[str]) -> tuple[int, int]:
    """start and end of the tokens that spell a phrase."""
    for start in range(len(tokens)):
        for end in range(start + 1, len(tokens) + 1):
            if "".join(tokens[start:end]).strip() == phrase:
                return start, end
    raise ValueError(f"phrase: {phrase!r} is not among the tokens {tokens}")


def main(picture: str | Path = "out/grounding.png") -> tuple[str, torch.Tensor, torch.Tensor]:
    """Ask, draw to `picture`, and return the answer, the weights [G] of the phrase and the effects [G] of the grids."""
    folder = firebolt_vl.embedded_checkpoint()
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    processor = FireboltProcessor.from_pretrained(folder)
    image = Image.open(IMAGE).convert("RGB")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt", add_special_tokens=False)

    sizes = torch.tensor([[image.height, image.width]])
    looked = model.ground(**inputs, method="weights", image_sizes=sizes)
    rests = model.ground(**inputs, method="occlusion", image_sizes=sizes)
    tokens = [processor.decode(token) for token in inputs["input_ids"][0]]
    weights, effects = looked.phrase(0, *columns_of(PHRASE, tokens)), rests.effects[0]
    answer = processor.decode(rests.answer_ids[0], skip_special_tokens=True).strip()
    print(f"{QUESTION} {answer}")

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    told = ((f'what "{PHRASE}" weighed', weights, "{:.0%}"), ("nats that masking a tile costs", effects, "{:.1f}"))
    for axes, (title, values, form) in zip(figure.subplots(1, 2), told):
        axes.imshow(image)
        axes.set(title=title, xticks=[], yticks=[])
        axes.autoscale(False)
        for box, value in zip(rests.boxes[0, 1:].tolist(), values[1:].tolist()):  # grid 0 is the whole image
            (y0, x0, y1, x1), most = box, max(values.max().item(), 1e-6)
            axes.fill_between([x0, x1], y0, y1, color="tab:orange", alpha=0.55 * max(0, value) / most, linewidth=0)
            axes.text(
                (x0 + x1) / 2,
                y1 - 4,
                form.format(round(value, 3) + 0.0),
                ha="center",
                va="bottom",
                color="black",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
            )
    figure.suptitle(f"{QUESTION}  {answer}")
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    return answer, weights, effects


if __name__ == "__main__":
    main(*sys.argv[1:])
