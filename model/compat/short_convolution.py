"""LFM2's short convolution, for the one token of a generation step."""

import logging

import torch
from torch import Tensor, nn
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.utils.import_utils import is_causal_conv1d_available

from ...cmm.linear import is_plain
from ..cpu.short_convolution import convolve_window
from .versions import CACHE, CACHE_NAMES, replace_modules


class StepwiseShortConv(Lfm2ShortConv):
    """Lfm2ShortConv, whose step is a sum of products instead of a convolution of length one.

        y_t = W_o (C_t * sum over j of k_j (B x)_{t-j})        [B, C, x] = W_i h_t

    It is `convolve_window`. Whole sequences run as in transformers, and so does everything where the `causal_conv1d`
    package brings a kernel for the step.
    """

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        if (
            args
            or not is_plain(self.conv, nn.Conv1d)  # whose weights are read here, and in transformers not without care
            or cache is None
            or hidden_states.shape[1] != 1
            or kwargs.get("attention_mask") is not None
            or cache.is_recording_past(self.layer_idx)
            or (state := cache.get_conv_state(self.layer_idx, state_idx=0)) is None
        ):
            return super().forward(hidden_states, *args, **kwargs)
        B, C, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        window = torch.cat([state[..., 1:], (B * x).mT.to(state.dtype)], dim=-1)  # [B,D,conv_kernel_size]
        state.copy_(window)
        y = convolve_window(window, self.conv.weight.squeeze(1), self.conv.bias)
        return self.out_proj(C * y.to(C.dtype).unsqueeze(1))


def _without_advice(record: logging.LogRecord) -> bool:
    """Drop the advice to install `causal_conv1d`, whose kernels are for GPUs, where there is none."""
    return "causal_conv1d" not in record.getMessage()


def step_by_products(decoder: nn.Module) -> None:
    """Let the short convolutions of an Lfm2Model step by sums of products; parameters and names stay as they are."""
    if not torch.cuda.is_available():
        logging.getLogger("transformers.integrations.hub_kernels").addFilter(_without_advice)
    if not is_causal_conv1d_available():
        parameters = ("self", "hidden_states", CACHE, "attention_mask", "kwargs")
        replace_modules(decoder, StepwiseShortConv, parameters)
