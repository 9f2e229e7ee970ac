"""Causal Liquid-S4: S4 whose output has products of neighbouring inputs too, weighed by its own parameters."""

import torch
from torch import Tensor

from ..kernels.checks import check_integer, check_one_of
from .compaction import Packing, window_before
from .config import LIQUID_KERNELS
from .s4 import S4, S4Kernel


def product_weights(kernel: S4Kernel, order: int, liquid_kernel: str) -> Tensor:
    """The weights of products of p = 2 .. order inputs, kappa_p = 2 Re sum_n C_n B_p[n]: [D, order - 1].

        B_1 = dt B / (1 - dt w / 2)                          the bilinear rule for the diagonal part w alone
        "elementwise"   B_p[n] = B_1[n]^p
        "product"       B_p[n] = B_{p-1}[n] sum_m B_{p-1}[m]

    Sums are over the stored half of the modes, and computed in float64. See docs/mathematics.md, 4.9.
    """
    w, _, B, C, dt = kernel.in_float64()
    dt = dt.unsqueeze(-1)
    first = power = dt * B / (1 - dt * w / 2)
    weights = []
    for _ in range(2, order + 1):
        power = power * (first if liquid_kernel == "elementwise" else power.sum(-1, keepdim=True))
        weights.append(2 * (C * power).sum(-1).real)
    return torch.stack(weights, -1).to(kernel.D.dtype)


def products_across(before: Tensor, u: Tensor, weights: Tensor) -> Tensor:
    """The sum of those products that have inputs on both sides of a border, for the first outputs after it.

    before [B, P - 1, D] are the inputs up to the border, u [B, T, D] those after it; weights [D, P - 1].
    Returns [B, min(T, P - 1), D].
    """
    past = before.shape[1]
    near = torch.cat([before, u[:, :past]], 1)
    total = torch.zeros_like(near[:, past:])
    for p in range(2, past + 2):
        count = min(p - 1, total.shape[1])  # outputs that are less than p inputs behind the border
        windows = near[:, past - p + 1 : past + count].unfold(1, p, 1)
        added = windows.prod(-1) * weights[:, p - 2]
        total = total + torch.nn.functional.pad(added, (0, 0, 0, total.shape[1] - count))
    return total


class LiquidS4(S4):
    """y = GLU(Linear(GELU(K * x + D x + sum_p kappa_p x_t x_{t-1} ... x_{t-p+1}))), p = 2 .. P.

    K and D are S4's, and kappa_p is made of S4's parameters (`product_weights`): the state dict is that of `S4`, either
    class loads the other's, and of order 1 it is S4. The state has the last P - 1 inputs beside S4's.

    C is unfolded, as everywhere here. The published code takes in its place the parameter that it stores, C (I - dA^L)
    for the length L that it was made for: what an original checkpoint's kappa_p are there differs from what they are
    here, where C is unfolded at load. Three more things differ from that code: it flips time, so that outputs depend on
    later inputs; it multiplies products by their own shifts, so that the third is u_t u_{t-1}^2 u_{t-2}; and its
    recurrent step has none.

    Arguments:
        width: channels D.
        state_size: N, even; N/2 conjugate modes are stored.
        liquid_order: P, the most inputs of one product; 1: none.
        liquid_kernel: how kappa_p is made: "elementwise", the paper's powers of each mode, or "product", the published
            code's, in which each power is multiplied by the sum of the one before.
        dropout: before the Linear, one mask for all times.
        dt_min, dt_max: range of the initial time steps.

    Source: Hasani et al. 2022 (arXiv 2209.12951), sections 3.2 and 3.3, made causal.
    """

    def __init__(
        self,
        width: int,
        state_size: int | None = None,
        *,
        liquid_order: int = 2,
        liquid_kernel: str = "elementwise",
        dropout: float = 0.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ):
        super().__init__(width, state_size, dropout=dropout, dt_min=dt_min, dt_max=dt_max)
        check_integer("LiquidS4", "liquid_order", liquid_order, at_least=1)
        check_one_of("LiquidS4", "liquid_kernel", liquid_kernel, LIQUID_KERNELS)
        self.liquid_order, self.liquid_kernel = liquid_order, liquid_kernel

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().state_shapes()
        return shapes if self.liquid_order == 1 else {**shapes, "inputs": (self.liquid_order - 1, self.width)}

    def product_weights(self) -> Tensor | None:
        if self.liquid_order == 1:
            return None
        compute = lambda: product_weights(self.kernel, self.liquid_order, self.liquid_kernel)  # noqa: E731
        return self.kernel.derived(("product weights", self.liquid_order, self.liquid_kernel), compute)

    def _convolve(
        self, u: Tensor, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        y, after = super()._convolve(u, packing, state, need_state)
        weights = self.product_weights()
        if weights is None or after is None:
            return y, after
        past = self.liquid_order - 1
        before = u.new_zeros(u.shape[0], past, self.width) if state is None else state["inputs"]
        if state is not None:
            added = products_across(before, u, weights)
            y = torch.cat([y[:, :past] + added, y[:, past:]], 1)
        inputs = window_before(torch.cat([before, u], 1), packing.lengths + past, past)
        return y, {**after, "inputs": inputs}

    def _advance(self, u: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super()._advance(u, state)
        weights = self.product_weights()
        if weights is None:
            return y, after
        before, product = state["inputs"], u
        for delay, weight in enumerate(weights.unbind(-1), start=1):
            product = product * before[:, -delay]
            y = torch.addcmul(y, product, weight)
        return y, {**after, "inputs": torch.cat([before[:, 1:], u.unsqueeze(1)], 1)}
