"""State-space models by the names that configurations have for them."""

from .block import SSMBlock
from .config import CMMConfig
from .liquid import LiquidS4
from .mamba import Mamba
from .s4 import S4
from .s4d import S4D


def ssm_block(config: CMMConfig, width: int) -> SSMBlock:
    """Make the state-space model that a configuration names, of `width` channels."""
    if config.ssm == "s4":
        return S4(width, config.state_size, kernel_taps=config.kernel_taps)
    if config.ssm == "liquid":
        return LiquidS4(
            width,
            config.state_size,
            liquid_order=config.liquid_order,
            liquid_kernel=config.liquid_kernel,
        )
    if config.ssm == "s4d":
        return S4D(width, config.state_size, dropout=config.dropout)
    return Mamba(width, config.state_size)
