"""Places of low-rank adapters (peft) in a model, and models that cannot have them."""

from collections.abc import Iterable, Sequence

from torch import nn

from .cpu.int4 import Int4Linear
from .cpu.joined import PartOfJoined
from .cpu.prepacking import PrepackedLinear
from .cpu.quantization import Int8Linear

# The parts of both models by the beginnings of their names, the more special ones first.
PARTS = {
    "vision": ("vision_tower.", "encoder.dino."),
    "decoder": ("language_model.", "llm."),
    "connector": ("connector.", "encoder.", "dino_to_llm", "llm_to_query"),
}
ORDER = (
    "expected a model whose layers are numbers: load it without them, add adapters, merge them (merge_and_unload), and "
    "then make it small or fast"
)


def lora_targets(model: nn.Module, parts: Sequence[str] = ("decoder",)) -> list[str]:
    """Return the names of the layers that low-rank adapters go beside, for `LoraConfig(target_modules=...)` of peft.

        config = LoraConfig(r=16, target_modules=lora_targets(model, ("decoder", "connector")))
        model = get_peft_model(model, config)

    parts: some of "decoder" (without its head), "connector" (its linear maps, both FiLMs and the channel mixing among
    them, not the parameters of its state-space model; in the foveated model the maps of queries and visual tokens) and
    "vision". A layer that a quantiser of another library holds is a layer like any other (QLoRA).

    Raises ValueError for other parts, and for a model whose weights are in 8 or 4 bits or prepacked.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        found = ", ".join(unknown) or "empty"
        raise ValueError(f"lora_targets: parts is {found}; expected some of {', '.join(PARTS)}")
    check_adaptable("lora_targets", model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and part_of(name) in parts
        # An attention module of PyTorch's own reads this one's weights and never calls it.
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]
    if not targets:
        raise ValueError(f"lora_targets: model is a {type(model).__name__}; expected a model of firebolt_vl.model")
    return targets


def part_of(name: str) -> str | None:
    """Return the part that a module or parameter of this name belongs to; None for the head."""
    name = name.removeprefix("model.")
    return next((part for part, beginnings in PARTS.items() if name.startswith(beginnings)), None)


def _held_otherwise(modules: Iterable[nn.Module]) -> str | None:
    """Say how the weights of one of the modules are held, if that is in 8 or 4 bits or prepacked."""
    for module in modules:
        if isinstance(module, PartOfJoined):
            return _held_otherwise([module.whole])
        if isinstance(module, Int8Linear | Int4Linear):
            return f"its weights in {8 if isinstance(module, Int8Linear) else 4} bits"
        if isinstance(module, PrepackedLinear):
            return "its weights prepacked"
    return None


def check_adaptable(where: str, model: nn.Module) -> None:
    """Raise ValueError for a model whose weights are in 8 or 4 bits or prepacked."""
    if (how := _held_otherwise(model.modules())) is not None:
        raise ValueError(f"{where}: model has {how}; {ORDER}")


def check_adapters(where: str, model: nn.Module) -> None:
    """Raise ValueError where an adapter stands around a layer whose weights are in 8 or 4 bits or prepacked."""
    wrapped = (getattr(module, "base_layer", None) for module in model.modules())
    if (how := _held_otherwise(layer for layer in wrapped if isinstance(layer, nn.Module))) is not None:
        raise ValueError(f"{where}: model has adapters, and {how}; {ORDER}")


__all__ = ["check_adaptable", "check_adapters", "lora_targets", "part_of"]
