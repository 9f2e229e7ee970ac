"""An exported model that answers: NumPy, Pillow, tokenizers and the engine of its graphs, without PyTorch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Failure, told
from ..views.cutting import cut_views, stacked
from .answer import Answer
from .description import TOKENIZER, Description, read_description
from .graphs import OPENERS, Arrays, Graph, onnx_session
from .in_place import TextInPlace
from .program import open_program

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL import Image
    from tokenizers import Tokenizer

NEXT, TEXT = "next.", "text"
BOOLS = ("mask", "kept")


class GraphEngine:
    """A folder that `firebolt export` wrote, opened. Nothing of an answer is kept from one to the next."""

    def __init__(
        self,
        folder: Path,
        description: Description,
        graphs: dict[str, Graph],
        tokenizer: "Tokenizer",
        text: "InferenceSession | None" = None,
    ):
        self.folder, self.description, self.graphs, self.tokenizer = folder, description, graphs, tokenizer
        self.text = text

    @classmethod
    def load(cls, folder: Path, engine: str, threads: int | None = None) -> "GraphEngine":
        """Open a folder. Raises Failure where it is of another engine, or a file is missing or broken."""
        description = read_description(folder)
        if description.engine != engine:
            raise Failure(f"checkpoint {folder} is for the engine {description.engine}; expected one for {engine}")
        for file in (TOKENIZER, *description.graphs.values()):
            if not (folder / file).is_file():
                raise Failure(f"checkpoint {folder} lacks {file}; export the model again")
        graphs = _opened(folder, description, threads)
        text = onnx_session(folder / description.graphs[TEXT], threads) if TEXT in description.graphs else None
        return cls(folder, description, graphs, _read_tokenizer(folder / TOKENIZER), text)

    def answer(
        self,
        image: "Image.Image | None",
        question: str,
        max_new_tokens: int = 128,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """Answer as `Engine.answer` says."""
        rows = self.description.inputs["grids"]["pixel_values"][0]
        if rows not in ("B", 1):
            raise Failure(
                f"checkpoint {self.folder} reads {rows} rows at a time; expected firebolt export executorch --batch 1"
            )
        prompt = self.encode(question, 0 if image is None else 1)
        room = min(max_new_tokens, self.description.most_tokens - len(prompt))
        read = self.begin(self.grids(image), len(prompt) + room)
        logits = read(np.array([prompt], dtype=np.int64))[0]
        tokens, certainty = [], 0.0
        while True:
            token = int(logits.argmax())
            tokens.append(token)
            certainty += _log_probability(logits, token)
            if on_token is not None:
                on_token(token)
            if token in self.description.stops or len(tokens) == room:
                break
            logits = read(np.array([[token]], dtype=np.int64))[0]
        return Answer(
            text=self.decode(tokens).strip(),
            tokens=tokens,
            complete=tokens[-1] in self.description.stops,
            probability=math.exp(certainty / len(tokens)),
            prompt_tokens=len(prompt),
        )

    def encode(self, question: str, images: int) -> list[int]:
        """The tokens of a question in its prompt. Raises Failure for one that the model cannot be asked."""
        if held := next((token for token in self.description.controls if token in question), None):
            raise Failure(f"the question has {held!r}, a control token of this model; write it another way")
        prompt = self.description.prompts[images]
        text = f"{prompt['before']}{question}{prompt['after']}"
        tokens = self.tokenizer.encode(text, add_special_tokens=prompt["add_special_tokens"]).ids
        most = self.description.most_tokens
        if len(tokens) >= most:
            raise Failure(
                f"the question is {len(tokens):,} tokens long; expected fewer than {most:,}, as this model reads no "
                "more with its answer; shorten it"
            )
        return tokens

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def grids(self, image: "Image.Image | None") -> Arrays:
        """Compute what the modulator keeps of an image, [1,G,...]; of none, a grid that is masked."""
        if image is None:
            return self._zeros("prompt" if self.text is None else TEXT, {"B": 1, "G": 1}, "grid.")
        settings = self.description.views
        side, tile = settings["size"], settings["tile_size"]
        views = stacked([[cut_views(image, side, settings)]], side, tile, self._least_tiles())
        return self.graphs["grids"](views)

    def _least_tiles(self) -> int:
        """Count the tiles that there have to be at least, masked where an image has fewer."""
        least = self.description.inputs["grids"].get("tile_mask", ["B", "I", "M"])[2]
        return least if isinstance(least, int) else 0

    def begin(self, grids: Arrays, room: int) -> Callable[[np.ndarray], np.ndarray]:
        """Begin a text about these grids, of `room` tokens at most: what reads its next tokens [1,T], the prompt's
        first, and gives the logits [1,V] of the token after them, which hold until it is called again."""
        if self.text is not None:
            return TextInPlace(self.text, grids, room).read
        part, state = "prompt", self.empty_state(grids)

        def read(ids: np.ndarray) -> np.ndarray:
            nonlocal part, state
            mask = {"attention_mask": np.ones_like(ids, dtype=bool)} if part == "prompt" else {}
            logits, state = self.advance(part, {"input_ids": ids, **mask}, state)
            part = "step"
            return logits

        return read

    def empty_state(self, grids: Arrays) -> Arrays:
        """The state before the first token of a row with these grids, or of none."""
        state = self._zeros("prompt", {"B": 1, "P": 0, "G": 1})
        return {
            **{name: array for name, array in state.items() if name not in ("input_ids", "attention_mask")},
            **grids,
        }

    def advance(self, part: str, inputs: Arrays, state: Arrays) -> tuple[np.ndarray, Arrays]:
        """Run "prompt" or "step": the logits [B,V] of the next token, and the state after it."""
        outputs = self.graphs[part]({**inputs, **state})
        after = {name.removeprefix(NEXT): array for name, array in outputs.items() if name.startswith(NEXT)}
        return outputs["logits"], {**state, **after}

    def _zeros(self, part: str, sizes: dict[str, int], prefix: str = "") -> Arrays:
        """Zeros for the inputs of a part whose open sizes are given."""
        return {
            name: np.zeros(
                [sizes.get(size, 1) if isinstance(size, str) else size for size in shape],
                dtype=bool if name.rpartition(".")[2] in BOOLS else np.float32,
            )
            for name, shape in self.description.inputs[part].items()
            if name.removeprefix("second.").startswith(prefix)
        }


def _opened(folder: Path, description: Description, threads: int | None) -> dict[str, Graph]:
    """The graphs of a description but "text", as functions."""
    if description.engine == "executorch":
        return open_program(folder / description.graphs["grids"], description.inputs, description.outputs, threads)
    opener = OPENERS[description.engine]
    return {part: opener(folder / file, threads) for part, file in description.graphs.items() if part != TEXT}


def _log_probability(logits: np.ndarray, token: int) -> float:
    below = logits - logits.max()
    return float(below[token]) - math.log(np.exp(below).sum(dtype=np.float64))


def _read_tokenizer(file: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library's errors are plain Exceptions
        raise Failure(f"{file} cannot be read ({told(error)}); export the model again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
