"""Weights in 8 bits for generation: each output channel with a scale of its own."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cmm.classes import change_class
from .copies import CopyOfWeights
from .joined import State
from .mapped_memory import release_file_pages

LARGEST = 127
CENTRE = 128  # what zero is among the unsigned 8-bit numbers that the kernels take
HALF_CENTRE = 64  # and where they are halved
ROWS = 256
ENGINES = ("x86", "fbgemm")
KERNEL = "linear_with_input_q_dq_qweight_dq_output_fp32"
PER_CHANNEL = "_make_per_channel_quantized_tensor"
VNNI = torch.cpu._is_vnni_supported()
"""Whether the kernels add products in 32 bits. Others add two of them in 16 first, cut off where they do not fit."""


def has_kernels() -> bool:
    """Return whether PyTorch's int8 kernels run here (AVX2). A later one may be without: they will move out of it."""
    there = not set(torch.backends.quantized.supported_engines).isdisjoint(ENGINES)
    built_in = hasattr(torch, PER_CHANNEL) and hasattr(torch.ops.quantized, KERNEL)
    return there and built_in


class Int8Linear(nn.Linear):
    """A linear layer whose weights are 8-bit integers, each output channel with a scale of its own.

        y = s_x (round(x / s_x) round(W / s_w)^T) s_w + b        s_x = max |x| / 127 of each token, s_w of each channel

    On CPUs that have them by PyTorch's int8 kernels (fbgemm), which take both factors in 8 bits and add exactly: a
    token gets the same whatever tokens stand beside it, so that steps agree with whole sequences to rounding. Without
    VNNI they are given each x as 2 a + b, a and b small enough for their 16-bit sums: the same y, weights read once.
    Elsewhere the weights alone are rounded, y = x round(W / s_w)^T s_w + b, in the dtype of x.

    A module of class `nn.Linear` is turned into one in place (`quantize_linear`); its bias stays as it is.
    """

    packed: torch.ScriptObject | None
    int8_weight: Tensor | None  # a buffer that is None while `packed` holds the integers
    int8_scale: Tensor
    weight_dtype, held_dtype = torch.float32, torch.int8

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
            assert self.int8_weight is not None
            return self.int8_weight, self.int8_scale
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        return weight.int_repr(), weight.q_per_channel_scales().float()

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            y = F.linear(input, self.integers()[0].to(input.dtype)) * self.int8_scale.to(input.dtype)
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

    @property
    def can_pack(self) -> bool:
        """Return whether the integers lie where there are kernels for them, which do not have them yet."""
        return self.int8_weight is not None and self.int8_weight.device.type == "cpu" and has_kernels()

    def pack(self) -> None:
        """Hold the integers in the layout of the kernels, where there are some for the device that they are on."""
        if self.int8_weight is None or not self.can_pack:
            return
        zeros = torch.zeros(len(self.int8_scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
            channels = getattr(torch, PER_CHANNEL)(self.int8_weight, self.int8_scale.double(), zeros, 0)
        release_file_pages(self.int8_weight)
        self.int8_weight = None  # before the kernels' own copy is made: the head's is the peak of loading
        self.packed = torch.ops.quantized.linear_prepack(channels, None)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "int8_weight"] = self.integers()[0]


def _int8_product(x: Tensor, packed) -> Tensor:
    """x [...,K] in -1..1, rounded to 1/127, times packed weights -> float32 [...,N]."""
    product = getattr(torch.ops.quantized, KERNEL)
    if VNNI:
        return product(x, 1 / LARGEST, CENTRE, packed)
    # round(127 x) = 2 a + b with a in -64..64 and b in -1..1, to which the kernel rounds the rest: 2 |a| |w| < 2^15.
    wide = x * LARGEST
    halves = (wide / 2).round_()
    of_halves, of_rest = product(torch.stack([halves, wide.sub_(halves, alpha=2)]), 1.0, HALF_CENTRE, packed)
    return of_halves.mul_(2).add_(of_rest).div_(LARGEST)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """round(W / s_w) [N,K] int8 and s_w [N] float32, some rows at a time, since a head is large."""
    integers, scales = torch.empty_like(weight, dtype=torch.int8), []
    for rows, rounded in zip(weight.split(ROWS), integers.split(ROWS)):
        rows = rows.float()
        scales.append((torch.linalg.vector_norm(rows, float("inf"), dim=1) / LARGEST).clamp_min_(1e-30))
        rounded.copy_(rows.div(scales[-1][:, None]).round_())
    return integers, torch.cat(scales)


def hold_int8(linear: nn.Linear, integers: Tensor, scale: Tensor) -> None:
    """Make an Int8Linear of `linear`, in place, with these integers and scales, not yet packed."""
    del linear._parameters["weight"]
    change_class(linear, Int8Linear)
    assert isinstance(linear, Int8Linear)
    linear.packed = None
    linear.register_buffer("int8_weight", integers)
    linear.register_buffer("int8_scale", scale)


def int8_form(linear: nn.Linear, state: State) -> None:
    """Make an Int8Linear of `linear`, in place, with the tensors of a state dict, packed."""
    hold_int8(linear, state["int8_weight"], state["int8_scale"])
    assert isinstance(linear, Int8Linear)
    linear.pack()


@torch.no_grad()
def round_linear(linear: nn.Linear) -> None:
    """Make an Int8Linear of `linear`, in place, not yet packed."""
    integers, scale = _rounded(linear.weight.detach())
    release_file_pages(linear.weight)
    hold_int8(linear, integers, scale)


def quantize_linear(linear: nn.Linear) -> None:
    """Make an Int8Linear of `linear`, in place."""
    round_linear(linear)
    assert isinstance(linear, Int8Linear)
    linear.pack()


def empty_int8(linear: nn.Linear) -> None:
    """Make an Int8Linear of `linear`, in place, whose integers come from a checkpoint."""
    device = linear.weight.device
    integers = torch.zeros(linear.out_features, linear.in_features, dtype=torch.int8, device=device)
    hold_int8(linear, integers, torch.ones(linear.out_features, dtype=torch.float32, device=device))


__all__ = ["Int8Linear", "empty_int8", "int8_form", "quantize_linear", "round_linear"]
