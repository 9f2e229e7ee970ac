"""LFM2's short convolution, for the one token of a generation step."""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.utils.import_utils import is_causal_conv1d_available


class StepwiseShortConv(Lfm2ShortConv):
    """Lfm2ShortConv, whose step is a sum of products instead of a convolution of length one.

        y_t = W_o (C_t * sum over j of k_j (B x)_{t-j})        [B, C, x] = W_i h_t

    The general convolution that transformers starts for it takes 180 us for these 3 D products on two cores, ten of
    them 2 % of a float32 token and 8 % of an int8 one; the sum takes 17. It is summed in float32. Whole sequences run
    as in transformers, and so does everything where the `causal_conv1d` package brings a kernel for the step.
    """

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        state = past_key_values.get_conv_state(self.layer_idx, state_idx=0) if past_key_values is not None else None
        if (
            state is None
            or hidden_states.shape[1] != 1
            or attention_mask is not None
            or past_key_values.is_recording_past(self.layer_idx)
        ):
            return super().forward(
                hidden_states, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
            )
        B, C, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        window = torch.cat([state[..., 1:], (B * x).mT.to(state.dtype)], dim=-1)  # [B,D,conv_kernel_size]
        state.copy_(window)
        y = (window.float() * self.conv.weight.squeeze(1).float()).sum(-1)
        if self.conv.bias is not None:
            y = y + self.conv.bias.float()
        return self.out_proj(C * y.to(C.dtype).unsqueeze(1))


def step_by_products(decoder: nn.Module) -> None:
    """Let the short convolutions of an Lfm2Model take their steps so; their parameters and names stay as they are."""
    if is_causal_conv1d_available():
        return
    for module in decoder.modules():
        if type(module) is Lfm2ShortConv:
            module.__class__ = StepwiseShortConv
