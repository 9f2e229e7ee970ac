"""A checkpoint of the original Firebolt-VL, written anew as one of ours."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from .checkpoint import check_files, check_report, files_checked, locate, original_processor, quiet
from .errors import Failure, Misuse, told
from .outputs import check_place

INSERTS = ("prepend", "mean_at_token")


@dataclass
class Conversion:
    """Result of a conversion: every key of the checkpoint is either used or listed as dead."""

    source: str
    out: str
    keys: int
    used: int
    dead: list[str]
    """In the original's files, without influence on what it answers; left out."""
    parameters: int
    dtype: str
    ssm: str
    kernel_taps: int | None
    insert: str | None
    """Where a V2 checkpoint puts an image; None for the first version, which inserts nothing."""

    def to_dict(self) -> dict:
        return asdict(self)


def convert(
    source: str,
    out: str,
    kernel_taps: int | None = None,
    decoder: str | None = None,
    vision: str | None = None,
    insert: str | None = None,
) -> Conversion:
    """Write the original's checkpoint `source` to the new folder `out`, which is there whole or not at all.

    `kernel_taps` None runs the S4 kernel as long as the text; 512 is the original's truncation. `decoder` and `vision`
    are folders or hub ids with the configurations of the backbones, where the checkpoint's own names lead nowhere.
    `insert` says where a V2 checkpoint puts an image: "prepend" or "mean_at_token".

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Misuse(f"OUT is {out}, which exists already; name a new folder")
    check_place("OUT", out)
    if kernel_taps is not None and kernel_taps < 1:
        raise Misuse(f"--kernel-taps is {kernel_taps}; expected at least 1")
    if insert is not None and insert not in INSERTS:
        raise Misuse(f"--insert is {insert}; expected {' or '.join(INSERTS)}")
    folder = locate(source)
    described = check_files(folder)
    from .model.firebolt.original import is_original

    if not is_original(described):
        raise Failure(f"checkpoint {folder} is not one of the original Firebolt-VL; there is nothing to convert")
    with quiet():
        unfinished = target.absolute().with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            found, model = _load(folder, described, kernel_taps, decoder, vision, insert)
            model.save_pretrained(unfinished)
            original_processor(folder, found.config).save_pretrained(unfinished)
            unfinished.replace(target)
        except Failure:
            raise
        except Exception as error:  # whatever a foreign file may provoke in the libraries that read it
            raise Failure(f"checkpoint {folder} cannot be converted: {told(error)}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    cmm = found.config.connector_config()
    return Conversion(
        source=str(folder),
        out=out,
        keys=found.keys,
        used=found.keys - len(found.dead),
        dead=found.dead,
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        ssm=cmm.ssm,
        kernel_taps=cmm.kernel_taps,
        insert=getattr(cmm, "insert", None),
    )


def _load(
    folder: Path,
    described: dict,
    kernel_taps: int | None,
    decoder: str | None,
    vision: str | None,
    insert: str | None,
):
    from .model import FireboltForConditionalGeneration
    from .model.checkpoint_files import CONFIG, read_shapes
    from .model.checkpoint_sizes import check_model
    from .model.firebolt.original import load_original
    from .model.loading import Opened

    with files_checked():
        shapes = read_shapes(folder)
        given = [_backbone(*named, shapes) for named in (("--decoder", decoder), ("--vision", vision))]
        found = load_original(Opened(folder, described, shapes), *given, kernel_taps, insert)
        check_model(lambda: FireboltForConditionalGeneration(found.config), shapes, folder / CONFIG)
    model, report = FireboltForConditionalGeneration.from_pretrained(
        None, config=found.config, state_dict=found.state, dtype="auto", output_loading_info=True
    )
    check_report(folder, report)
    return found, model


def _backbone(option: str, name: str | None, shapes):
    """The configuration of the backbone that an option names: a folder, or a model on the hub."""
    from .model.checkpoint_files import CONFIG
    from .model.firebolt.original import read_backbone
    from .model.places import PlaceError, find

    if name is None:
        return None
    try:
        return read_backbone(find(name, (CONFIG,)), shapes)
    except PlaceError as error:
        raise Misuse(f"{option}: {error}") from None
