"""Check of a tokenizer: whether the page's script gives its tokens."""

from typing import Any

from ..errors import Failure

# Settings of a byte-level BPE that change tokens, and what they have to be.
PLAIN = {"dropout": None, "byte_fallback": False, "fuse_unk": False}
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
TEMPLATES = ("ByteLevel", "TemplateProcessing")
OF_ADDED = ("single_word", "lstrip", "rstrip")


def check_tokenizer(described: dict[str, Any]) -> None:
    """Raise Failure for a tokenizer.json of another kind than byte-level BPE with GPT-2's pattern and no normaliser."""
    model, template = described["model"], described.get("post_processor")
    _check("model.type", model.get("type"), "BPE")
    for name, value in PLAIN.items():
        _check(f"model.{name}", model.get(name) or value, value)
    for name in AFFIXES:
        _check(f"model.{name}", model.get(name) or None, None)
    _check("normalizer", described.get("normalizer"), None)
    pieces = described.get("pre_tokenizer") or {}
    for name, value in BYTE_LEVEL.items():
        _check(f"pre_tokenizer.{name}", pieces.get(name), value)
    if template is not None and template.get("type") not in TEMPLATES:
        _check("post_processor.type", template.get("type"), TEMPLATES[-1])
    _check("decoder.type", (described.get("decoder") or {}).get("type"), "ByteLevel")
    for token in described.get("added_tokens", ()):
        for name in OF_ADDED:
            _check(f"added_tokens {token['content']} {name}", token.get(name, False), False)
    missing = set(range(256)) - {_byte(text) for text in model["vocab"] if len(text) == 1}
    _check("bytes without a token", len(missing), 0)


def _byte(letter: str) -> int | None:
    """The byte that a letter of a byte-level vocabulary stands for."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    code = ord(letter)
    if code in printed:
        return code
    return others[code - 256] if 256 <= code < 256 + len(others) else None


def _check(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise Failure(
            f"the checkpoint's tokenizer.json has {name} {value!r}; expected {expected!r}, as pages read no other"
        )
