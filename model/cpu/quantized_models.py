"""Models whose weights are in 8 or 4 bits: which layers, made so after loading or loaded so from a checkpoint."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..compat.tying import untie
from .copies import refuse_adapters
from .int4 import Int4Linear, empty_int4, int4_form, round_linear_int4
from .joined import join, joinable
from .mapped_memory import release_file_pages
from .prepacking import is_prepacked
from .quantization import Int8Linear, empty_int8, int8_form, round_linear

Model = TypeVar("Model", bound=PreTrainedModel)
HEADS = ("lm_head", "llm.lm_head")


def quantized_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers of a model that are quantised, by name: those that a generated token passes.

    The decoder's, its head, and of each layer of Firebolt-VL's modulator the queries, feed-forward block and channel
    mixing. The rest stays: vision tower and grid side run once a prompt, the parameters of the state-space model need
    their bits, and the embedding is read a row at a time.
    """
    inside = ["model.language_model.", "llm.", "lm_head"]
    if getattr(model.config, "connector", None) == "cmm":
        parts = ("q_proj", "ffn.", "ssm.output", "query.ssm.output")
        inside += [f"model.connector.{layer}{part}" for layer in ("", "second.") for part in parts]
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith(tuple(inside))
    }


def quantize_int8(model: Model) -> Model:
    """Put the weights that generation reads at every token into 8 bits, in place; returns the model.

    Layer by layer, so that no second copy of the weights is ever there. The model can generate and run forward, is
    moved by `.to`, and is saved by `save_pretrained`, half the size of one in bfloat16; it has no gradients for those
    weights. Logits drift by a few hundredths of their spread (`logits_drift`).

    Raises ValueError for a model that is quantised already, is prepacked, or has adapters (peft).
    """
    return _quantize(model, "int8")


def quantize_int4(model: Model) -> Model:
    """Put the weights that generation reads at every token into 4 bits, in place; returns the model.

    In groups of 32 of a row, each with a bfloat16 scale (docs/mathematics.md, section 10); the head, which decides
    between near words, in 8 bits. Else as `quantize_int8`; logits drift more.

    Raises ValueError for a model that is quantised already, is prepacked, has adapters (peft), or weights that are not
    finite.
    """
    return _quantize(model, "int4")


def _quantize(model: Model, kind: str) -> Model:
    where = f"quantize_{kind}"
    if (bits := bits_of(model)) is not None:
        raise ValueError(f"{where}: model has its weights in {bits} bits; expected one that is not quantised")
    if is_prepacked(model):
        raise ValueError(f"{where}: model has its weights prepacked; expected one that is not: quantise before that")
    refuse_adapters(where, model)
    layers = quantized_linears(model)
    if kind == "int4":
        for name, linear in layers.items():
            if name not in HEADS and not linear.weight.isfinite().all():
                raise ValueError(f"{where}: model has inf or nan in {name}.weight; expected finite weights")
            release_file_pages(linear.weight)
    model.requires_grad_(False)
    for name, linear in layers.items():
        (round_linear if kind == "int8" or name in HEADS else round_linear_int4)(linear)
    _mark(model, kind)
    pack_quantized(model)
    return model


def hold_quantized(model: PreTrainedModel, kind: str) -> None:
    """Give a model that is being built the layers that a checkpoint of this kind ("int8", "int4") fills."""
    for name, linear in quantized_linears(model).items():
        (empty_int8 if kind == "int8" or name in HEADS else empty_int4)(linear)
    model.requires_grad_(False)
    _mark(model, kind)


def _mark(model: PreTrainedModel, kind: str) -> None:
    model.config.quantized = kind
    untie(model)  # the head has weights of its own now


def pack_quantized(model: nn.Module) -> None:
    """Bring integers and codes into the layout of this machine's kernels, layer by layer.

    Those of layers that read the same input become one layer's (`joined`).
    """
    if not is_quantized(model):
        return
    model.requires_grad_(False)
    for kind, form in ((Int8Linear, int8_form), (Int4Linear, int4_form)):
        for parts in joinable(model, kind):
            if all(part.can_pack for part in parts):
                join(parts, form)
    for module in _quantized_layers(model):
        module.pack()


def _quantized_layers(model: nn.Module) -> Iterator[Int8Linear | Int4Linear]:
    return (module for module in model.modules() if isinstance(module, Int8Linear | Int4Linear))


def bits_of(model: nn.Module) -> int | None:
    """Return in how many bits most weights of a model are, 8 or 4; None where it is not quantised."""
    kinds = {type(module) for module in _quantized_layers(model)}
    return 4 if Int4Linear in kinds else 8 if kinds else None


def is_quantized(model: nn.Module) -> bool:
    return bits_of(model) is not None


QUANTIZE: dict[str, Callable] = {"int8": quantize_int8, "int4": quantize_int4}


@torch.no_grad()
def logits_drift(model: nn.Module, quantized: nn.Module, **inputs: Tensor) -> dict[str, float]:
    """Measure how far the logits of `quantized` lie from those of `model` on the same inputs.

    "relative": the root mean square of the difference over that of the centred logits; "same_token": the share of
    columns with the same most likely token. Padding is left out.
    """
    wanted, found = (which(**inputs, use_cache=False).logits.float() for which in (model, quantized))
    if (mask := inputs.get("attention_mask")) is not None:
        wanted, found = wanted[mask.bool()], found[mask.bool()]
    spread = (wanted - wanted.mean(-1, keepdim=True)).square().mean().sqrt()
    return {
        "relative": ((found - wanted).square().mean().sqrt() / spread).item(),
        "same_token": (found.argmax(-1) == wanted.argmax(-1)).float().mean().item(),
    }


__all__ = [
    "QUANTIZE",
    "bits_of",
    "hold_quantized",
    "is_quantized",
    "logits_drift",
    "pack_quantized",
    "quantize_int4",
    "quantize_int8",
    "quantized_linears",
]
