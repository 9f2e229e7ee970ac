"""The foveated model that a stage starts from."""

import torch

from ...model import CHAT_TEMPLATE, FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
from ...model.loading import load_tokenizer
from ..config import FoveatedConfig
from ..errors import ConfigError
from ..models import check_vocabulary
from .parts import parameter_groups

# A part by the name that configurations have for it -> by that of `parameter_groups`.
PARTS = {"vision": "dino", "connector": "connector", "decoder": "llm"}
QUERIES = ("q_static", "q_init")


def start_model(config: FoveatedConfig) -> tuple[FoveatedVLM, FoveatedProcessor]:
    """The model, in float32, with gradients for the parts that learn, and its processor. Raises ConfigError."""
    name, key = next(
        (value, key) for key in ("model", "decoder", "tokenizer") if (value := getattr(config, key)) is not None
    )
    try:
        model, processor = _checkpoint(config) if config.model is not None else _new_model(config)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # missing, gated, offline, of another kind
        raise ConfigError(f"{key} is {name}, which cannot be loaded ({str(error).splitlines()[0]})") from error
    choose_parts(model, config)
    return model, processor


def _checkpoint(config: FoveatedConfig) -> tuple[FoveatedVLM, FoveatedProcessor]:
    model = FoveatedVLM.from_pretrained(
        config.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return model, FoveatedProcessor.from_pretrained(config.model, trust_remote_code=False)


def _new_model(config: FoveatedConfig) -> tuple[FoveatedVLM, FoveatedProcessor]:
    tokenizer = load_tokenizer(config.tokenizer or config.decoder)
    torch.manual_seed(config.seed)
    if config.decoder is not None:
        model = FoveatedVLM.from_backbones(config.decoder, config.vision, dtype=torch.float32, **config.query)
    else:
        model = FoveatedVLM(FoveatedVLMConfig(**config.architecture, **config.query))
    check_vocabulary(config, len(tokenizer), model.config.text_config.vocab_size)
    # DINOv2's own size is that of its position table; frames are smaller, in as many pixels as its patches fill evenly.
    vision = model.config.vision_config
    side = min(FoveatedImageProcessor.size["height"], vision.image_size) // vision.patch_size * vision.patch_size
    images = FoveatedImageProcessor(size={"height": side, "width": side})
    return model, FoveatedProcessor(images, tokenizer, tokenizer.chat_template or CHAT_TEMPLATE)


def choose_parts(model: FoveatedVLM, config: FoveatedConfig) -> None:
    """Leave gradients to the parts that learn, without what the mode never reaches."""
    groups = parameter_groups(model)
    for part, name in PARTS.items():
        for parameter in groups[name]:
            parameter.requires_grad_(part in config.train)
    unused = {"coarse_only": [model.q_init, *model.llm_to_query.parameters()], "autoregressive": [model.q_static]}
    mask_token = getattr(model.encoder.dino.embeddings, "mask_token", None)
    for parameter in (*unused.get(config.mode, []), mask_token):
        if parameter is not None:
            parameter.requires_grad_(False)


def optimizer_groups(model: FoveatedVLM, config: FoveatedConfig) -> list[dict]:
    """The parameters that learn, by part, each with its peak rate: matrices and convolutions with weight decay, vectors
    (the queries too) without."""
    vectors = {id(getattr(model, name)) for name in QUERIES}
    found = []
    for part, name in PARTS.items():
        peak = {"vision": config.vision_lr, "decoder": config.decoder_lr}.get(part)
        peak = config.lr if peak is None else peak
        learning = [p for p in parameter_groups(model)[name] if p.requires_grad]
        plain = [p for p in learning if p.ndim <= 1 or id(p) in vectors]
        matrices = [p for p in learning if p.ndim > 1 and id(p) not in vectors]
        for parameters, decay in ((matrices, config.weight_decay), (plain, 0.0)):
            if parameters:
                found.append({"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay, "part": part})
    return found
