"""The model that a run starts from, which of its parts learn, and what of it is written down."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..model import (
    CHAT_TEMPLATE,
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltImageProcessor,
    FireboltProcessor,
)
from ..model.firebolt.original import original_chat_template
from ..model.loading import load_tokenizer
from .config import RowsConfig, TrainConfig
from .errors import ConfigError

# Of LFM2: attention, short convolution, feed-forward.
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"]
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": LORA_TARGETS}
ADAPTER = "default"
IMAGE_TOKEN = "<image>"


def start_model(config: TrainConfig) -> tuple[FireboltForConditionalGeneration, FireboltProcessor]:
    """The model, in float32, and its processor. Raises ConfigError."""
    name, key = next(
        (value, key) for key in ("model", "decoder", "tokenizer") if (value := getattr(config, key)) is not None
    )
    try:
        return _checkpoint(config) if config.model is not None else _new_model(config)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # missing, gated, offline, of another kind
        raise ConfigError(f"{key} is {name}, which cannot be loaded ({str(error).splitlines()[0]})") from error


def _checkpoint(config: TrainConfig) -> tuple[FireboltForConditionalGeneration, FireboltProcessor]:
    model = FireboltForConditionalGeneration.from_pretrained(
        config.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return model, FireboltProcessor.from_pretrained(config.model, trust_remote_code=False)


def _new_model(config: TrainConfig) -> tuple[FireboltForConditionalGeneration, FireboltProcessor]:
    new = {"connector": config.connector, "fusion": config.fusion, "grids": config.grids, "cmm_config": config.cmm}
    new = {name: value for name, value in new.items() if value is not None}
    tokenizer = load_tokenizer(config.tokenizer or config.decoder)
    torch.manual_seed(config.seed)
    if config.decoder is not None:
        model = FireboltForConditionalGeneration.from_backbones(
            config.decoder, config.vision, dtype=torch.float32, **new
        )
    else:
        model = FireboltForConditionalGeneration(FireboltConfig(**config.architecture, **new))
    check_vocabulary(config, len(tokenizer), model.config.text_config.vocab_size)
    side = model.config.vision_config.image_size
    images = FireboltImageProcessor(size={"height": side, "width": side}, tile_size=side // 2)
    template = tokenizer.chat_template or CHAT_TEMPLATE
    if model.model.connector.places_images:
        template = original_chat_template(template)
        check_image_token(tokenizer, model.config.connector_config().to_dict()["image_token_id"])
    return model, FireboltProcessor(images, tokenizer, template)


def check_image_token(tokenizer, token: int) -> None:
    """Check that `<image>`, which the chat template writes, is the token where images are put. Raises ConfigError."""
    found = tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)
    if found != [token]:
        raise ConfigError(
            f"cmm.image_token_id is {token}; expected the one token of {IMAGE_TOKEN}; the tokenizer makes {found} of it"
        )


def check_vocabulary(config: RowsConfig, tokens: int, vocabulary: int) -> None:
    """Check that the model's vocabulary is large enough, and no larger for random weights. Raises ConfigError."""
    if tokens > vocabulary:
        raise ConfigError(f"tokenizer has {tokens} tokens; expected at most {vocabulary}, as many as the model has")
    if config.architecture is not None and tokens != vocabulary:
        raise ConfigError(
            f"architecture.text_config.vocab_size is {vocabulary}; expected {tokens}, as many as the tokenizer has; "
            f"set architecture.text_config.vocab_size={tokens}"
        )


def part_modules(model: FireboltForConditionalGeneration) -> dict[str, list[nn.Module]]:
    return {
        "vision": [model.model.vision_tower],
        "connector": [model.model.connector],
        "decoder": [model.model.language_model, model.lm_head],
    }


def choose_parts(model: FireboltForConditionalGeneration, train: list[str], lora: dict | None) -> None:
    """Leave gradients to the parts that learn; with `lora` to adapters on the decoder too. Raises ConfigError."""
    for part, modules in part_modules(model).items():
        for module in modules:
            module.requires_grad_(part in train)
    if lora is not None:
        add_adapters(model, lora)


def add_adapters(model: FireboltForConditionalGeneration, lora: dict) -> None:
    """Put low-rank adapters beside the decoder's matrices, in place (peft)."""
    from peft import LoraConfig, inject_adapter_in_model

    chosen = {**LORA, **lora}
    inject_adapter_in_model(
        LoraConfig(
            r=chosen["rank"],
            lora_alpha=chosen["alpha"],
            lora_dropout=chosen["dropout"],
            target_modules=list(chosen["targets"]),
        ),
        model.model.language_model,
        adapter_name=ADAPTER,
    )
    for name, parameter in model.model.language_model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `model` with its adapters added to the matrices beside them, under the names without adapters.

    The model itself is not touched: to add and take away again would change its last bits.
    """
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    plain = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer, _, rest = name.partition(".base_layer.")
        if rest and rest == "weight" and layer in layers:
            up, down = (state[f"{layer}.lora_{side}.{ADAPTER}.weight"] for side in "BA")
            tensor = tensor + layers[layer].scaling[ADAPTER] * (up @ down).view_as(tensor).to(tensor.dtype)
        plain[f"{layer}.{rest}" if rest else name] = tensor
    return plain


def save_trained(
    model: FireboltForConditionalGeneration, state: dict[str, Tensor], processor: FireboltProcessor, folder: Path
) -> None:
    """Write the weights in `state` as `save_pretrained` does, and the processor."""
    model.save_pretrained(folder, state_dict=merged(model, state))
    processor.save_pretrained(folder)
