"""A checkpoint written as graphs for another engine, with all that answers from them."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint import Loaded, check_files, load, locate, quiet
from .engines.description import FILE, TOKENIZER, Description
from .errors import Failure, Misuse, told
from .evaluate.familiar import FILE as FAMILIAR
from .outputs import new_folder
from .prompts import render, specials, stops
from .views.tiling import count_compatible

# Questions that stand for all in a chat template: with blanks at their ends, and without.
PROBES = ("  What is it?  ", "q")
# What weights in blocks may be rounded to.
BITS = (8, 4)
# Prompt and answer together in ExecuTorch, whose memory is planned for so many.
POSITIONS = 512


@dataclass
class Export:
    """Result of an export."""

    checkpoint: str
    out: str
    engine: str
    files: list[str]
    bytes: int
    bits: int | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def export(
    engine: str, out: str, checkpoint: str | None = None, bits: int | None = None, batch: int | None = None
) -> Export:
    """Write a checkpoint for `engine` ("onnx", "openvino", "executorch") to a new folder `out`: whole, or not at all.

    In it are three graphs (images to grids, a prompt, one token) in float32, their weights, the tokenizer, and a
    description (`engines.description`) of how they fit together. With `bits`, 8 or 4, for ONNX Runtime alone, one graph
    reads prompts and tokens, and its products have their weights in blocks of 32, the head's in 8 bits. For
    ExecuTorch they are methods of one program, for exactly `batch` rows (None: 1) and POSITIONS tokens of text at most.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    if bits is not None and (engine != "onnx" or bits not in BITS):
        raise Misuse(f"--bits is {bits} with {engine}; expected {' or '.join(map(str, BITS))}, with onnx")
    if batch is not None and (engine != "executorch" or batch < 1):
        raise Misuse(f"--batch is {batch} with {engine}; expected 1 or more, with executorch (others take any batch)")
    with new_folder("OUT", out) as unfinished:
        folder, _ = write_graphs(Form(engine, bits, batch=batch or 1), unfinished, checkpoint)
    files = sorted(Path(out).iterdir())
    size = sum(file.stat().st_size for file in files)
    return Export(str(folder), out, engine, [file.name for file in files], size, bits)


@dataclass(frozen=True)
class Form:
    """Kind of graphs: for which engine, with weights in how many bits (None: float32).

    With `weights` they also give what each token weighed (`export_parts`), in float32 alone. `batch` is of ExecuTorch,
    whose programs have so many rows.
    """

    engine: str
    bits: int | None = None
    weights: bool = False
    batch: int = 1


def write_graphs(form: Form, out: Path, checkpoint: str | None) -> tuple[Path, Description]:
    """Write what `export` writes into a folder that is there; returns the checkpoint's folder and the description.

    Raises Misuse, Failure.
    """
    with quiet():
        folder = locate(checkpoint)
        check_files(folder)
        loaded = load(folder, "cpu", "float32", prepack=False)
        if (kind := loaded.model.config.quantized) is not None:
            raise Failure(
                f"checkpoint {folder} has its weights in {kind}, which no graph can hold; expected the checkpoint that "
                "it was made from"
            )
        try:
            return folder, _write(form, loaded, folder, out)
        except Failure:
            raise
        except ValueError as error:
            raise Failure(f"checkpoint {folder}: {told(error)}") from None


def _write(form: Form, loaded: Loaded, folder: Path, out: Path) -> Description:
    model: Any = loaded.model
    processor: Any = loaded.processor
    prompts = [_prompt(loaded, images) for images in (0, 1)]
    views = _views(processor.image_processor)
    most_tokens = model.config.text_config.max_position_embeddings
    if form.engine == "executorch":
        most_tokens = min(most_tokens, POSITIONS)
        parts, graphs = _program(form, model, views, most_tokens, out)
    else:
        parts, graphs = _graphs(form, model, (views["size"], views["tile_size"]), out)
    _save_tokenizer(processor.tokenizer, out / TOKENIZER)
    if (folder / FAMILIAR).is_file():
        shutil.copyfile(folder / FAMILIAR, out / FAMILIAR)
    from .model.firebolt import control_tokens
    from .model.generation import own_settings

    own_settings(model, processor.tokenizer, sampled=False)
    description = Description(
        engine=form.engine,
        graphs=graphs,
        inputs={name: _lists(part.inputs) for name, part in parts.items()},
        outputs={name: _lists(part.outputs) for name, part in parts.items()},
        prompts=prompts,
        stops=stops(model),
        controls=control_tokens(processor.tokenizer),
        most_tokens=most_tokens,
        views=views,
        bits=form.bits,
    )
    (out / FILE).write_text(description.to_json(), encoding="utf-8")
    return description


def _graphs(form: Form, model: Any, sides: tuple[int, int], out: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Write the graphs; the parts that they are of, and their files."""
    if form.engine == "openvino":
        from .model.export.openvino_files import write_openvino

        parts = model.export_parts(*sides)
        return parts, write_openvino(parts, out)
    from .model.export.onnx_files import write_onnx

    if form.bits is None:
        parts = model.export_parts(*sides, form.weights)
        return parts, write_onnx(parts, out)
    from .model.export.block_weights import Rounding
    from .model.firebolt.fused_parts import TEXT, fused_parts, kept_whole

    parts = fused_parts(model, *sides)
    return parts, write_onnx(parts, out, {TEXT: Rounding(form.bits, kept_whole(model))})


def _program(
    form: Form, model: Any, views: Mapping[str, Any], most_tokens: int, out: Path
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Write an ExecuTorch program; the parts that it has as methods, and its file for each."""
    from .model.export.executorch_files import Room, bounded_parts, check_executorch, write_executorch

    room = Room(form.batch, _most_tiles(views), most_tokens)
    check_executorch()
    parts = bounded_parts(model.export_parts(views["size"], views["tile_size"]), room)
    return parts, write_executorch(parts, out)


def _most_tiles(views: Mapping[str, Any]) -> int:
    """Count the tiles that an image can have. Raises Failure where there is no bound."""
    if views["tiling"] == "native":
        return views["max_tiles"]
    if not views["do_resize"]:
        raise Failure("the checkpoint cuts images of any size into as many tiles; expected one with do_resize")
    return count_compatible(views["size"], views["size"], views["tile_size"], views["tile_overlap"])


def _lists(named: Mapping[str, tuple]) -> dict[str, list]:
    return {name: list(shape) for name, shape in named.items()}


def _prompt(loaded: Loaded, images: int) -> dict[str, Any]:
    """Find what stands before and after a question, and how the tokenizer takes them.

    Raises Failure for a chat template that does something else with a question than to put it in.
    """
    found = []
    for probe in PROBES:
        text = probe
        if getattr(loaded.processor, "chat_template", None) is not None:
            content = [*[{"type": "image"}] * images, {"type": "text", "text": probe}]
            text = render(loaded, [{"role": "user", "content": content}])
        before, held, after = text.partition(probe)
        found.append((before, after) if held else None)
    if None in found or found[0] != found[1]:
        raise Failure("the checkpoint's chat template changes the question; expected one that puts it in as it is")
    before, after = found[0]
    return {"before": before, "after": after, **specials(loaded, before + PROBES[0] + after)}


def _views(processor: Any) -> dict[str, Any]:
    """The settings of an image processor that decide what a model sees, as plain values."""
    from .views.cutting import CUTTING, NORMALISING

    settings = {name: getattr(processor, name) for name in (*CUTTING, *NORMALISING)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {**plain, "resample": int(settings["resample"]), "size": processor.size["height"]}


def _save_tokenizer(tokenizer: Any, file: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Failure(f"the checkpoint's tokenizer is a {type(tokenizer).__name__}; expected one with a tokenizer.json")
    backend.save(str(file))
