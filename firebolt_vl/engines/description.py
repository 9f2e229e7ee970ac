"""Description of an exported model: one JSON file that says how its graphs and its tokenizer fit together."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import Failure

FILE, TOKENIZER, FORMAT = "engine.json", "tokenizer.json", 1


@dataclass(frozen=True)
class Description:
    """Everything that a runner has to know beside the graphs.

    engine        "onnx", "openvino" or "executorch"
    graphs        part -> file: "grids", "prompt" and "step", or "grids" and "text", which reads prompts and tokens; of
                  ExecuTorch one file, of which each part is a method
    inputs        part -> name -> shape: numbers, and letters for open sizes (B rows, I images, M tiles, G grids, T
                  tokens, P positions before, S positions that there is room for)
    outputs       part -> name -> shape; what is called next.NAME is NAME of the call after it
    prompts       for no image and for one: the text before and after the question, and whether the tokenizer adds its
                  own tokens
    stops         tokens that end an answer
    controls      what no question may spell
    most_tokens   positions that prompt and answer have together
    views         settings of the image processor
    bits          8 or 4 for weights in blocks, None for float32
    """

    engine: str
    graphs: dict[str, str]
    inputs: dict[str, dict[str, list]]
    outputs: dict[str, dict[str, list]]
    prompts: list[dict[str, Any]]
    stops: list[int]
    controls: list[str]
    most_tokens: int
    views: dict[str, Any]
    bits: int | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_description(folder: Path) -> Description:
    """Read the description in a folder. Raises Failure where there is none, or one of another format."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failure(
            f"checkpoint {folder} has no {FILE}; expected a folder that firebolt export wrote, or --engine torch"
        ) from None
    except (OSError, ValueError) as error:
        raise Failure(f"{file} cannot be read ({error}); export the model again") from None
    names = [field.name for field in fields(Description)]
    if not isinstance(found, dict) or found.get("format") != FORMAT or sorted(found) != sorted(names):
        raise Failure(f"{file} is of another version of firebolt-vl; expected format {FORMAT}; export the model again")
    return Description(**found)
