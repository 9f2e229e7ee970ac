"""Weights in 8 bits for generation: the linear layers that every token passes, made so after loading."""

import warnings
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...cmm.classes import change_class
from .copies import CopyOfWeights, refuse_adapters
from .mapped_memory import release_file_pages

LARGEST = 127
CENTRE = 128  # what zero is among the unsigned 8-bit numbers that the kernels take
ROWS = 256
ENGINES = ("x86", "fbgemm")
KERNEL = "linear_with_input_q_dq_qweight_dq_output_fp32"
PER_CHANNEL = "_make_per_channel_quantized_tensor"

Model = TypeVar("Model", bound=PreTrainedModel)


def has_kernels() -> bool:
    """Return whether PyTorch's int8 kernels run here. Without VNNI they would add up 16-bit sums that may overflow.

    A later PyTorch may be without them: it says that they will move out of it.
    """
    there = not set(torch.backends.quantized.supported_engines).isdisjoint(ENGINES)
    built_in = hasattr(torch, PER_CHANNEL) and hasattr(torch.ops.quantized, KERNEL)
    return there and built_in and torch.cpu._is_vnni_supported()


class Int8Linear(nn.Linear):
    """A linear layer whose weights are 8-bit integers, each output channel with a scale of its own.

        y = s_x (round(x / s_x) round(W / s_w)^T) s_w + b        s_x = max |x| / 127 of each token, s_w of each channel

    On CPUs that have them by PyTorch's int8 kernels (fbgemm), which take both factors in 8 bits and add exactly: a
    token gets the same whatever tokens stand beside it, so that steps agree with whole sequences to rounding. Elsewhere
    the weights alone are rounded, y = x round(W / s_w)^T s_w + b, in the dtype of x.

    A module of class `nn.Linear` is turned into one in place (`quantize_linear`); its bias stays as it is.
    """

    packed: torch.ScriptObject | None
    int8_weight: Tensor  # a buffer that is None while `packed` holds the integers
    int8_scale: Tensor

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # it stands for the parameter
        """Return the weights that the integers stand for, float32, made anew at each call."""
        integers, scale = self.integers()
        return (integers.float() * scale[:, None]).as_subclass(CopyOfWeights)

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of the integers where the kernels hold them, beside the buffers."""
        return 0 if self.packed is None else self.in_features * self.out_features

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return the integers [N,K] int8 and the scales [N] float32."""
        if self.packed is None:
            return self.int8_weight, self.int8_scale
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        return weight.int_repr(), weight.q_per_channel_scales().float()

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            y = F.linear(input, self.int8_weight.to(input.dtype)) * self.int8_scale.to(input.dtype)
            return y if self.bias is None else y + self.bias
        wide = input.float()
        largest = torch.linalg.vector_norm(wide, float("inf"), dim=-1, keepdim=True).clamp_min_(1e-30)
        y = _int8_product(wide / largest, self.packed).mul_(largest)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.to(input.dtype)

    def _apply(self, fn, recurse=True):
        scale = self.int8_scale
        super()._apply(fn, recurse)
        # Moved, never narrowed.
        self.int8_scale = scale.to(self.int8_scale.device)
        if self.packed is not None and self.int8_scale.device.type != "cpu":
            integers, _ = self.integers()
            self.packed, self.int8_weight = None, integers.to(self.int8_scale.device)
        return self


def _int8_product(x: Tensor, packed) -> Tensor:
    """x [...,K] in -1..1, rounded to 1/127, times packed weights -> float32 [...,N]."""
    return getattr(torch.ops.quantized, KERNEL)(x, 1 / LARGEST, CENTRE, packed)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """round(W / s_w) [N,K] int8 and s_w [N] float32, some rows at a time, since a head is large."""
    integers, scales = torch.empty_like(weight, dtype=torch.int8), []
    for rows, rounded in zip(weight.split(ROWS), integers.split(ROWS)):
        rows = rows.float()
        scales.append((torch.linalg.vector_norm(rows, float("inf"), dim=1) / LARGEST).clamp_min_(1e-30))
        rounded.copy_(rows.div(scales[-1][:, None]).round_())
    return integers, torch.cat(scales)


@torch.no_grad()
def quantize_linear(linear: nn.Linear) -> None:
    """Make an Int8Linear of `linear`, in place."""
    int8_weight, scale = _rounded(linear.weight.detach())
    release_file_pages(linear.weight)
    packed = None
    if int8_weight.device.type == "cpu" and has_kernels():
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
            channels = getattr(torch, PER_CHANNEL)(int8_weight, scale.double(), zeros, 0)
        int8_weight = None  # before the kernels' own copy is made: the head's is the peak of loading
        packed = torch.ops.quantized.linear_prepack(channels, None)
    del linear._parameters["weight"]
    change_class(linear, Int8Linear)
    assert isinstance(linear, Int8Linear)
    linear.packed = packed
    linear.register_buffer("int8_weight", int8_weight, persistent=False)
    linear.register_buffer("int8_scale", scale, persistent=False)


def quantized_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers of a Firebolt-VL that are quantised, by name: those that a generated token passes.

    The decoder's, its head, and of each layer of the modulator the queries, feed-forward block and channel mixing. The
    rest stays: the
    vision tower and the grid side run once a prompt, the parameters of the state-space model need their bits, and the
    embedding is read a row at a time.
    """
    inside = ["model.language_model.", "lm_head"]
    if model.config.connector == "cmm":
        parts = ("q_proj", "ffn.", "ssm.output", "query.ssm.output")
        inside += [f"model.connector.{layer}{part}" for layer in ("", "second.") for part in parts]
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith(tuple(inside))
    }


def quantize_int8(model: Model) -> Model:
    """Put the weights that generation reads at every token into 8 bits, in place; returns the model.

    Layer by layer, so that no second copy of the weights is ever there. The model can generate and run forward, and is
    moved by `.to`; it has no gradients for those weights, and is saved before this, not after. Logits drift by a few
    hundredths of their spread (`logits_drift`).

    Raises ValueError for a model that is quantised already, or has adapters (peft).
    """
    if is_quantized(model):
        raise ValueError("quantize_int8: model has its weights in 8 bits; expected one that is not quantised")
    refuse_adapters("quantize_int8", model)
    model.requires_grad_(False)
    for linear in quantized_linears(model).values():
        quantize_linear(linear)
    return model


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())


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
