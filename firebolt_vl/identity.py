"""Identity of what answered a question: enough to tell another model, and another way of asking it, apart."""

import hashlib
from pathlib import Path

from .errors import Failure
from .files.writing import words
from .version import __version__

# The files of a checkpoint that its answers depend on, beside weights, tokenizer and processor.
TOLD = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def digest(folder: Path) -> str:
    """Hash all that answers depend on in a checkpoint's folder, weights and all: 16 hexadecimal digits of SHA-256."""
    from .model.checkpoint_files import PROCESSORS, TOKENIZERS

    names = (*TOLD, *TOKENIZERS, *PROCESSORS)
    files = sorted({*(folder / name for name in names), *folder.glob("*.safetensors")})
    whole = hashlib.sha256()
    for file in files:
        if not file.is_file():
            continue
        try:
            with file.open("rb") as opened:
                whole.update(f"{file.name}\0".encode() + hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise Failure(f"{file} cannot be read ({words(error)}); copy or download it again") from None
    return whole.hexdigest()[:16]


def answered_by(
    folder: Path, checkpoint: str | None, dtype: str, quantize: str | None, seed: int | None, max_new_tokens: int
) -> dict:
    """Return what each row of answers records. `dtype` "auto" is left out: its value is known after loading."""
    by = {"checkpoint": checkpoint or folder.name, "digest": digest(folder), "quantize": quantize, "seed": seed}
    by |= {"max_new_tokens": max_new_tokens, "version": __version__}
    return by if dtype == "auto" else {**by, "dtype": dtype}
