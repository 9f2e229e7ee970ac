"""Weights in 4 bits for generation: groups of 32 of a row, each with a scale of its own."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cmm.classes import change_class
from .copies import CopyOfWeights
from .joined import State
from .mapped_memory import release_file_pages, release_free_memory

GROUP = 32
ZERO = 8  # the code that stands for 0
LARGEST_CODE = 15
OUT_MULTIPLE = 16  # of output channels, in the kernel's layout
ROWS = 256
PACK, PRODUCT = "_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu"
INSTRUCTIONS = ("AVX2", "AVX512")


@cache
def has_kernels() -> bool:
    """Return whether PyTorch's 4-bit product runs here, and gives what the formula does on a small example.

    It is not promised, so that a later PyTorch may be without it, or mean something else by its arguments; on CPUs
    without vector instructions it is slower than the plain form.
    """
    if not all(hasattr(torch.ops.aten, name) for name in (PACK, PRODUCT)):
        return False
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTIONS:
        return False
    codes = torch.arange(OUT_MULTIPLE * 2 * GROUP, dtype=torch.int32).view(OUT_MULTIPLE, -1) * 7 % (LARGEST_CODE + 1)
    scale = 2.0 ** (torch.arange(2 * OUT_MULTIPLE).view(OUT_MULTIPLE, 2) % 5 - 2).float()
    x = (torch.arange(2 * GROUP) % 3 - 1).float()[None]
    try:
        found = _packed_product(x.bfloat16(), _packed(codes), _pairs(scale.bfloat16()))
    except RuntimeError:
        return False
    wanted = x @ ((codes - ZERO) * scale.repeat_interleave(GROUP, 1)).T
    return found.shape == wanted.shape and torch.allclose(found.float(), wanted, rtol=2**-7, atol=2**-7)


def _packed(codes: Tensor) -> Tensor:
    return getattr(torch.ops.aten, PACK)(codes.int(), 1)


def _pairs(scale: Tensor) -> Tensor:
    """scale [N,G] -> the scale and the value of the middle code, 0, as the kernel takes them [G,N,2]."""
    return torch.stack([scale.T, torch.zeros_like(scale.T)], -1).contiguous()


def _packed_product(x: Tensor, packed: Tensor, pairs: Tensor) -> Tensor:
    """x [M,K] bfloat16 times packed weights -> [M,N]."""
    return getattr(torch.ops.aten, PRODUCT)(x, packed, GROUP, pairs)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Int4Linear(nn.Linear):
    """A linear layer whose weights are 4-bit codes, each group of 32 of a row with a scale s of its own, bfloat16.

        y = x W^T + b        W_k = s (c_k - 8)        s = -w_m / 8        c_k = round(w_k / s) + 8, cut to 0..15

    (docs/mathematics.md, (10.1)). w_m is the group's weight of largest magnitude, the first of several, which becomes
    the code 0: so the range is used from its end. A group of zeros has s = 0 and codes 8. A row is filled up with zeros
    to a multiple of 32. On CPUs that have it by PyTorch's own product, for which x is rounded to bfloat16; elsewhere W
    is made anew for each call, in the dtype of x: that saves memory, not time.

    `int4_weight` [N,K/2] uint8 has two codes a byte, the even column's in its lower bits, `int4_scale` is [N,K/32];
    both are None while the kernel's own layout is held. A module of class `nn.Linear` is turned into one in place
    (`quantize_linear_int4`); its bias stays as it is.
    """

    int4_weight: Tensor | None  # pyright: ignore[reportIncompatibleVariableOverride]  # buffers
    int4_scale: Tensor | None
    packed: Tensor | None
    pairs: Tensor | None
    weight_dtype, held_dtype = torch.float32, torch.uint8

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # it stands for the parameter
        """Return the weights that the codes stand for, float32, made anew at each call."""
        return self._dense().as_subclass(CopyOfWeights)

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of what the kernel holds, beside the buffers."""
        return 0 if self.packed is None or self.pairs is None else self.packed.nbytes + self.pairs.nbytes

    def _dense(self) -> Tensor:
        codes, scale = self.codes()
        halves = one_a_byte(codes)
        weight = (halves.float() - ZERO).unflatten(1, (-1, GROUP)) * scale.float()[..., None]
        return weight.flatten(1)[:, : self.in_features].contiguous()

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the codes [N,K/2] uint8, two a byte, and the scales [N,K/32] bfloat16."""
        if self.packed is None or self.pairs is None:
            assert self.int4_weight is not None
            assert self.int4_scale is not None
            return self.int4_weight, self.int4_scale
        groups = len(self.pairs)
        ones = _pairs(torch.ones_like(self.pairs[..., 0]).T)
        # The layout is the kernel's own affair; the product with unit vectors reads it, exactly.
        unit = torch.eye(groups * GROUP, dtype=torch.bfloat16)
        read = torch.cat([_packed_product(rows, self.packed, ones) for rows in unit.split(ROWS)])
        codes = (read.T[: self.out_features] + ZERO).to(torch.uint8)
        return _two_a_byte(codes), self.pairs[..., 0].T[: self.out_features].contiguous()

    @property
    def can_pack(self) -> bool:
        """Return whether the codes lie where there is a kernel for them, which does not have them yet."""
        return self.int4_weight is not None and self.int4_weight.device.type == "cpu" and has_kernels()

    def pack(self) -> None:
        """Hold the codes in the layout of the kernel, where there is one for the device that they are on."""
        codes, scale = self.int4_weight, self.int4_scale
        if codes is None or scale is None or not self.can_pack:
            return
        count, missing = len(codes), _up_to(len(codes), OUT_MULTIPLE) - len(codes)
        halves = torch.full((count + missing, 2 * codes.shape[1]), ZERO, dtype=torch.int32)
        halves[:count, ::2], halves[:count, 1::2] = codes & LARGEST_CODE, codes >> 4
        self.packed = _packed(halves)
        self.pairs = _pairs(F.pad(scale, (0, 0, 0, missing)))
        release_file_pages(codes)
        self.int4_weight = self.int4_scale = None
        del halves, codes
        release_free_memory()

    def forward(self, input: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled() and input.requires_grad
        if self.packed is None or self.pairs is None or differentiable or not input.numel():
            y = F.linear(input, self._dense().to(input.dtype))
            return y if self.bias is None else y + self.bias
        rows = input.reshape(-1, self.in_features).to(torch.bfloat16)
        # Calls that do nothing would be a tenth of one token's product.
        if missing := len(self.pairs) * GROUP - self.in_features:
            rows = F.pad(rows, (0, missing))
        y = _packed_product(rows.contiguous(), self.packed, self.pairs)
        if y.shape[1] != self.out_features:
            y = y[:, : self.out_features]
        y = y.to(input.dtype).reshape(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _apply(self, fn, recurse=True):
        if self.pairs is not None and fn(self.pairs).device.type != "cpu":
            self.int4_weight, self.int4_scale = self.codes()
            self.packed = self.pairs = None
        scale = self.int4_scale
        super()._apply(fn, recurse)
        if scale is not None and self.int4_scale is not None:  # moved, never cast
            self.int4_scale = scale.to(self.int4_scale.device)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "int4_weight"], destination[prefix + "int4_scale"] = self.codes()


def _two_a_byte(codes: Tensor) -> Tensor:
    """Codes [N,K] uint8 in 0..15 -> [N,K/2], the even column's in the lower four bits."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def one_a_byte(codes: Tensor) -> Tensor:
    """Codes [N,K/2], two a byte, the even column's in the lower four bits -> [N,K] uint8 in 0..15."""
    return torch.stack([codes & LARGEST_CODE, codes >> 4], -1).flatten(1)


def rounded_to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round W [N,K] -> codes [N,K/2] uint8 and scales [N,K/32] bfloat16 by the rule of Int4Linear."""
    codes, scales = [], []
    for rows in weight.split(ROWS):
        filled = F.pad(rows.float(), (0, _up_to(rows.shape[1], GROUP) - rows.shape[1]))
        groups = filled.unflatten(1, (-1, GROUP))
        farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale = (farthest / -ZERO).bfloat16()
        divisor = scale.float().masked_fill(scale == 0, 1)
        code = (groups / divisor).round_().add_(ZERO).clamp_(0, LARGEST_CODE)
        code = code.masked_fill(scale == 0, ZERO)
        codes.append(_two_a_byte(code.flatten(1).to(torch.uint8)))
        scales.append(scale[..., 0])
    return torch.cat(codes), torch.cat(scales)


def hold_int4(linear: nn.Linear, codes: Tensor, scale: Tensor) -> None:
    """Make an Int4Linear of `linear`, in place, with these codes and scales, not yet packed."""
    del linear._parameters["weight"]
    change_class(linear, Int4Linear)
    assert isinstance(linear, Int4Linear)
    linear.packed = linear.pairs = None
    linear.register_buffer("int4_weight", codes)
    linear.register_buffer("int4_scale", scale)


def int4_form(linear: nn.Linear, state: State) -> None:
    """Make an Int4Linear of `linear`, in place, with the tensors of a state dict, packed."""
    hold_int4(linear, state["int4_weight"], state["int4_scale"])
    assert isinstance(linear, Int4Linear)
    linear.pack()


@torch.no_grad()
def round_linear_int4(linear: nn.Linear) -> None:
    """Make an Int4Linear of `linear`, in place, not yet packed. Raises ValueError for weights that are not finite."""
    if not linear.weight.isfinite().all():
        raise ValueError("quantize_int4: model has weights that are inf or nan; expected finite ones")
    codes, scale = rounded_to_4_bits(linear.weight.detach())
    release_file_pages(linear.weight)
    hold_int4(linear, codes, scale)


def quantize_linear_int4(linear: nn.Linear) -> None:
    """Make an Int4Linear of `linear`, in place. Raises ValueError for weights that are not finite."""
    round_linear_int4(linear)
    assert isinstance(linear, Int4Linear)
    linear.pack()


def empty_int4(linear: nn.Linear) -> None:
    """Make an Int4Linear of `linear`, in place, whose codes come from a checkpoint."""
    device, groups = linear.weight.device, _up_to(linear.in_features, GROUP) // GROUP
    codes = torch.full((linear.out_features, groups * GROUP // 2), ZERO + (ZERO << 4), dtype=torch.uint8, device=device)
    hold_int4(linear, codes, torch.zeros(linear.out_features, groups, dtype=torch.bfloat16, device=device))


__all__ = [
    "Int4Linear",
    "empty_int4",
    "int4_form",
    "one_a_byte",
    "quantize_linear_int4",
    "round_linear_int4",
    "rounded_to_4_bits",
]
