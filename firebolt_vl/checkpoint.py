"""Loading a checkpoint that may be anything: what is wrong with it is said in one line, and nothing is unpickled."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import embedded_checkpoint
from .errors import Failure, first_line
from .evaluate.reading import parse_json, read_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
# All that is fetched of a model on the hub.
NEEDED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(checkpoint: str | None) -> Path:
    """The folder of a checkpoint: the embedded one for None, else a local folder, else the hub model of that id."""
    if checkpoint is None:
        try:
            return embedded_checkpoint()
        except FileNotFoundError as error:
            raise Failure(f"{error}; or name another checkpoint with --checkpoint") from None
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise Failure(f"checkpoint {checkpoint} is a file; name the folder that it lies in")
    if not HUB_ID.fullmatch(checkpoint):
        raise Failure(f"checkpoint {checkpoint}: there is no such folder; check the path")
    return _from_hub(checkpoint)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=NEEDED))
    except Exception as error:  # not found, gated, offline, no connection: each a class of its own
        raise Failure(
            f"checkpoint {name}: no such folder, and the hub does not give such a model ({first_line(error)}); "
            "check the name and the connection"
        ) from None


def check_files(folder: Path, pickles: bool = False) -> dict:
    """The checkpoint's configuration, once all its files are there and whole; only headers of the weights are read.

    `pickles`: whether weights in pickle files, which are not looked into here, will do.
    """
    from .model import FireboltConfig
    from .model.original import ORIGINAL_MODEL_TYPE, is_original

    config = read_json(folder / "config.json")
    if config.get("model_type") not in (FireboltConfig.model_type, ORIGINAL_MODEL_TYPE):
        raise Failure(f"checkpoint {folder} is of a {config.get('model_type')!r} model; a Firebolt-VL is wanted")
    if (folder / WEIGHTS).is_file():
        _check_tensors(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        _check_shards(folder)
    elif found := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        if not pickles or not any((folder / name).is_file() for name in (PICKLE, f"{PICKLE}.index.json")):
            raise Failure(
                f"checkpoint {folder} has its weights in pickle files ({found[0]}), which can run code when they are "
                "opened and are refused; get a safetensors copy of it, or make one (firebolt convert)"
            )
    else:
        raise Failure(f"checkpoint {folder} has no weights ({WEIGHTS}); copy or download all of it again")
    needed = {"tokenizer": TOKENIZERS, "processor": PROCESSORS}
    if is_original(config):
        del needed["processor"]  # its images are cut by a rule that no file has to tell
    for kind, names in needed.items():
        if not any((folder / name).is_file() for name in names):
            raise Failure(f"checkpoint {folder} has no {kind} ({names[0]}); copy or download all of it again")
    return config


def read_json(path: Path) -> dict:
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        raise Failure(f"checkpoint {path.parent} has no {path.name}; is it a checkpoint, and all of it?") from None
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read ({first_line(error)}); copy or download it again") from None
    if not isinstance(content, dict):
        raise Failure(f"{path} holds no JSON object; copy or download it again")
    return content


def _check_tensors(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file that is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise Failure(f"{path} is damaged or incomplete ({first_line(error)}); copy or download it again") from None


def _check_shards(folder: Path) -> None:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise Failure(f"{folder / INDEX} has no weight_map; copy or download it again")
    shards = sorted(set(weight_map.values()))
    if outside := [name for name in shards if Path(name).name != name or not name.endswith(".safetensors")]:
        raise Failure(f"{folder / INDEX} names {outside[0]}, which is no safetensors file of the checkpoint's folder")
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise Failure(
            f"checkpoint {folder} lacks {len(missing)} of its {len(shards)} weight files ({missing[0]}); copy or "
            "download all of it again"
        )
    for shard in shards:
        wanted = {tensor for tensor, name in weight_map.items() if name == shard}
        if lacking := sorted(wanted - _check_tensors(folder / shard)):
            raise Failure(f"{folder / shard} lacks {lacking[0]}; copy or download it again")


@contextmanager
def quiet():
    """Without transformers' own warnings and progress bars: what is wrong is said here, in one line."""
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


def choose_device(name: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda"; Failure where there is none."""
    import torch

    there = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if there else "cpu"
    if name == "cuda" and not there:
        why = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        raise Failure(f"--device cuda: this PyTorch ({torch.__version__}) {why}; use --device cpu, or auto")
    return name


class Loaded(NamedTuple):
    """A model in eval mode on its device, and its processor."""

    model: object
    processor: object


def load(
    folder: Path, device: str, dtype: str = "auto", quantize: str | None = None, compile_step: bool = False
) -> Loaded:
    """Load a checkpoint's folder. Raises Failure where a file is missing or broken, or they do not belong together.

    `dtype` "auto" is the checkpoint's own, except that on a CPU half precision that is slower there than float32 is
    widened (`speeds.runs_in`; small models are not worth the measurement). `quantize` "int8" puts the weights that a
    token passes into 8 bits; what stays bfloat16 on a CPU is prepacked. `compile_step`: torch.compile of the generation
    step, at the first answer.
    """
    config = check_files(folder)
    from .model import FireboltForConditionalGeneration, prepack_weights, quantize_int8
    from .model.original import is_original

    try:
        model, report = FireboltForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        processor = original_processor(folder) if is_original(config) else _processor(folder)
    except Exception as error:  # whatever a foreign file may provoke in the libraries that read it
        raise Failure(f"checkpoint {folder} cannot be loaded: {first_line(error)}") from None
    check_report(folder, report)
    model = model.eval().to(device)
    if dtype == "auto" and device == "cpu":
        _widen_if_faster(model)
    if quantize == "int8":
        quantize_int8(model)
    prepack_weights(model)
    if compile_step:
        model.compile_step()
    return Loaded(model, processor)


def _widen_if_faster(model) -> None:
    from . import speeds

    own = str(model.dtype).removeprefix("torch.")
    if own in speeds.HALVES and model.num_parameters() >= speeds.LARGE and speeds.runs_in(own) == "float32":
        model.float()


def check_report(folder: Path, report: dict) -> None:
    """A tensor that is missing, left over or of another shape would leave a model that answers nonsense."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise Failure(
            f"checkpoint {folder}: {name} has shape {list(found)}, config.json makes it {list(wanted)} "
            f"({len(mismatched)} such tensors); the weights and config.json do not belong together"
        )
    for what, names in (("lacks", report["missing_keys"]), ("has one too many:", report["unexpected_keys"])):
        if names := sorted(names):
            raise Failure(
                f"checkpoint {folder} {what} {names[0]} ({len(names)} such tensors); the weights and config.json do "
                "not belong together"
            )


def _processor(folder: Path):
    from .model import FireboltProcessor

    return FireboltProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def original_processor(folder: Path):
    """The original saves a tokenizer beside SigLIP's image processor; its tiles are cut by its own rule."""
    from transformers import AutoTokenizer

    from .model import FireboltImageProcessor, FireboltProcessor
    from .model.original import original_chat_template

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.chat_template = original_chat_template(tokenizer.chat_template)
    return FireboltProcessor(FireboltImageProcessor(tiling="compatible"), tokenizer)
