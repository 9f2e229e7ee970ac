"""Loading of a foveated model, and of a checkpoint of which nobody said whose it is."""

from pathlib import Path

from .checkpoint import Loaded, check_report, check_views, files_checked, load, make_small
from .errors import Failure, Misuse, told


def load_any(folder: Path, device: str, dtype: str = "auto", quantize: str | None = None) -> Loaded:
    """Load a checkpoint of either model, as `checkpoint.load` and `load_foveated` do.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    from .model.foveated.original import is_foveated

    with files_checked():
        foveated = is_foveated(folder)
    if not foveated:
        return load(folder, device, dtype, quantize)
    if dtype != "auto":
        raise Misuse(f"--dtype is {dtype}, but {folder} is a foveated model, which has its own; leave it out")
    return load_foveated(folder, device, quantize)


def load_foveated(folder: Path, device: str, quantize: str | None = None) -> Loaded:
    """Load a foveated model, ours or a folder with the original's weights and its decoder's tokenizer.

    `quantize` is as in `checkpoint.load`; what is bfloat16 on a CPU is prepacked.
    """
    from .model import FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
    from .model.checkpoint_files import (
        CONFIG,
        PROCESSORS,
        TOKENIZERS,
        CheckpointError,
        check_folder,
        check_parts,
        read_json,
    )
    from .model.loading import load_tokenizer

    with files_checked():
        check_folder(folder)
        described = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
        ours = described.get("model_type") == FoveatedVLMConfig.model_type
        if not ours and "model_type" in described:
            raise Failure(f"checkpoint {folder} is of a {described['model_type']!r} model; expected a foveated model")
        check_parts(folder, ("tokenizer", TOKENIZERS), *((("processor", PROCESSORS),) if ours else ()))
        try:
            how = {"dtype": "auto", "ignore_mismatched_sizes": True} if ours else {}
            model, report = FoveatedVLM.from_pretrained(folder, output_loading_info=True, **how)
            if ours:
                processor = FoveatedProcessor.from_pretrained(folder)
            else:
                processor = FoveatedProcessor(FoveatedImageProcessor(), load_tokenizer(folder))
            check_views(model, processor, folder)
        except (Failure, CheckpointError):
            raise
        except Exception as error:  # whatever a foreign file may provoke in the libraries that read it
            raise Failure(f"checkpoint {folder} cannot be loaded: {told(error)}") from None
    check_report(folder, report)
    model = model.eval().to(device)
    make_small(model, folder, quantize)
    return Loaded(model, processor)
