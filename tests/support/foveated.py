"""The original's tiny foveated model with its vectors, and small random ones of ours."""

import contextlib
import json

import golden
import numpy as np
import torch
from numerics import largest
from PIL import Image
from tiny_models import make_tokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from firebolt_vl.model import CHAT_TEMPLATE, FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig

VECTORS = golden.load("fvlm_tiny_upstream")
DESCRIBED = json.loads(golden.path("fvlm_tiny_upstream.json").read_text())
MODES = ("coarse_only", "coarse_fine", "autoregressive")


def original_arguments(case: str = "b2") -> dict:
    """What `from_original` takes for the model of a case."""
    about = DESCRIBED["cases"][case]
    vision = dict(DESCRIBED["dino_config"])
    if "dino_image_size" in about:
        vision["image_size"] = about["dino_image_size"]
    return {
        "vision_config": vision,
        "text_config": DESCRIBED["llm_config"],
        "query_dim": DESCRIBED["model"]["query_dim"],
        "visual_scale": DESCRIBED["model"]["visual_scale"],
        "deep_query": about.get("deep_query", True),
        "lambda_coarse": about.get("lambda_coarse", 0.0),
    }


def original_model(case: str = "b2", original_behaviour: bool = True, reference: bool = False) -> FoveatedVLM:
    """The original's model of a case; `reference`: the one that preferences are compared with."""
    state = VECTORS.under("param")
    if "dino_image_size" in DESCRIBED["cases"][case]:
        state.update(VECTORS.under("interp"))
    if reference:
        state.update(VECTORS.under("ref"))
        state["llm.lm_head.weight"] = state["llm.model.embed_tokens.weight"]
    return FoveatedVLM.from_original(state, **original_arguments(case), original_behaviour=original_behaviour)


def original_inputs(case: str) -> dict[str, torch.Tensor]:
    """The arguments of `forward` for a case: its own, over those of the case that it names."""
    about = DESCRIBED["cases"][case]
    inputs = {**VECTORS.under(f"in.{about.get('inputs', case)}"), **VECTORS.under(f"in.{case}")}
    if about.get("frames_zeroed_where_mask_false"):
        inputs["frames"][inputs["frame_mask"] == 0] = 0
    if case == "b2_textonly":
        inputs["frames"] = torch.zeros_like(inputs["frames"][:, :1])
        inputs["frame_mask"] = torch.zeros(len(inputs["frames"]), 1, dtype=torch.bool)
    for name in ("loss_mask", "attention_mask"):
        if about.get(name) == "omitted":
            inputs.pop(name, None)
    return inputs


@contextlib.contextmanager
def all_in_double(model: FoveatedVLM):
    """`model` in float64, also where transformers computes in float32: as the float64 vectors were made."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        width = self.config.head_dim
        theta = self.config.rope_parameters["rope_theta"]
        rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = position_ids[..., None].double() * rates
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    interpolate = torch.nn.functional.interpolate

    def interpolate_in_double(x, **kwargs):
        return interpolate(x.double(), **kwargs)

    kept = LlamaRMSNorm.forward, LlamaRotaryEmbedding.forward
    LlamaRMSNorm.forward, LlamaRotaryEmbedding.forward = norm, rotary
    torch.nn.functional.interpolate = interpolate_in_double
    try:
        yield model.double()
    finally:
        LlamaRMSNorm.forward, LlamaRotaryEmbedding.forward = kept
        torch.nn.functional.interpolate = interpolate
        model.float()


def make_foveated_config(**config) -> FoveatedVLMConfig:
    """24 and 32 wide, three and two layers; frames of 28 pixels in 2 x 2 patches; a vocabulary of 260 (bytes)."""
    text = {**DESCRIBED["llm_config"], "vocab_size": 260, "pad_token_id": 0, "eos_token_id": 2}
    config = {"query_dim": 16, **config}
    return FoveatedVLMConfig(vision_config=dict(DESCRIBED["dino_config"]), text_config=text, **config)


def make_foveated(seed: int = 0, **config) -> FoveatedVLM:
    """Random weights, large enough that every part of the model shows in the logits; eval mode."""
    torch.manual_seed(seed)
    model = FoveatedVLM(make_foveated_config(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.8 / parameter[0].numel() ** 0.5)
        for token in (model.q_static, model.q_init, model.encoder.dino.embeddings.position_embeddings):
            token.normal_()
        model.get_input_embeddings().weight.normal_(std=0.5)
    return model


def make_processor(**images) -> FoveatedProcessor:
    """Frames of `make_foveated`'s size; `images` go to the image processor."""
    images = {"size": {"height": 28, "width": 28}, **images}
    return FoveatedProcessor(FoveatedImageProcessor(**images), make_tokenizer(), CHAT_TEMPLATE)


def picture(seed: int = 0, height: int = 28, width: int = 28) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def make_frames(counts: list[int], seed: int = 0, size: int = 28) -> dict[str, torch.Tensor]:
    """Random frames, one row of each count; those that are not there are full of nan."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(*counts, 1)) < torch.tensor(counts)[:, None]
    frames = torch.randn(*mask.shape, 3, size, size, generator=generator)
    frames[~mask] = float("nan")
    return {"frames": frames, "frame_mask": mask}


def largest_part(preferences: dict[str, torch.Tensor]) -> float:
    """Of the differences that rewards and their loss are made of: beta times the largest log-probability of a text.

    A reward is some hundredth of it: what rounding leaves of the difference hangs on the order of the sums before it.
    """
    parts = [largest(tensor) for name, tensor in preferences.items() if name.endswith("logps")]
    return DESCRIBED["cases"]["dpo"]["beta"] * max(parts)


def write_foveated(folder) -> None:
    """A whole checkpoint with random weights, as `save_pretrained` leaves it; its answers are more than the last token
    again and again, which a head with the embeddings' weights says where they are large."""
    model = make_foveated(mode="autoregressive")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.1)
    model.save_pretrained(folder)
    images = FoveatedImageProcessor(size={"height": 28, "width": 28})
    FoveatedProcessor(images, make_tokenizer(), CHAT_TEMPLATE).save_pretrained(folder)
