"""LFM2's short convolution, for the one token of a generation step, and for sequences packed into one row."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.utils.import_utils import is_causal_conv1d_available

from ...cmm.linear import is_plain
from ..cpu.short_convolution import convolve_window
from .versions import CACHE, CACHE_NAMES, replace_modules

# It brings a kernel for the step, and one that knows borders, which this does without.
HAS_KERNEL = is_causal_conv1d_available()


class StepwiseShortConv(Lfm2ShortConv):
    """Lfm2ShortConv, whose step is a sum of products instead of a convolution of length one, and which knows borders.

        y_t = W_o (C_t * sum over j of k_j (B x)_{t-j})        [B, C, x] = W_i h_t

    The step is `convolve_window`; where the `causal_conv1d` package brings a kernel for it, it is that of transformers.
    Of sequences packed into one row, told by seq_idx [1,T] (the number of each position's sequence) and without a
    cache, a sum reads its own sequence alone. Transformers' own reads across borders without that package. Everything
    else runs as in transformers.
    """

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        if args or kwargs.get("attention_mask") is not None or not is_plain(self.conv, nn.Conv1d):
            # Its weights are read here, and in transformers not without care.
            return super().forward(hidden_states, *args, **kwargs)
        if cache is None and kwargs.get("seq_idx") is not None:
            return self._packed(hidden_states, kwargs["seq_idx"])
        if (
            cache is None
            or HAS_KERNEL
            or hidden_states.shape[1] != 1
            or cache.is_recording_past(self.layer_idx)
            or (state := cache.get_conv_state(self.layer_idx, state_idx=0)) is None
        ):
            return super().forward(hidden_states, *args, **kwargs)
        B, C, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        window = torch.cat([state[..., 1:], (B * x).mT.to(state.dtype)], dim=-1)  # [B,D,conv_kernel_size]
        state.copy_(window)
        y = convolve_window(window, self.conv.weight.squeeze(1), self.conv.bias)
        return self.out_proj(C * y.to(C.dtype).unsqueeze(1))

    def _packed(self, hidden_states: Tensor, seq_idx: Tensor) -> Tensor:
        """The convolution of each sequence alone: products of what lies j positions back in the same sequence."""
        B, C, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        inputs = B * x
        newest, *older = self.conv.weight.squeeze(1).flip(-1).unbind(-1)  # [D] each
        y = inputs * newest
        for delay, taps in enumerate(older[: inputs.shape[1] - 1], start=1):
            beyond = seq_idx[:, delay:] != seq_idx[:, :-delay]
            y = y + F.pad((inputs[:, :-delay] * taps).masked_fill(beyond[..., None], 0), (0, 0, delay, 0))
        if self.conv.bias is not None:
            y = y + self.conv.bias
        return self.out_proj(C * y.to(C.dtype))


def _without_advice(record: logging.LogRecord) -> bool:
    """Drop the advice to install `causal_conv1d`, whose kernels are for GPUs, where there is none."""
    return "causal_conv1d" not in record.getMessage()


def know_steps_and_borders(decoder: nn.Module) -> None:
    """Let the short convolutions of an Lfm2Model be `StepwiseShortConv`s; parameters and names stay as they are."""
    if not torch.cuda.is_available():
        logging.getLogger("transformers.integrations.hub_kernels").addFilter(_without_advice)
    replace_modules(decoder, StepwiseShortConv, ("self", "hidden_states", CACHE, "attention_mask", "kwargs"))
