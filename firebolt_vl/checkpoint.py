"""Loading of a checkpoint from anywhere: what is wrong with it is said in one line, and nothing is unpickled."""

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import embedded_checkpoint
from .errors import Failure, told

# Patches of a view, against those that a vision tower was made for: positions are interpolated, so that some are fine.
MOST_TIMES_MORE, MOST_PATCHES = 16, 4096


def locate(checkpoint: str | None) -> Path:
    """The folder of a checkpoint: of the embedded one for None and "tiny", else what `model.places.find` says."""
    if checkpoint is None or (checkpoint == "tiny" and not Path(checkpoint).exists()):
        return _embedded()
    from .model.places import PlaceError, find

    try:
        return find(checkpoint)
    except PlaceError as error:
        raise Failure(f"checkpoint {error}") from None


def _embedded() -> Path:
    try:
        return embedded_checkpoint()
    except FileNotFoundError as error:
        raise Failure(f"{error}; or name another checkpoint with --checkpoint") from None


@contextmanager
def files_checked():
    """Turn errors of a checkpoint's files into a Failure."""
    from .model.checkpoint_files import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise Failure(str(error)) from None


def check_files(folder: Path) -> dict:
    """The checkpoint's configuration, once all its files are there, plain, whole and of one size with it.

    Of the weights only headers are read, and nothing is built.
    """
    from .model import FireboltConfig
    from .model.checkpoint_files import (
        CONFIG,
        PROCESSORS,
        TOKENIZERS,
        check_folder,
        check_parts,
        read_json,
        read_shapes,
    )
    from .model.checkpoint_sizes import check_config
    from .model.firebolt.original import ORIGINAL_MODEL_TYPES, is_original

    with files_checked():
        check_folder(folder)
        config = read_json(folder / CONFIG)
        if config.get("model_type") not in (FireboltConfig.model_type, *ORIGINAL_MODEL_TYPES):
            raise Failure(f"checkpoint {folder} is of a {config.get('model_type')!r} model; expected a Firebolt-VL")
        check_config(config, read_shapes(folder), folder / CONFIG)
        # The original's images are cut by a rule that no file has to tell.
        processor = () if is_original(config) else (("processor", PROCESSORS),)
        check_parts(folder, ("tokenizer", TOKENIZERS), *processor)
    return config


@contextmanager
def quiet():
    """Silence transformers' own warnings and progress bars: what is wrong is said here, in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def choose_device(name: str, local: int = 0) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda"; Failure where there is none.

    Of several processes on a machine, number `local` makes the GPU of that number the current one, in turn where there
    are fewer of them.
    """
    import torch

    there = torch.cuda.is_available()
    if there and local and name != "cpu":
        torch.cuda.set_device(local % torch.cuda.device_count())
    if name == "auto":
        return "cuda" if there else "cpu"
    if name == "cuda" and not there:
        why = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        raise Failure(f"--device is cuda, but this PyTorch ({torch.__version__}) {why}; use --device cpu, or auto")
    return name


class Loaded(NamedTuple):
    """A model in eval mode on its device, and its processor."""

    model: object
    processor: object


def load(
    folder: Path,
    device: str,
    dtype: str = "auto",
    quantize: str | None = None,
    compile_step: bool = False,
    prepack: bool = True,
) -> Loaded:
    """Load a checkpoint's folder. Raises Failure where a file is missing or broken, or they do not belong together.

    `dtype` "auto" is the checkpoint's own, except that on a CPU half precision that is slower there than float32 is
    widened (`speeds.runs_in`; small models are not worth the measurement). `quantize` "int8" or "int4" puts the weights
    that a token passes into 8 or 4 bits, where the checkpoint does not have them so already; what stays bfloat16 on a
    CPU is prepacked, unless `prepack` is False. `compile_step`:
    torch.compile of the generation step, at the first answer.
    """
    config = check_files(folder)
    from .model import FireboltForConditionalGeneration
    from .model.checkpoint_files import CheckpointError
    from .model.firebolt.original import is_original

    try:
        model, report = FireboltForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        processor = original_processor(folder, model.config) if is_original(config) else _processor(folder)
        check_views(model, processor, folder)
    except (Failure, CheckpointError) as error:
        raise Failure(str(error)) from None
    except Exception as error:  # whatever a foreign file may provoke in the libraries that read it
        raise Failure(f"checkpoint {folder} cannot be loaded: {told(error)}") from None
    check_report(folder, report)
    model = model.eval().to(device)
    if dtype == "auto" and device == "cpu":
        _widen_if_faster(model)
    make_small(model, folder, quantize, prepack)
    if compile_step:
        model.compile_step()
    return Loaded(model, processor)


def make_small(model, folder: Path, quantize: str | None, prepack: bool = True) -> None:
    """Quantise and prepack a loaded model, in place. Raises Failure where the checkpoint is in other bits already."""
    from .model import prepack_weights
    from .model.cpu.quantized_models import QUANTIZE

    there = model.config.quantized
    if quantize is not None and there not in (None, quantize):
        raise Failure(
            f"--quantize is {quantize}, and checkpoint {folder} has its weights in {there} already; expected the "
            f"checkpoint that it was made from, or --quantize {there}"
        )
    if quantize is not None and there is None:
        try:
            QUANTIZE[quantize](model)
        except ValueError as error:
            raise Failure(f"checkpoint {folder}: {told(error)}") from None
    if prepack:
        prepack_weights(model)


def _widen_if_faster(model) -> None:
    from . import speeds

    own = str(model.dtype).removeprefix("torch.")
    if own in speeds.HALVES and model.num_parameters() >= speeds.LARGE and speeds.runs_in(own) == "float32":
        model.float()


def check_report(folder: Path, report: dict) -> None:
    """Check that no tensor is missing, left over or of another shape: such a model would answer nonsense."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise Failure(
            f"checkpoint {folder}: {name} has shape {list(found)}; expected {list(wanted)} by config.json "
            f"({len(mismatched)} such tensors); the weights and config.json do not belong together"
        )
    for what, names in (("lacks", report["missing_keys"]), ("has one too many:", report["unexpected_keys"])):
        if names := sorted(names):
            raise Failure(
                f"checkpoint {folder} {what} {names[0]} ({len(names)} such tensors); the weights and config.json do "
                "not belong together"
            )


def check_views(model, processor, folder: Path) -> None:
    """Check that views have about as many patches as the vision tower was made for, which bounds the memory."""
    vision, size = model.config.vision_config, processor.image_processor.size["height"]
    patches, own = ((side // vision.patch_size) ** 2 for side in (size, vision.image_size))
    if patches > max(MOST_TIMES_MORE * own, MOST_PATCHES):
        raise Failure(
            f"checkpoint {folder}: its processor makes views of {size:,} pixels; expected about {vision.image_size:,}, "
            "by config.json's vision tower; they do not belong together"
        )


def _processor(folder: Path):
    from .model import FireboltProcessor

    return FireboltProcessor.from_pretrained(folder)


def original_processor(folder: Path, config):
    """Make the original's processor for a model of `config`: a tokenizer beside what SigLIP does with images.

    It saves the tokenizer alone. The first version has a tiling of its own; V2 sees the whole image.
    """
    from .model import FireboltImageProcessor, FireboltProcessor
    from .model.firebolt.original import original_chat_template
    from .model.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = original_chat_template(tokenizer.chat_template)
    if config.grids == "views":
        return FireboltProcessor(FireboltImageProcessor(tiling="compatible"), tokenizer)
    side = config.vision_config.image_size
    images = FireboltImageProcessor(size={"height": side, "width": side}, tile_size=side, max_tiles=1)
    return FireboltProcessor(images, tokenizer)
