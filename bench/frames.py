"""Benchmark of many frames: `python -m firebolt_vl.bench.frames [FRAMES]...` prints three tables.

Through the connector alone, at full size, five grids a frame: what a frame costs to take in, alone or after all others,
what a question of 32 tokens and a generated token cost with so many frames, and the memory of the state. Then through
the whole model, the vision tower and the decoder with it: the embedded checkpoint, and one at full size (minutes).
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..cmm import CMMConfig, CrossModalModulator
from ..cmm.positions import default_boxes
from ..files.tables import markdown_table
from ..model import FireboltForConditionalGeneration, FireboltImageProcessor, Video
from ..model.cpu.prepacking import prepack_weights
from ..model.places import EMBEDDED, find
from .answer import image_processor, photo, random_model, text_inputs
from .kernels import device_name
from .timing import Run, clock_name, cpu_ms, peak_bytes, quantile, time_in_turns

FRAMES = (1, 4, 16, 64)
VIEWS, QUESTION = 5, 32


@dataclass
class Row:
    """Medians in milliseconds, and bytes of the state's grids."""

    frames: int
    encode_ms: float
    add_ms: float
    question_ms: float
    token_ms: float
    state_bytes: int


def inputs_of(frames: int, width: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random grids of frames a second apart, as arguments of a connector."""
    generator = torch.Generator().manual_seed(frames)
    return {
        "grids": torch.randn(1, frames * VIEWS, width, generator=generator).to(dtype),
        "grid_boxes": default_boxes(VIEWS).repeat(frames, 1)[None],
        "grid_times": torch.arange(frames).repeat_interleave(VIEWS)[None].float(),
    }


@torch.no_grad()
def measure(layer: CrossModalModulator, frames: Sequence[int], seconds: float = 1.0) -> list[Row]:
    """Time every number of frames in turns with the others."""
    width, text_width = layer.config.grid_width, layer.config.text_width
    text = torch.randn(1, QUESTION, text_width, generator=torch.Generator().manual_seed(0))
    one = inputs_of(1, width)
    runs, sizes = {}, {}
    for count in frames:
        given = inputs_of(count, width)
        state = layer.encode_grids(**given)
        _, asked = layer.prefill(text, state=state)
        sizes[count] = sum(tensor.nbytes for name, tensor in state.tensors.items() if name.startswith("grid."))
        runs[count, "encode"] = Run(lambda _, given=given: layer.encode_grids(**given))
        runs[count, "add"] = Run(lambda _, state=asked: layer.add_grids(state, **one))
        runs[count, "question"] = Run(lambda _, state=state: layer.prefill(text, state=state))
        runs[count, "token"] = Run(lambda _, state=asked: layer.step(text[:, 0], state))
    times = time_in_turns(runs, "cpu", seconds)
    return [
        Row(
            count, *(quantile(times[count, what], 0.5) for what in ("encode", "add", "question", "token")), sizes[count]
        )
        for count in frames
    ]


def markdown(rows: Sequence[Row]) -> str:
    table = markdown_table(
        ["frames", "taken in, a frame", "one more", "question", "token", "state, a frame"],
        [
            [
                row.frames,
                f"{row.encode_ms / row.frames:.2f} ms",
                f"{row.add_ms:.2f} ms",
                f"{row.question_ms:.1f} ms",
                f"{row.token_ms:.2f} ms",
                f"{row.state_bytes / row.frames / 1024:.0f} KiB",
            ]
            for row in rows
        ],
    )
    return f"{table}\n\n{_conditions()}"


@dataclass
class ModelRow:
    """Costs of a whole model: milliseconds, and the most bytes that a first token takes beside the weights."""

    name: str
    frames: int
    tower_ms: float
    question_ms: float
    token_ms: float
    peak_bytes: int


def video_of(frames: int) -> Video:
    """A video of so many frames, a second apart, each of them the same photo."""
    return Video([photo()] * frames, [float(second) for second in range(frames)])


@torch.no_grad()
def measure_model(
    name: str,
    model: FireboltForConditionalGeneration,
    processor: FireboltImageProcessor,
    frames: Sequence[int],
    seconds: float = 1.0,
) -> list[ModelRow]:
    """Time a first token in its two parts, the vision tower and what follows, and a token after it.

    All frames pass the tower once: many frames are as many repetitions. Connector and decoder, with a question, are
    timed in turns, and so are tokens.
    """
    text = text_inputs(QUESTION, model.config.text_config.vocab_size, "cpu")
    told = text["input_ids"][:, :1]
    model(**text, **processor([[video_of(1)]], return_tensors="pt"))  # the first call keeps what later ones find
    runs, tower, peaks = {}, {}, {}
    for count in frames:
        pixels, grids = processor([[video_of(count)]], return_tensors="pt"), {}
        cache = DynamicCache(config=model.config.text_config)
        see = Run(lambda _, pixels=pixels, grids=grids: grids.update(model.model.get_grids(**pixels).given))

        def first_token(_, count=count, see=see, grids=grids, cache=cache) -> None:
            tower[count] = cpu_ms(see)
            model(**text, **grids, past_key_values=cache, logits_to_keep=1)

        peaks[count] = peak_bytes(Run(first_token), "cpu")
        print(f"{name}: {count} frames, tower {tower[count]:.0f} ms, {peaks[count]} bytes", file=sys.stderr, flush=True)
        runs[count, "question"] = Run(lambda _, grids=grids: model(**text, **grids, logits_to_keep=1))
        runs[count, "token"] = Run(
            lambda cache: model(input_ids=told, past_key_values=cache), lambda cache=cache: copy.deepcopy(cache)
        )
    times = time_in_turns(runs, "cpu", seconds)
    return [
        ModelRow(
            name,
            count,
            tower[count],
            *(quantile(times[count, what], 0.5) for what in ("question", "token")),
            peaks[count],
        )
        for count in frames
    ]


def markdown_of_models(rows: Sequence[ModelRow]) -> str:
    """A line for each model and number of frames."""
    table = markdown_table(
        ["", "frames", "tower, a frame", "question", "first token, a frame", "token", "memory, a frame"],
        [
            [
                row.name,
                row.frames,
                f"{row.tower_ms / row.frames:.1f} ms",
                f"{row.question_ms:.1f} ms",
                f"{(row.tower_ms + row.question_ms) / row.frames:.1f} ms",
                f"{row.token_ms:.1f} ms",
                f"{row.peak_bytes / row.frames / 2**20:.2f} MiB",
            ]
            for row in rows
        ],
    )
    return f"{table}\n\n{_conditions()}"


def full_model() -> tuple[FireboltForConditionalGeneration, FireboltImageProcessor]:
    """Firebolt-VL at full size, with random weights, as `firebolt ask` loads one."""
    model = random_model("float32", "cpu", cmm={"grid_times": True})
    prepack_weights(model)
    return model, image_processor()


def embedded_model() -> tuple[FireboltForConditionalGeneration, FireboltImageProcessor]:
    """The small checkpoint of the package, with its weights."""
    folder = find(EMBEDDED)
    model = FireboltForConditionalGeneration.from_pretrained(folder).eval()
    return model, FireboltImageProcessor.from_pretrained(folder)


def _conditions() -> str:
    return (
        f"Medians, float32, batch 1, a question of {QUESTION} tokens; {device_name('cpu')}, "
        f"{clock_name('cpu')}, torch {torch.__version__}."
    )


def main(frames: Sequence[int]) -> None:
    torch.manual_seed(0)
    layer = CrossModalModulator(CMMConfig(text_width=1024, grid_width=768, grid_times=True)).eval()
    print(markdown(measure(layer, frames)), flush=True)
    rows = measure_model("embedded", *embedded_model(), frames)
    print(f"\n{markdown_of_models(rows)}", flush=True)
    print(f"\n{markdown_of_models(measure_model('full size', *full_model(), frames))}")


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or FRAMES)
